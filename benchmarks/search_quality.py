"""Sizes found by the search against tuning, rounding and other searches, at equal bytes.

    python benchmarks/search_quality.py --data flights-ranking --budgets 0.05 0.25
    python benchmarks/search_quality.py --methods full uniform mde nis_me --data-dir DATA MORE
    python benchmarks/search_quality.py --methods mpe pep optembed --rivals-dir RIVALS
    python benchmarks/search_quality.py --data-dir DATA MORE --rivals-dir RIVALS  # all, some days

Nothing is chosen for what the data say whose cells have ``"half": "judged"``.

A budget is a share of the bytes of the full tables in float32. Every method names tables that are
within it, chosen by validation data alone: rows, codes, scales, steps, code books, places and
projections are counted as they are stored. They are trained from scratch with several seeds until
validation stops improving, and tested as they are stored. What is rounded after training is
trained once, whatever the bits. Searches are run anew for every seed. A method that has nothing
within a budget has no cell. The methods of :data:`authors.REPOSITORIES` need the code of their
authors. Finished trainings are kept in ``benchmarks/results/search_quality``: a run that was
stopped goes on where it was. Prints one JSON object as its last line, the cells and a summary of
all that are known, and adds them to ``benchmarks/results/search_quality.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, combinations
import json
from pathlib import Path
from statistics import fmean, stdev
import sys
from typing import Any

from authors import REPOSITORIES, add_rivals_argument, check_rivals
from byte_laboratory import ByteLaboratory
from data_sets import DATA, add_data_arguments, check_data, half
from host_model import Result
from kept_runs import add_runs
from laboratory import HAND_MADE, PLAIN_TRAININGS, NoRoomError
from quality_summary import summary
from trainings import Trainings, rules_of

RESULTS = Path(__file__).parent / "results"
BUDGETS = (0.01, 0.025, 0.05, 0.125, 0.25)

Cell = dict[str, Any]
# The methods of a group run side by side, one group after the other: what is compared first is
# there first.
GROUPS = (
    ("full", "uniform", "mde"),
    ("nis_me",),
    ("nis_retrained",),
    ("nis_bits",),
    ("full_rounded", "full_pq", "uniform_lsq", "nis_rounded"),
    ("uniform_rounded", "uniform_pq", "hashing", "quotient_remainder"),
    tuple(REPOSITORIES),
    ("rule_of_thumb", "hand_made", "nis_se", "random", "tpe", "pruning"),
    ("full_tuned", "uniform_tuned", "nis_tuned"),
    ("full_one_out", "uniform_one_out"),
    ("random_20", "tpe_20"),
    ("grid",),
)
METHODS = tuple(chain.from_iterable(GROUPS))
# As large as they are, whatever the budget.
UNBOUNDED = ("full", "full_tuned", "full_one_out")
# Ten and more trainings each: in these cells only.
TUNED_CELLS = (("flights-ranking", 0.25), ("movielens-1m-user-item", 0.25), ("insteval", 0.25))
LONG_CELLS = (("flights-ranking", 0.25), ("insteval", 0.25))
DEAR = {
    **dict.fromkeys(("full_tuned", "uniform_tuned", "nis_tuned"), TUNED_CELLS),
    **dict.fromkeys(("full_one_out", "uniform_one_out"), TUNED_CELLS),
    **dict.fromkeys(("random_20", "tpe_20"), LONG_CELLS),
}
# Dozens of trainings for each data set, most of them the same for every budget.
GRID_DATA = ("flights-ranking", "movielens-small", "insteval", "seattle_pets")


def cell(laboratory: ByteLaboratory, method: str, budget: float) -> Cell | None:
    """A line of the result; None if the method has nothing within the budget.

    Raises:
        RuntimeError: If a method is over its budget.
    """
    space = laboratory.space(budget)
    try:
        runs, seconds, candidates = getattr(laboratory, f"method_{method}")(budget)
    except NoRoomError as error:
        print(f"{laboratory.data}: {method} has no cell at {budget:.1%}: {error}", flush=True)
        return None
    most = max(run["nbytes"] for run in runs)
    if most > space.budget_nbytes and method not in UNBOUNDED:
        raise RuntimeError(
            f"{method} on {laboratory.data} takes {most:,} bytes, {budget:.1%} are "
            f"{space.budget_nbytes:,}."
        )
    values = [run["test"] for run in runs]
    nbytes = fmean(run["nbytes"] for run in runs)
    steps = fmean(run["steps"] for run in runs)
    return {
        "data": laboratory.data,
        "half": half(laboratory.data),
        "budget": budget,
        "method": method,
        "metric": laboratory.metric,
        "mean": fmean(values),
        "std": stdev(values) if len(values) > 1 else 0.0,
        "seeds": list(laboratory.seeds),
        "num_parameters": round(fmean(run["num_parameters"] for run in runs)),
        "nbytes": round(nbytes),
        "share": nbytes / space.full_nbytes,
        "budget_nbytes": space.budget_nbytes,
        "budget_parameters": space.budget,
        "num_dense_parameters": runs[0]["num_dense_parameters"],
        "steps": steps,
        "best_steps": fmean(run["best_steps"] for run in runs),
        "steps_ratio": steps / laboratory.plain("steps"),
        "search_cost_ratio": seconds / laboratory.plain("seconds"),
        "search_seconds": seconds,
        # Of the other finalists, which are trained with the search's seed too.
        "finalists_cost_ratio": fmean(run.get("finalist_seconds", 0.0) for run in runs)
        / laboratory.plain("seconds"),
        "mean_at_equal_compute": None if method in DEAR else _of_few(runs, candidates),
        "values": values,
        "val": fmean(run["val"] for run in runs),
        "options": runs[0].get("options", laboratory.options),
        "allocation": str(runs[0]["allocation"]).splitlines(),
        "rules": rules_of(method),
    }


def _of_few(runs: Sequence[Result], candidates: Sequence[Result]) -> float:
    """Mean on test of a method that may try as few candidates as the one-shot search costs.

    Of more candidates, each choice of so many is as likely as any other.
    """
    if len(candidates) <= PLAIN_TRAININGS:
        return fmean(run["test"] for run in runs)
    few = combinations(candidates, PLAIN_TRAININGS)
    return fmean(max(some, key=lambda run: run["val"])["test"] for some in few)


def is_run(method: str, data: str, budget: float, everywhere: bool = False) -> bool:
    """Whether a method runs in a cell: dear ones only in some, unless they are to everywhere."""
    if method == "hand_made":
        return (data, budget) in HAND_MADE
    if everywhere:
        return True
    if method == "grid":
        return data in GRID_DATA
    return method not in DEAR or (data, budget) in DEAR[method]


def planned(
    data: str, budgets: Sequence[float], methods: Sequence[str], everywhere: bool = False
) -> list[list[tuple[str, float]]]:
    """The methods and budgets of a data set, in groups that run one after the other."""
    groups = (
        [
            (method, budget)
            for method in group
            for budget in budgets
            if method in methods and is_run(method, data, budget, everywhere)
        ]
        for group in GROUPS
    )
    return [group for group in groups if group]


def save_cells(cells: list[Cell], output: Path) -> dict[str, Any]:
    """Add cells to those of earlier runs; the summary is of those by the rules of today."""
    return add_runs(
        cells,
        output,
        by=("data", "budget", "method"),
        under="cells",
        name="summary",
        summary=lambda merged: summary(
            c for c in merged if c.get("rules") == rules_of(c["method"])
        ),
    )


@contextmanager
def opened(data: str, args: argparse.Namespace, seeds: Sequence[int]) -> Iterator[ByteLaboratory]:
    """The laboratory of a data set, with folders and workers as a command line names them."""
    trainings = Trainings(
        data,
        args.data_dir,
        args.results / "search_quality",
        args.workers,
        args.threads,
        rivals_dir=args.rivals_dir,
    )
    try:
        yield ByteLaboratory(data, trainings, seeds)
    finally:
        trainings.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_arguments(parser, list(DATA))
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    add_rivals_argument(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        help="by default all, without `--rivals-dir` those that need none",
    )
    parser.add_argument(
        "--everywhere", action="store_true", help="run dear methods not only in their cells"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of a worker")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    check_data(parser, args.data, {"data_dir": args.data_dir})
    methods = args.methods or [m for m in METHODS if args.rivals_dir or m not in REPOSITORIES]
    check_rivals(parser, args.rivals_dir, methods)
    plans = {data: planned(data, args.budgets, methods, args.everywhere) for data in args.data}
    if not any(plans.values()):
        parser.error("these methods run in none of these cells, see `--everywhere`")
    cells: list[Cell] = []
    for data in filter(plans.get, plans):
        with opened(data, args, args.seeds) as laboratory:
            for wanted in plans[data]:
                found = laboratory.each(
                    lambda pair, laboratory=laboratory: cell(laboratory, *pair), wanted
                )
                new = [each for each in found if each is not None]
                cells += new
                kept = save_cells(new, args.results / "search_quality.json")
    print(json.dumps({"summary": kept["summary"], "cells": cells}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
