"""What recording trials adds to the one-shot search on flights.

    python benchmarks/recording.py --output benchmarks/results/recording.json

The same search (the same seed, so the same choices) with its study in memory, in a SQLite file
and on a PostgreSQL server; in each round the order is turned. With fewer rows (``--max-rows``)
the search is shorter, what is recorded the same, and so the ratios higher. Prints one JSON
object as its last line: for each storage ``ratio``, its wall-clock over that in memory, each the
least of all rounds, which other programs on the machine disturb least; ``cpu_ratio``, the same in
seconds of the searcher's processor; ``recording_share``, the part of the wall-clock that was spent
in recording (the median of the rounds); and the seconds of each round.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
import json
from pathlib import Path
from statistics import median
import sys
import tempfile
import time
from typing import Any

from lightning.pytorch import LightningDataModule
import optuna
from quiet import quiet
import torch

from optuna_nis import NISSampler, SearchSpace
from optuna_nis.lightning import DataConfig, NISCallback, reference_model
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.study.recording import TrialRecorder
from optuna_nis.study.storages import open_storage

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from servers import PostgreSQL


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    """Note the seconds that recording takes."""
    record = TrialRecorder.record

    def timed_record(*args: Any, **kwargs: Any) -> bool:
        start = time.perf_counter()
        others = record(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return others

    TrialRecorder.record = timed_record  # type: ignore[method-assign]
    try:
        yield
    finally:
        TrialRecorder.record = record  # type: ignore[method-assign]


def search(
    address: str | None,
    name: str,
    data: LightningDataModule,
    space: SearchSpace,
    build: Callable[[Any], Any],
    epochs: int,
) -> dict[str, float]:
    """Seconds of one search: of the clock, of the processor, and those spent in recording."""
    torch.manual_seed(0)
    study = optuna.create_study(
        storage=None if address is None else open_storage(address),
        study_name=name,
        direction="maximize",
        sampler=NISSampler(budget=space, seed=0),
    )
    supernet = build(space)
    trainer = quiet_trainer(max_epochs=epochs, callbacks=[NISCallback(space, study)])
    recording: list[float] = []
    wall, cpu = time.perf_counter(), time.process_time()
    with timed(recording):
        trainer.fit(supernet, datamodule=data)
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "recording": sum(recording),
        "trials": len(study.get_trials(deepcopy=False)),
    }


def summarised(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for storage in rounds[0]:
        runs = [each[storage] for each in rounds]
        memory = [each["memory"] for each in rounds]

        def ratio(clock: str) -> float:
            return round(min(a[clock] for a in runs) / min(b[clock] for b in memory), 3)  # noqa: B023

        found[storage] = {
            "ratio": ratio("wall"),
            "cpu_ratio": ratio("cpu"),
            "recording_share": round(median(run["recording"] / run["wall"] for run in runs), 4),
            "seconds": [round(run["wall"], 2) for run in runs],
            "cpu_seconds": [round(run["cpu"], 2) for run in runs],
            "recording_seconds": [round(run["recording"], 3) for run in runs],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4, help="of the supernet, as by default")
    parser.add_argument("--max-rows", type=int, help="of flights; by default all")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    quiet()

    config = DataConfig(dataset="flights", max_rows=args.max_rows)
    data = config.datamodule(withhold_test=True)
    space = SearchSpace(data.embedding_specs(32), budget="25%")
    build = reference_model(data.features)
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder, PostgreSQL() as server:
        addresses = {
            "memory": None,
            "sqlite": f"sqlite:///{folder}/study.db",
            "postgresql": server.url,
        }
        for index in range(args.rounds):
            turned = list(addresses.items())
            turned = turned[index % len(turned) :] + turned[: index % len(turned)]
            spent = {
                storage: search(address, f"round-{index}", data, space, build, args.epochs)
                for storage, address in turned
            }
            rounds.append({storage: spent[storage] for storage in addresses})
            summary = summarised(rounds) | {
                "rounds": len(rounds),
                "epochs": args.epochs,
                "max_rows": args.max_rows,
                "trials": rounds[0]["memory"]["trials"],
                "parameters": len(space.choices),
                "threads": torch.get_num_threads(),
            }
            if args.output is not None:
                args.output.write_text(json.dumps(summary, indent=2) + "\n")
            print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
