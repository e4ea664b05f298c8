"""Workers and servers are killed during a search; nothing that finished may be lost.

    python benchmarks/faults.py --output benchmarks/results/faults.json

On PostgreSQL and on Optuna's journal in Redis, 8 workers run 2,000 trials; at 20 random moments a
worker gets SIGKILL and is started again, and half-way the server is stopped for some seconds. On
SQLite, half-way, another process locks the file for some seconds, and then the disk is full (a
small file system in memory, mounted for the purpose: this needs root). Workers that fail are
started again, as a cluster would do.

Prints one JSON object as its last line, with these keys for each storage:

- ``finished_lost``: trials that a worker saw finish and that the storage does not hold so;
- ``duplicated``: numbers given to two trials, or trials finished by two workers;
- ``stuck_running``: trials still running once the grace period of their heartbeats is over;
- ``replay_identical``: whether two fresh processes replay the study to the same policy, bit for
  bit.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
import hashlib
import json
import math
from pathlib import Path
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from typing import Any
import warnings

import optuna
from optuna import Study
from optuna.storages import RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from optuna_nis import EmbeddingSpec, NISSampler, SearchSpace
from optuna_nis.study.storages import open_storage

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from servers import PostgreSQL, Redis, Server

_SPACE = SearchSpace([EmbeddingSpec("user", 1000, 16), EmbeddingSpec("day", 7, 4)], budget="25%")
_NAME = "faults"
_HEARTBEAT, _GRACE = 1, 10
_OUTAGE_SECONDS = 5.0
_DISK = "16m"


def objective(trial: optuna.Trial) -> float:
    allocation = _SPACE.suggest(trial)
    if allocation.num_parameters > _SPACE.budget:
        raise ValueError(f"Trial {trial.number} is over the budget: {allocation}")
    return math.log1p(allocation.num_parameters) + random.gauss(0.0, 0.1)


def open_study(address: str) -> Study:
    storage = open_storage(
        address,
        heartbeat_interval=_HEARTBEAT,
        grace_period=_GRACE,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
    )
    return optuna.create_study(
        storage=storage,
        study_name=_NAME,
        direction="maximize",
        sampler=NISSampler(budget=_SPACE),
        load_if_exists=True,
    )


def work(address: str, target: int, log: Path) -> None:
    """Run trials until enough are complete; what finished is noted in a file of the worker's."""
    with log.open("a") as notes:

        def note(study: Study, trial: FrozenTrial) -> None:
            notes.write(json.dumps([trial.number, trial.state.name, trial.value]) + "\n")
            notes.flush()
            if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) >= target:
                study.stop()

        open_study(address).optimize(objective, callbacks=[note])


def digest(address: str) -> str:
    """A fingerprint of the policy, to the bit."""
    policy = NISSampler(budget=_SPACE).policy(open_study(address))
    found = hashlib.sha256()
    for array in (policy.logits, *policy._critic.arrays()):
        found.update(array.tobytes())
    return found.hexdigest()


class Workers:
    """Worker processes that are started again whatever they die of."""

    def __init__(self, address: str, count: int, target: int, folder: Path) -> None:
        self._address = address
        self._target = target
        self._logs = [folder / f"worker-{index}.log" for index in range(count)]
        for log in self._logs:
            log.touch()
        self._processes = [self._start(log) for log in self._logs]
        self.restarts = 0

    def _start(self, log: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, "--worker", self._address, str(self._target), log]
        with log.with_suffix(".err").open("ab") as errors:
            return subprocess.Popen(command, stdout=errors, stderr=errors)

    def notes(self) -> list[tuple[int, str, float | None]]:
        """Number, state and value of every trial that a worker saw finish."""
        lines = [line for log in self._logs for line in log.read_text().splitlines()]
        return [tuple(json.loads(line)) for line in lines]

    def tend(self) -> bool:
        """Start again who died before the end; whether anybody works."""
        for index, process in enumerate(self._processes):
            if process.poll() not in (None, 0):
                self._processes[index] = self._start(self._logs[index])
                self.restarts += 1
        return any(process.poll() is None for process in self._processes)

    def kill(self, index: int) -> None:
        """SIGKILL."""
        self._processes[index].kill()
        self._processes[index].wait()

    def stop(self) -> None:
        """Leave nothing running."""
        for index in range(len(self._processes)):
            self.kill(index)


