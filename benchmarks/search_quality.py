"""Sizes found by the search against careful tuning and other searches, at equal memory.

    python benchmarks/search_quality.py --data flights-ranking --budgets 0.05 0.25
    python benchmarks/search_quality.py --methods full uniform mde nis_me --data-dir DATA MORE
    python benchmarks/search_quality.py --data-dir DATA MORE      # everything, a day

Nothing is chosen for what the data say whose cells have ``"half": "judged"``.

Every method names sizes for a budget, chosen by validation data alone; they are trained from
scratch with several seeds until validation stops improving, and tested. Searches are run anew for
every seed. Finished trainings are kept in ``benchmarks/results/search_quality``: a run that was
stopped goes on where it was. Prints one JSON object as its last line, the cells and a summary of
all that are known, and adds them to ``benchmarks/results/search_quality.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import chain, combinations
import json
from pathlib import Path
from statistics import fmean, stdev
import sys
from typing import Any

from data_sets import DATA, add_data_arguments, check_data, half
from host_model import Result
from kept_runs import add_runs
from laboratory import HAND_MADE, PLAIN_TRAININGS, Laboratory
from quality_summary import summary
from trainings import RULES, Trainings

RESULTS = Path(__file__).parent / "results"
BUDGETS = (0.05, 0.125, 0.25, 0.5)

Cell = dict[str, Any]
# The methods of a group run side by side, one group after the other: what is compared first is
# there first.
GROUPS = (
    ("full", "uniform", "mde"),
    ("nis_me",),
    ("rule_of_thumb", "hand_made", "nis_se", "random", "tpe", "pruning"),
    ("full_tuned", "uniform_tuned", "nis_tuned"),
    ("full_one_out", "uniform_one_out"),
    ("random_20", "tpe_20"),
    ("grid",),
)
METHODS = tuple(chain.from_iterable(GROUPS))
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


def cell(laboratory: Laboratory, method: str, budget: float) -> Cell:
    """A line of the result."""
    runs, seconds, candidates = getattr(laboratory, f"method_{method}")(budget)
    values = [run["test"] for run in runs]
    parameters = fmean(run["num_parameters"] for run in runs)
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
        "num_parameters": round(parameters),
        "share": parameters / laboratory.full.full_parameters,
        "budget_parameters": laboratory.space(budget).budget,
        "num_dense_parameters": runs[0]["num_dense_parameters"],
        "steps": steps,
        "best_steps": fmean(run["best_steps"] for run in runs),
        "steps_ratio": steps / laboratory.plain("steps"),
        "search_cost_ratio": seconds / laboratory.plain("seconds"),
        "mean_at_equal_compute": None if method in DEAR else _of_few(runs, candidates),
        "values": values,
        "val": fmean(run["val"] for run in runs),
        "options": runs[0].get("options", laboratory.options),
        "allocation": str(runs[0]["allocation"]).splitlines(),
        "rules": RULES,
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
        summary=lambda merged: summary(c for c in merged if c.get("rules") == RULES),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_arguments(parser, list(DATA))
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument(
        "--everywhere", action="store_true", help="run dear methods not only in their cells"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of a worker")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    check_data(parser, args.data, {"data_dir": args.data_dir})
    plans = {
        data: planned(data, args.budgets, args.methods, args.everywhere) for data in args.data
    }
    if not any(plans.values()):
        parser.error("these methods run in none of these cells, see `--everywhere`")
    cells: list[Cell] = []
    for data in filter(plans.get, plans):
        trainings = Trainings(
            data, args.data_dir, args.results / "search_quality", args.workers, args.threads
        )
        laboratory = Laboratory(data, trainings, args.seeds)
        try:
            for wanted in plans[data]:
                new = laboratory.each(
                    lambda pair, laboratory=laboratory: cell(laboratory, *pair), wanted
                )
                cells += new
                kept = save_cells(new, args.results / "search_quality.json")
        finally:
            trainings.close()
    print(json.dumps({"summary": kept["summary"], "cells": cells}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
