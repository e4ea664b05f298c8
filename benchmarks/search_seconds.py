"""Seconds of a search beside those of a training of the full tables, as anyone would run them.

    python benchmarks/search_seconds.py --data flights-ranking insteval
    python benchmarks/search_seconds.py --data-dir DATA MORE   # everything, a quarter of an hour

For each data set, one after the other in one process: a search at a quarter of the bytes with the
defaults, then a training of the full tables until validation stops improving, both with seed 0.
Seconds are those of the clock, with as many threads as torch takes, and without reading the data;
nothing else should run. Prints one JSON object as its last line, for each data set ``"search"``,
``"training"`` and their ``"ratio"``, and adds it to ``benchmarks/results/search_seconds.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
import time
from typing import Any

from data_sets import add_data_arguments, check_data, data_config
from host_model import build_model, specs_of, trained
from kept_runs import add_runs
import optuna
from quiet import quiet
from search_quality import RESULTS
import torch

from optuna_nis import SearchSpace
from optuna_nis.lightning import search_sizes

DATA = (
    *("flights-ranking", "insteval", "seattle_pets", "complete_journey", "citeulike_a"),
    *("movielens-small", "movielens-1m-user-item", "movielens-1m"),
)
BUDGET = 0.25


def seconds_of(data: str, config: dict[str, Any]) -> dict[str, Any]:
    """How long a search and a training take."""
    datamodule = data_config(data, config).datamodule(withhold_test=True)
    space = SearchSpace(specs_of(data, datamodule))
    start = time.perf_counter()
    search_sizes(
        build_model(data, datamodule),
        datamodule,
        space=space.with_budget(BUDGET),
        study=optuna.create_study(direction="maximize"),
        seed=0,
    )
    search = time.perf_counter() - start
    start = time.perf_counter()
    trained(data, datamodule, space.full(), seed=0)
    training = time.perf_counter() - start
    return {
        "data": data,
        "search": round(search, 1),
        "training": round(training, 1),
        "ratio": round(search / training, 2),
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_arguments(parser, DATA)
    parser.add_argument("--output", type=Path, default=RESULTS / "search_seconds.json")
    args = parser.parse_args()
    check_data(parser, args.data, {"data_dir": args.data_dir})
    config = {"data_dir": args.data_dir} if args.data_dir else {}
    quiet()
    runs = []
    for data in args.data:
        runs.append(seconds_of(data, config))
        print(json.dumps(runs[-1]), flush=True)
        add_runs(runs, args.output, by=("data",))
    keys = ("search", "training", "ratio")
    print(json.dumps({run["data"]: {key: run[key] for key in keys} for run in runs}))


if __name__ == "__main__":
    main()