def attack(
    address: str,
    *,
    trials: int,
    workers: int,
    kills: int,
    outages: Sequence[Callable[[], None]],
    seconds: float,
) -> dict[str, Any]:
    """Run a study while things go wrong, and count what came of it."""
    open_study(address)
    rng = random.Random(0)
    attacks: list[Callable[[], None]] = []
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        team = Workers(address, workers, trials, Path(folder))
        try:
            for _ in range(kills):
                attacks.append(lambda: team.kill(rng.randrange(workers)))
            moments = sorted(rng.uniform(0.05, 0.95) * trials for _ in attacks)
            for place, outage in enumerate(outages, start=1):
                attacks.append(outage)
                moments.append(trials * place / (len(outages) + 1))
            waiting = sorted(zip(moments, range(len(attacks))))
            while team.tend() and time.monotonic() - start < seconds:
                while waiting and len(team.notes()) >= waiting[0][0]:
                    time.sleep(rng.uniform(0.0, 0.2))
                    attacks[waiting.pop(0)[1]]()
                time.sleep(0.1)
        finally:
            team.stop()
        spent = time.monotonic() - start
        notes = team.notes()

    study = open_study(address)
    recover(study)
    held = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    numbers = Counter(number for number, _, _ in notes)
    states = Counter(trial.state.name for trial in held.values())
    return {
        "finished_lost": sum(
            number not in held or [held[number].state.name, held[number].value] != [state, value]
            for number, state, value in notes
        ),
        "duplicated": sum(count - 1 for count in numbers.values())
        + len(study.get_trials(deepcopy=False))
        - len(held),
        "stuck_running": states["RUNNING"],
        "replay_identical": len({fresh_digest(address) for _ in range(2)}) == 1,
        "complete": states["COMPLETE"],
        "failed": states["FAIL"],
        "waiting": states["WAITING"],
        "kills": kills,
        "outages": len(outages),
        "attacks_left": len(waiting),
        "restarts": team.restarts,
        "seconds": round(spent, 1),
    }


def recover(study: Study) -> None:
    """What any worker does that comes later: trials of the dead are failed and run again."""
    end = time.monotonic() + 3 * _GRACE
    unfinished = (TrialState.RUNNING, TrialState.WAITING)
    while study.get_trials(deepcopy=False, states=unfinished) and time.monotonic() < end:
        fail_stale_trials(study)
        queue = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if queue:
            study.optimize(objective, n_trials=len(queue))
        time.sleep(0.5)


def fresh_digest(address: str) -> str:
    command = [sys.executable, __file__, "--digest", address]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def restarted(server: Server) -> Callable[[], None]:
    def outage() -> None:
        server.stop()
        time.sleep(_OUTAGE_SECONDS)
        server.start()

    return outage


def locked(file: Path) -> Callable[[], None]:
    def outage() -> None:
        connection = sqlite3.connect(file, timeout=60, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(_OUTAGE_SECONDS)
        connection.execute("ROLLBACK")
        connection.close()

    return outage


def filled(folder: Path) -> Callable[[], None]:
    def outage() -> None:
        ballast = folder / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        time.sleep(_OUTAGE_SECONDS)
        ballast.unlink()

    return outage


@contextmanager
def small_disk() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={_DISK}", "tmpfs", folder], check=True
        )
        try:
            yield Path(folder)
        finally:
            # Lazily: connections of this process may still be open.
            subprocess.run(["umount", "--lazy", folder], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storages", nargs="+", default=["postgresql", "redis", "sqlite"])
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--sqlite-trials", type=int, default=300)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=900.0, help="at most, per storage")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--digest", help=argparse.SUPPRESS)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    if args.worker is not None:
        work(args.worker[0], int(args.worker[1]), Path(args.worker[2]))
        return
    if args.digest is not None:
        print(digest(args.digest))
        return

    found: dict[str, Any] = {}
    common = {"workers": args.workers, "kills": args.kills, "seconds": args.seconds}
    for storage in args.storages:
        if storage == "sqlite":
            with small_disk() as folder:
                file = folder / "study.db"
                found[storage] = attack(
                    f"sqlite:///{file}",
                    trials=args.sqlite_trials,
                    outages=[locked(file), filled(folder)],
                    **common,
                )
        else:
            kind = {"postgresql": PostgreSQL, "redis": Redis}[storage]
            with kind() as server:
                found[storage] = attack(
                    server.url, trials=args.trials, outages=[restarted(server)], **common
                )
        print(storage, json.dumps(found[storage]), flush=True)
    if args.output is not None:
        args.output.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
