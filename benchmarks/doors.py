"""The same search through every door: each must find the same sizes, or sizes as good.

    python benchmarks/doors.py
    python benchmarks/doors.py --data movielens-small-ranking --doors command plain-loop

The doors are the command, ``search_sizes``, ``NISCallback`` in a script, a plain torch loop, and
the lines of the README. What they find is trained from scratch until validation stops improving,
and tested; equal sizes are trained once. Finished searches and trainings are kept in the results,
which a run that was stopped goes on from: delete the file where the search has changed. Prints one
JSON object as its last line.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import redirect_stdout
import io
import json
from pathlib import Path
from statistics import fmean, stdev
import subprocess
import sys
import tempfile
import time
from typing import Any

from lightning import Trainer
import optuna
from plain_loop import plain_loop
from quiet import quiet
import torch

from optuna_nis import Allocation, SearchSpace
from optuna_nis.data import EmbeddingDataModule, load_dataset
from optuna_nis.lightning import NISCallback, evaluate, reference_model, search_sizes, train
from optuna_nis.study.results import best_allocation

ROOT = Path(__file__).parents[1]
BUDGET = "25%"
DATA = {
    f"{name}-{task}": (name, task)
    for name in ("flights", "movielens-small")
    for task in ("ranking", "retrieval")
}


def command(name: str, task: Any, seed: int) -> Allocation:
    """``optuna-nis search``."""
    with tempfile.TemporaryDirectory() as folder:
        storage = f"sqlite:///{folder}/study.db"
        options = {
            "--dataset": name,
            "--task": task,
            "--budget": BUDGET,
            "--seed": str(seed),
            "--storage": storage,
            "--study-name": "doors",
        }
        subprocess.run(
            [sys.executable, "-m", "optuna_nis.cli", "search", *sum(options.items(), ())],
            check=True,
            capture_output=True,
        )
        return best_allocation(optuna.load_study(study_name="doors", storage=storage))


def one_call(name: str, task: Any, seed: int) -> Allocation:
    """``search_sizes``."""
    data = load_dataset(name, task)
    return search_sizes(reference_model(data.features), data, budget=BUDGET, seed=seed).allocation


def callback(name: str, task: Any, seed: int) -> Allocation:
    """``NISCallback`` in a script with a trainer of its own."""
    data = load_dataset(name, task, shuffle_seed=seed)
    build = reference_model(data.features)
    space = SearchSpace(build.specs(), budget=BUDGET)
    torch.manual_seed(seed)
    search = NISCallback(space, seed=seed)
    trainer = Trainer(
        max_epochs=build.epochs,
        callbacks=[search],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(build(space), data)
    return search.train_candidates(build, data)


def loop(name: str, task: Any, seed: int) -> Allocation:
    """A plain torch loop."""
    data = load_dataset(name, task, shuffle_seed=seed)
    return best_allocation(plain_loop(data, BUDGET, seed).study)


def readme(name: str, task: Any, seed: int) -> Allocation:
    """The lines of the README, on these data and with this seed, as far as the search goes."""
    left: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()):
        exec(lines_of_readme(name, task, seed), left)
    allocation: Allocation = left["found"].allocation
    return allocation


def lines_of_readme(name: str, task: str, seed: int) -> str:
    """The lines that search, with the data and the seed in them."""
    blocks = (ROOT / "README.md").read_text().split("```python\n")[1:]
    (lines,) = [part.split("```")[0] for part in blocks if "search_sizes(" in part]
    for before, after in (
        ('load_dataset("movielens-small")', f'load_dataset("{name}", "{task}")'),
        (f'budget="{BUDGET}"', f'budget="{BUDGET}", seed={seed}'),
        ("print(found.retrain())", "RETRAIN"),
    ):
        if lines.count(before) != 1:
            raise ValueError(f"The lines of README.md must have {before!r} once.")
        lines = lines.replace(before, after)
    return lines.partition("RETRAIN")[0]


DOORS: dict[str, Callable[[str, Any, int], Allocation]] = {
    "command": command,
    "search_sizes": one_call,
    "NISCallback": callback,
    "plain-loop": loop,
    "README": readme,
}


class Results:
    """What has been searched and trained, in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        kept = json.loads(path.read_text()) if path.exists() else {}
        self.searches: list[dict[str, Any]] = kept.get("searches", [])
        self.trainings: list[dict[str, Any]] = kept.get("trainings", [])
        self.summary: dict[str, Any] = {}

    def save(self) -> None:
        """Write everything."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        parts = {"searches": self.searches, "trainings": self.trainings, **self.summary}
        self._path.write_text(json.dumps(parts, indent=1) + "\n")

    def found(self, data: str, door: str, seed: int) -> Allocation:
        """What a door finds, searched if it has not been."""
        job = {"data": data, "door": door, "seed": seed}
        for known in self.searches:
            if job.items() <= known.items():
                return Allocation.from_json(known["allocation"])
        start = time.perf_counter()
        allocation = DOORS[door](*DATA[data], seed)
        seconds = time.perf_counter() - start
        self.searches.append({**job, "seconds": seconds, "allocation": allocation.to_json()})
        self.save()
        size = f"{allocation.num_parameters:,} parameters"
        print(f"{data}: {door}, seed {seed}: {size}, {seconds:.0f} s", flush=True)
        return allocation

    def tested(self, data: str, allocation: Allocation, seed: int) -> float:
        """The metric on test of sizes that are trained from scratch, if they have not been."""
        job = {"data": data, "allocation": allocation.to_json(), "seed": seed}
        for known in self.trainings:
            if job.items() <= known.items():
                return float(known["test"])
        start = time.perf_counter()
        test = _test_of(load_dataset(*DATA[data], shuffle_seed=seed), allocation, seed)
        seconds = time.perf_counter() - start
        self.trainings.append({**job, "seconds": seconds, "test": test})
        self.save()
        print(f"{data}: trained with seed {seed}: {test:.4f}, {seconds:.0f} s", flush=True)
        return test


def _test_of(data: EmbeddingDataModule, allocation: Allocation, seed: int) -> float:
    build = reference_model(data.features)
    training = train(build, allocation, data, seed=seed, monitor=build(allocation).monitor)
    return evaluate(training.model, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--doors", nargs="+", choices=list(DOORS), default=list(DOORS))
    parser.add_argument("--search-seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of trainings")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/doors.json")
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)

    results = Results(args.output)
    doors, same = [], {}
    for data in args.data:
        found = {
            door: [results.found(data, door, seed) for seed in args.search_seeds]
            for door in args.doors
        }
        same[data] = all(sizes == found[args.doors[0]] for sizes in found.values())
        for door, sizes in found.items():
            values = [results.tested(data, each, seed) for each in sizes for seed in args.seeds]
            doors.append(
                {
                    "data": data,
                    "door": door,
                    "mean": fmean(values),
                    "std": stdev(values) if len(values) > 1 else 0.0,
                    "seeds": args.seeds,
                    "num_parameters": round(fmean(each.num_parameters for each in sizes)),
                }
            )
    results.summary = {"doors": doors, "same_sizes": same}
    results.save()
    print(json.dumps(results.summary))


if __name__ == "__main__":
    main()
