"""The table of the items counted and searched with those of the features.

    python benchmarks/output_tables.py --data-dir DATA      # half an hour

On Amazon Video Games the weights of the softmax over the items are a third of all tables. Searches
at a share of all of them with the first seed, trains what it finds from scratch with every seed,
beside uniform sizes and the full tables, until validation stops improving, and tests.
Finished jobs are kept in ``benchmarks/results/output_tables``: a run that was stopped goes on
where it was. Prints one JSON object as its last line and writes it to
``benchmarks/results/output_tables.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from data_sets import ITEMS, check_data
from host_model import Result
from kept_runs import add_runs
from laboratory import Laboratory
from search_quality import RESULTS, Cell
from trainings import Trainings

from optuna_nis import Allocation

DATA = "amazon-video-games"
METHODS = ("full", "uniform", "nis_me")


def cell(laboratory: Laboratory, outputs: list[str], method: str, budget: float) -> Cell:
    """A line of the result."""
    if method == "nis_me":
        runs, seconds = _searched(laboratory, budget)
    else:
        runs, seconds, _ = getattr(laboratory, f"method_{method}")(budget)
    line: Cell = {
        "data": DATA,
        "budget": budget,
        "method": method,
        "seeds": laboratory.seeds,
        "num_parameters": round(fmean(run["num_parameters"] for run in runs)),
        "num_output_parameters": round(
            fmean(_output_parameters(run["allocation"], outputs) for run in runs)
        ),
        "budget_parameters": laboratory.space(budget).budget,
        "full_parameters": laboratory.full.full_parameters,
        "num_dense_parameters": runs[0]["num_dense_parameters"],
        "search_cost_ratio": seconds / laboratory.plain("seconds"),
        "val_mrr": fmean(run["val"] for run in runs),
        "allocations": [str(run["allocation"]).splitlines() for run in runs],
    }
    for k, name in ((1, "test"), (10, "test_recall@10"), (50, "test_recall@50")):
        line[f"recall@{k}"] = _spread([run[name] for run in runs])
    return line


def _searched(laboratory: Laboratory, budget: float) -> tuple[list[Result], float]:
    """What a search finds, trained with every seed, and how long it took."""
    found = laboratory.trainings.run(
        kind="search", budget=budget, mode="multi", seed=laboratory.seeds[0]
    )
    sizes = Allocation.from_json(found["allocation"])
    runs = laboratory.each(lambda seed: laboratory.train(sizes, seed), laboratory.seeds)
    return runs, found["seconds"]


def _output_parameters(allocation: Allocation, outputs: list[str]) -> int:
    return sum(allocation[name].num_parameters for name in outputs)


def _spread(values: list[float]) -> dict[str, Any]:
    std = stdev(values) if len(values) > 1 else 0.0
    return {"mean": fmean(values), "std": std, "values": values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data-dir", nargs="+", required=True, help="folders, one of them of Amazon Video Games"
    )
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.125])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="threads of a worker")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    check_data(parser, [DATA], {"data_dir": args.data_dir})
    trainings = Trainings(
        DATA + ITEMS, args.data_dir, args.results / "output_tables", args.workers, args.threads
    )
    try:
        laboratory = Laboratory(DATA + ITEMS, trainings, args.seeds)
        outputs: list[str] = trainings.run(kind="describe")["output_features"]
        wanted = [(m, b) for b in args.budgets for m in args.methods]
        cells = laboratory.each(lambda pair: cell(laboratory, outputs, *pair), wanted)
    finally:
        trainings.close()
    output = args.results / "output_tables.json"
    add_runs(cells, output, by=("data", "budget", "method"), under="cells")
    print(json.dumps({"cells": cells}), flush=True)


if __name__ == "__main__":
    main()
