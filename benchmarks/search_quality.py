"""Sizes found by the search against careful tuning and other searches, at equal memory.

    python benchmarks/search_quality.py --data flights-ranking --budgets 0.05 0.25
    python benchmarks/search_quality.py --data-dir DATA      # everything, several hours

Nothing is chosen for what the data say whose cells have ``"half": "judged"``.

Every method names sizes for a budget, chosen by validation data alone; they are trained from
scratch with several seeds until validation stops improving, and tested. Searches are run anew for
every seed. Finished trainings are kept in ``benchmarks/results/search_quality``: a run that was
stopped goes on where it was. Prints one JSON object as its last line and writes it to
``benchmarks/results/search_quality.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import combinations
import json
from pathlib import Path
from statistics import fmean, stdev
import sys
from typing import Any

from data_sets import DATA, half
from laboratory import HAND_MADE, LONG_TRAININGS, PLAIN_TRAININGS, Laboratory
from trainings import Result, Trainings

RESULTS = Path(__file__).parent / "results"
BUDGETS = (0.05, 0.125, 0.25, 0.5)

Cell = dict[str, Any]
METHODS = tuple(
    name.removeprefix("method_") for name in vars(Laboratory) if name.startswith("method_")
)


def cell(laboratory: Laboratory, method: str, budget: float) -> Cell:
    """A line of the result."""
    runs, seconds, candidates = getattr(laboratory, f"method_{method}")(budget)
    values = [run["test"] for run in runs]
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
        "budget_parameters": laboratory.space(budget).budget,
        "num_dense_parameters": runs[0]["num_dense_parameters"],
        "search_cost_ratio": seconds / laboratory.plain_seconds(),
        "mean_at_equal_compute": (None if method.endswith("_10x") else _of_few(runs, candidates)),
        "values": values,
        "val": fmean(run["val"] for run in runs),
        "allocation": str(runs[0]["allocation"]).splitlines(),
    }


def _of_few(runs: Sequence[Result], candidates: Sequence[Result]) -> float:
    """Mean on test of a method that may try as few candidates as the one-shot search costs.

    Of more candidates, each choice of so many is as likely as any other.
    """
    if len(candidates) <= PLAIN_TRAININGS:
        return fmean(run["test"] for run in runs)
    few = combinations(candidates, PLAIN_TRAININGS)
    return fmean(max(some, key=lambda run: run["val"])["test"] for some in few)


def _wanted(data: str, budgets: Sequence[float], methods: Sequence[str]) -> Iterator[Any]:
    for budget in budgets:
        for method in methods:
            if method.endswith("_10x") and (data, budget) not in LONG_TRAININGS:
                continue
            if method == "hand_made" and (data, budget) not in HAND_MADE:
                continue
            yield budget, method


def save_cells(cells: list[Cell], output: Path) -> list[Cell]:
    """Add cells to those of earlier runs."""
    before = json.loads(output.read_text())["cells"] if output.exists() else []
    places = {(cell["data"], cell["budget"], cell["method"]): cell for cell in [*before, *cells]}
    merged = [places[place] for place in sorted(places)]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"cells": merged}, indent=1) + "\n")
    return merged


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--data-dir", help="folder of the files of data that are no package")
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of a worker")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    output = args.results / "search_quality.json"
    cells = []
    for data in args.data:
        trainings = Trainings(
            data, args.data_dir, args.results / "search_quality", args.workers, args.threads
        )
        laboratory = Laboratory(data, trainings, args.seeds)
        wanted = list(_wanted(data, args.budgets, args.methods))
        try:
            cells += laboratory.each(
                lambda pair, laboratory=laboratory: cell(laboratory, pair[1], pair[0]), wanted
            )
        finally:
            trainings.close()
        save_cells(cells, output)
    print(json.dumps({"cells": cells}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
