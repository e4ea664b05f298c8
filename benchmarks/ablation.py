"""What each part of the search gives: the search without it, on the same data and budgets.

    python benchmarks/ablation.py --data flights-ranking --budgets 0.25
    python benchmarks/ablation.py --data-dir DATA MORE      # everything, some hours

Every variant searches anew for every seed; what it finds is trained from scratch until validation
stops improving, and tested. Finished jobs are kept where ``search_quality.py`` keeps its own: a
run that was stopped goes on, and what both need is run once. Prints one JSON object as its last
line and writes it to ``benchmarks/results/ablation.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from data_sets import add_data_arguments, check_data
from host_model import Result
from kept_runs import add_runs
from laboratory import Laboratory
from search_quality import RESULTS, Cell
from trainings import Trainings
from without import WITHOUT

DEFAULT_DATA = ("flights-ranking", "insteval", "complete_journey", "movielens-1m-user-item")
DEFAULT_BUDGETS = (0.25,)


def cell(laboratory: Laboratory, budget: float, without: str | None) -> Cell:
    """A line of the result; the whole search is the variant without nothing."""

    def find(seed: int) -> Result:
        job: dict[str, Any] = {} if without is None else {"without": without}
        return laboratory.trainings.run(
            kind="search", budget=budget, mode="multi", seed=seed, **job
        )

    runs, seconds, _ = laboratory.searched(find)
    values = [run["test"] for run in runs]
    return {
        "data": laboratory.data,
        "budget": budget,
        "method": without or "nothing",
        "metric": laboratory.metric,
        "mean": fmean(values),
        "std": stdev(values) if len(values) > 1 else 0.0,
        "seeds": list(laboratory.seeds),
        "num_parameters": round(fmean(run["num_parameters"] for run in runs)),
        "nbytes": round(fmean(run["nbytes"] for run in runs)),
        "search_cost_ratio": seconds / laboratory.plain("seconds"),
        "values": values,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_arguments(parser, DEFAULT_DATA)
    parser.add_argument("--budgets", nargs="+", type=float, default=DEFAULT_BUDGETS)
    parser.add_argument("--without", nargs="+", choices=list(WITHOUT), default=list(WITHOUT))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of a worker")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    check_data(parser, args.data, {"data_dir": args.data_dir})
    cells: list[Cell] = []
    for data in args.data:
        trainings = Trainings(
            data, args.data_dir, args.results / "search_quality", args.workers, args.threads
        )
        laboratory = Laboratory(data, trainings, args.seeds)
        wanted = [(b, without) for b in args.budgets for without in (None, *args.without)]
        try:
            cells += laboratory.each(lambda pair, lab=laboratory: cell(lab, *pair), wanted)
        finally:
            trainings.close()
        output = args.results / "ablation.json"
        add_runs(cells, output, by=("data", "budget", "method"), under="cells")
    print(json.dumps({"cells": cells}), flush=True)


if __name__ == "__main__":
    main()
