"""The fewest bytes at which the tables of a method are as good as the full ones in float32.

    python benchmarks/fewest_bytes.py --data flights-ranking flights-retrieval
    python benchmarks/fewest_bytes.py --data-dir DATA --rivals-dir RIVALS    # all, some days
    python benchmarks/fewest_bytes.py --data flights-ranking --smoke         # minutes

For each data set and method the smallest budget of :data:`GRID` at which its mean metric on test
over the seeds is at least that of the full tables, as the share of their bytes that it then takes.
The grid is bisected: a budget reaches it and the next smaller one does not, or the method has
nothing that small. So that is not tried which is far too small, or far larger than needed.

Methods, budgets and jobs are those of ``search_quality.py``, and kept beside its own: a run that
was stopped goes on where it was. Prints one JSON object as its last line, ``{data: {"full":
metric, "shares": {method: share}}}``, null where no budget is enough, and adds what it has tried
to ``benchmarks/results/fewest_bytes.json``, but for smoke tests.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
import json
from pathlib import Path
from typing import Any

from authors import REPOSITORIES, add_rivals_argument, check_rivals
from byte_laboratory import ByteLaboratory
from data_sets import add_data_arguments, check_data
from kept_runs import add_runs
from search_quality import RESULTS, Cell, cell, opened
from trainings import rules_of

DATA = ("flights-ranking", "flights-retrieval", "movielens-1m-user-item", "movielens-1m")
# Ours first.
METHODS = (
    *("nis_bits", "full_rounded", "full_pq", "uniform_lsq", "uniform_pq", "uniform_rounded"),
    *("nis_me", "nis_rounded", "uniform", "mde", "hashing", "quotient_remainder"),
    *REPOSITORIES,
)
# Shares of the bytes of the full tables in float32, each about a third larger than the last.
GRID = (
    *(0.001, 0.0015, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04),
    *(0.05, 0.0625, 0.08, 0.1, 0.125, 0.16, 0.2, 0.25, 0.32, 0.4, 0.5),
)
SMOKE = {"grid": (0.05, 0.16), "seeds": (0,), "methods": ("full_rounded", "full_pq")}

Summary = dict[str, dict[str, Any]]


def smallest(grid: Sequence[float], reaches: Callable[[float], bool]) -> float | None:
    """The smallest budget of a grid that is enough, if larger ones are too.

    Args:
        grid: Budgets, smallest first.
        reaches: Whether one is enough; asked as seldom as bisecting allows.

    Returns:
        The budget: it is enough, and the one before it is not. None if the largest is not enough.

    Example:
        >>> asked = []
        >>> smallest([1, 2, 3, 4, 5], lambda budget: bool(asked.append(budget)) or budget >= 4)
        4
        >>> asked
        [3, 5, 4]
    """
    low, high = 0, len(grid)
    while low < high:
        # The one in the middle first, then in the half where the border is.
        middle = (low + high) // 2
        low, high = (low, middle) if reaches(grid[middle]) else (middle + 1, high)
    return grid[low] if low < len(grid) else None


def tries(laboratory: ByteLaboratory, method: str, grid: Sequence[float]) -> list[Cell]:
    """What a method was asked for: a line for each budget, with whether it is ``"enough"``.

    Of budgets within which it has nothing there is only that.
    """
    lines: list[Cell] = []

    def reaches(budget: float) -> bool:
        found = cell(laboratory, method, budget)
        place = {"data": laboratory.data, "method": method, "budget": budget}
        place["rules"] = rules_of(method)
        if found is None:
            lines.append(place | {"enough": False})
            return False
        full = laboratory.plain("test")
        enough = found["mean"] >= full
        names = ("metric", "mean", "std", "seeds", "values", "nbytes", "share", "allocation")
        lines.append(place | {name: found[name] for name in names} | {"full": full})
        lines[-1]["enough"] = enough
        return bool(enough)

    smallest(grid, reaches)
    return lines


def summary(runs: Sequence[Cell]) -> Summary:
    """For each data set the metric of the full tables and the fewest share of each method.

    The metric is that of the most seeds that any method was tried with.

    Of a method that has been tried, the smallest share at which it was enough, None if it never
    was.
    """
    found: Summary = {}
    for run in sorted(runs, key=lambda run: len(run.get("seeds", ()))):
        if run["rules"] != rules_of(run["method"]):
            continue
        about = found.setdefault(run["data"], {"full": None, "shares": {}})
        about["full"] = run.get("full", about["full"])
        share = run["share"] if run["enough"] else None
        known = about["shares"].get(run["method"])
        if share is None or known is not None:
            share = known if share is None else min(share, known)
        about["shares"][run["method"]] = share
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_arguments(parser, DATA)
    add_rivals_argument(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        help="by default all, without `--rivals-dir` those that need none",
    )
    parser.add_argument("--grid", nargs="+", type=float, help="budgets, shares of the full tables")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of a worker")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--smoke", action="store_true", help="one seed, two budgets, tables stored in fewer bits"
    )
    args = parser.parse_args()
    check_data(parser, args.data, {"data_dir": args.data_dir})
    usual = [m for m in METHODS if args.rivals_dir or m not in REPOSITORIES]
    methods = args.methods or (SMOKE["methods"] if args.smoke else usual)
    grid = sorted(args.grid or (SMOKE["grid"] if args.smoke else GRID))
    seeds = args.seeds or (SMOKE["seeds"] if args.smoke else (0, 1, 2))
    check_rivals(parser, args.rivals_dir, methods)
    found: Summary = {}
    for data in args.data:
        with opened(data, args, seeds) as laboratory:
            each = laboratory.each(
                lambda method, lab=laboratory: tries(lab, method, grid), methods
            )
        runs = [run for lines in each for run in lines]
        if not args.smoke:
            add_runs(
                runs,
                args.results / "fewest_bytes.json",
                by=("data", "method", "budget"),
                name="summary",
                summary=summary,
            )
        found |= summary(runs)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
