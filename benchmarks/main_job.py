"""The main job on flights: search, retrain with several seeds, compare.

    python benchmarks/main_job.py --task ranking --output benchmarks/results/flights_ranking.json

Prints one JSON object as its last line: test metric of the sizes found, of uniform sizes at the
same budget and of the full tables, and the time of the search in plain trainings.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import optuna
from quiet import quiet

from optuna_nis.lightning import DataConfig, retrain, search
from optuna_nis.study.results import best_allocation, summary_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=("ranking", "retrieval"), default="ranking")
    parser.add_argument("--budget", default="25%")
    parser.add_argument("--search-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--storage", help="keeps the study; it is resumed when stopped")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    quiet()

    study = optuna.create_study(
        study_name=f"flights-{args.task}",
        storage=args.storage,
        direction="maximize",
        load_if_exists=True,
    )
    data = DataConfig(dataset="flights", task=args.task)
    # The budget is one of the tables of the features, as in the other tables of flights.
    options = {"search_items": False} if args.task == "retrieval" else {}
    search(study, data, budget=args.budget, seed=args.search_seed, progress=print, **options)
    retrain(study, seeds=args.seeds, progress=print)
    summary = summary_of(study) | {
        "budget_text": args.budget,
        "allocation": str(best_allocation(study)).splitlines(),
    }
    if args.output is not None:
        args.output.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
