"""A search on flights is killed at random moments and started again; does it end as well?

    python benchmarks/resume.py --output benchmarks/results/resume.json

The command ``optuna-nis search``, once for each seed undisturbed, and once killed (SIGKILL) at
random moments from its start to its end and each time started again by the same command. The
moments are drawn in seconds of the processor, so that a busy machine changes nothing. What each
search found is trained from scratch and tested.

Prints one JSON object as its last line: for each seed the test AUC and the best validation value
of both searches; their means and the standard deviation of the undisturbed ones; ``difference``,
the mean of the killed ones less that of the others, for both; ``within_one_std``; and how each
run went: kills, trials scored (each update of the controller exactly once; who is killed while
the finalists are being scored scores them again), and seconds of the processor, starts included.
"""

from __future__ import annotations

import argparse
from collections import Counter
import json
import os
from pathlib import Path
import random
from statistics import fmean, stdev
import subprocess
import sys
import tempfile
import time
from typing import Any

import optuna
from quiet import quiet

from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning import DataConfig, evaluate, reference_model, train
from optuna_nis.study.results import best_allocation, best_trial
from optuna_nis.study.searches import searches_of

_NAME = "resume"
_TICK = os.sysconf("SC_CLK_TCK")
# Said when everything is loaded and the search begins.
_BEGUN = ("Searching ", "Going on with")


class Command:
    """``optuna-nis search``, running."""

    def __init__(self, storage: str, seed: int, max_rows: int, log: Path) -> None:
        self._log = log
        log.write_text("")
        arguments = (
            f"search --dataset flights --budget 25% --seed {seed} --max-rows {max_rows} "
            f"--storage {storage} --study-name {_NAME}"
        )
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "optuna_nis.cli", *arguments.split()],
                stdout=output,
                stderr=output,
                env=os.environ | {"COLUMNS": "80", "TERM": "dumb"},
            )

    def cpu_seconds(self) -> float:
        """Seconds of the processor so far."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except FileNotFoundError:
            return 0.0
        user, system = stat.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / _TICK

    def wait_until_begun(self) -> float:
        """Seconds of the processor until the search began."""
        while self._process.poll() is None:
            if any(line.startswith(_BEGUN) for line in self._log.read_text().splitlines()):
                return self.cpu_seconds()
            time.sleep(0.02)
        raise RuntimeError(self._log.read_text())

    def wait(self) -> float:
        """Wait for the end; seconds of the processor."""
        spent = 0.0
        while self._process.poll() is None:
            spent = max(spent, self.cpu_seconds())
            time.sleep(0.05)
        if self._process.returncode != 0:
            raise RuntimeError(self._log.read_text())
        return spent

    def kill_after(self, cpu_seconds: float) -> bool:
        """SIGKILL once it has used so many; False if it came to its end before."""
        while self._process.poll() is None:
            if self.cpu_seconds() >= cpu_seconds:
                self._process.kill()
                self._process.wait()
                return True
            time.sleep(0.02)
        return False


def searched(folder: Path, seed: int, max_rows: int, kills: int, net: float) -> dict[str, Any]:
    """Search, killed so many times; ``net`` are the seconds that a search takes once begun."""
    folder.mkdir()
    storage = f"sqlite:///{folder}/study.db"
    rng = random.Random(seed)
    killed, spent = 0, 0.0
    for _ in range(kills):
        command = Command(storage, seed, max_rows, folder / "log")
        moment = command.wait_until_begun() + rng.uniform(0.0, 2 * net / kills)
        if not command.kill_after(moment):
            break
        killed += 1
        spent += moment
    command = Command(storage, seed, max_rows, folder / "log")
    begun = 0.0
    if killed < kills:
        command.wait()
    else:
        begun = command.wait_until_begun()
        spent += command.wait()
    study = optuna.load_study(storage=storage, study_name=_NAME)
    trials = study.get_trials(deepcopy=False)
    (search,) = searches_of(study).values()
    return {
        "study": study,
        "kills": killed,
        "cpu_seconds": round(spent, 1),
        "net": spent - begun,
        "scored": dict(Counter(trial.user_attrs["fidelity"] for trial in trials)),
        "numbers_complete": [trial.number for trial in trials] == list(range(len(trials))),
        "finished": search.seconds is not None,
        "left_on_disk": sorted(str(path) for path in folder.glob("*.checkpoints")),
    }


def tested(study: optuna.Study, data: EmbeddingDataModule) -> float:
    """Test AUC of what was found, trained from scratch."""
    data.shuffle_seed = 0
    build = reference_model(data.features)
    training = train(build, best_allocation(study), data, seed=0)
    return evaluate(training.model, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--max-rows", type=int, default=30_000)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    quiet()
    config = DataConfig(dataset="flights", max_rows=args.max_rows)
    data = config.datamodule(withhold_test=False)

    runs: dict[str, list[dict[str, Any]]] = {"whole": [], "killed": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in args.seeds:
            for kind, kills in (("whole", 0), ("killed", args.kills)):
                net = runs["whole"][-1]["net"] if kills else 0.0
                run = searched(Path(folder) / f"{kind}-{seed}", seed, args.max_rows, kills, net)
                study = run.pop("study")
                run |= {
                    "seed": seed,
                    "test_auc": round(tested(study, data), 5),
                    "validation": round(best_trial(study).value or 0.0, 5),
                    "parameters": best_allocation(study).num_parameters,
                }
                runs[kind].append(run)
                print(kind, json.dumps(run), flush=True)

    summary: dict[str, Any] = {"max_rows": args.max_rows, "kills": args.kills}
    for value in ("test_auc", "validation"):
        whole, killed = ([run[value] for run in runs[kind]] for kind in ("whole", "killed"))
        std = stdev(whole)
        difference = fmean(killed) - fmean(whole)
        summary[value] = {
            "whole": whole,
            "killed": killed,
            "whole_mean": round(fmean(whole), 5),
            "whole_std": round(std, 5),
            "killed_mean": round(fmean(killed), 5),
            "difference": round(difference, 5),
            "within_one_std": abs(difference) <= std,
        }
    summary["runs"] = [
        {"kind": kind} | {k: v for k, v in run.items() if k != "net"}
        for kind, each in runs.items()
        for run in each
    ]
    if args.output is not None:
        args.output.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
