"""Whether the search finds what was planted in tables whose best sizes are known.

    python benchmarks/planted.py --kinds noise tails --seeds 0 1 2
    python benchmarks/planted.py      # every kind with ten seeds, half an hour

Each seed is a table of its own, searched and retrained as the commands would with their defaults;
what counts are the sizes that are then found, the best of the search's finalists. Prints one JSON
object as its last line, ``{"kinds": {kind: {"found": n, "seeds": m}}}``, and adds all runs to
``benchmarks/results/planted.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
import json
import multiprocessing
from pathlib import Path
import tempfile
import time

from kept_runs import Run, add_runs
import optuna
from planted_tables import KINDS, Planted, generate
from quiet import quiet
import torch

from optuna_nis import Allocation
from optuna_nis.lightning import DataConfig, reference_model, retrain, search
from optuna_nis.lightning.training import evaluate, train
from optuna_nis.strategy import baselines
from optuna_nis.study.results import best_allocation, space_of

RESULTS = Path(__file__).parent / "results"
# Two standard errors of a test AUC of .95 on 8,000 rows.
NOISE = 0.005
# A rival that never stops on a plateau.
PATIENT = {"patience": 15, "max_epochs": 80}


def run(kind: str, seed: int) -> Run:
    """Search one table."""
    planted = generate(kind, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "planted.parquet"
        planted.frame.to_parquet(path)
        data = DataConfig(
            table=str(path), label="label", split_column="split", features=planted.features
        )
        study = optuna.create_study(direction="maximize")
        start = time.process_time()
        searched = search(study, data, budget=planted.budget, seed=seed)
        seconds = time.process_time() - start
        tests = {each.name: each.values[0] for each in retrain(study, seeds=[seed])}
        if planted.trained:
            tests["patient"] = _patient(study, data, seed)
    sizes = best_allocation(study)
    return {
        "kind": kind,
        "seed": seed,
        "found": is_found(planted, sizes, tests),
        "allocation": str(sizes).splitlines(),
        # By the search alone.
        "searched": str(searched).splitlines(),
        "num_parameters": sizes.num_parameters,
        "seconds": seconds,
        "tests": tests,
    }


def is_found(planted: Planted, sizes: Allocation, tests: dict[str, float]) -> bool:
    """Whether sizes are what was planted, and as good as every rival if they were trained.

    Args:
        planted: The table.
        sizes: What the search found.
        tests: The metric on the test after a training, of ``"nis"`` and of its rivals.
    """
    good = not planted.trained or tests["nis"] >= max(tests.values()) - NOISE
    return good and planted.found(sizes)


def _patient(study: optuna.Study, data: DataConfig, seed: int) -> float:
    """The metric on the test of a rival that is trained for long."""
    datamodule = data.datamodule(withhold_test=False, shuffle_seed=seed)
    sizes = baselines.uniform(space_of(study))
    build = reference_model(datamodule.features)
    return evaluate(train(build, sizes, datamodule, seed=seed, **PATIENT).model, datamodule)


def summary(runs: Iterable[Run]) -> dict[str, dict[str, int]]:
    """How many seeds of each kind were found."""
    kinds: dict[str, dict[str, int]] = {}
    for each in runs:
        counts = kinds.setdefault(each["kind"], {"found": 0, "seeds": 0})
        counts["found"] += each["found"]
        counts["seeds"] += 1
    return kinds


def save(runs: list[Run], output: Path) -> None:
    """Add runs to those of earlier times."""
    add_runs(runs, output, by=("kind", "seed"), name="kinds", summary=summary)


def _start() -> None:
    torch.set_num_threads(1)
    quiet()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    runs = []
    with ProcessPoolExecutor(args.workers, mp_context=context, initializer=_start) as pool:
        jobs = [pool.submit(run, kind, seed) for kind in args.kinds for seed in args.seeds]
        for job in as_completed(jobs):
            runs.append(job.result())
            print(json.dumps(runs[-1]), flush=True)
            save(runs, args.results / "planted.json")
    print(json.dumps({"kinds": summary(runs)}), flush=True)


if __name__ == "__main__":
    main()
