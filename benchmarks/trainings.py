"""Trainings and searches of the quality benchmark, in worker processes, kept on disk.

Every job is a function of its description alone; a description that has been run is never run
again. Finished jobs are lines of ``benchmarks/results/search_quality/<data>.jsonl``; if how a data
set is trained changes here, its lines must go. Times are those of the processor, so that it does
not matter what else runs on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
import json
import multiprocessing
from pathlib import Path
import threading
from typing import Any

from host_model import Job, Result
import jobs
from quiet import quiet
import torch

from optuna_nis import Allocation

# Part of every job: raised when trainings, or searches alone, go by other rules, to run them anew.
RULES = 3
SEARCH_RULES = 10


def rules_of(method: str) -> int:
    """The rules of today that a method of ``search_quality.py`` goes by."""
    return SEARCH_RULES if method.startswith("nis_") else RULES


class Trainings:
    """Runs jobs side by side and remembers their results.

    Args:
        data: Name of the data, a key of ``data_sets.DATA``.
        data_dir: Folder, or folders, of the data sets that are not installed as packages.
        folder: Where results are kept.
        workers: Number of processes.
        threads: Threads of each.
        rivals_dir: Folder of other authors' code.
    """

    def __init__(
        self,
        data: str,
        data_dir: str | Sequence[str] | None,
        folder: Path,
        workers: int,
        threads: int,
        rivals_dir: str | None = None,
    ) -> None:
        told = {"data_dir": data_dir, "rivals_dir": rivals_dir}
        self._config = {name: value for name, value in told.items() if value}
        self._data = data
        self._file = folder / f"{data}.jsonl"
        self._lock = threading.Lock()
        self._results: dict[str, Result] = {}
        self._running: dict[str, Future[Result]] = {}
        if self._file.exists():
            for line in self._file.read_text().splitlines():
                entry = json.loads(line)
                self._results[_key(entry["job"])] = entry["result"]
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start,
            initargs=(threads,),
        )

    def run(self, **job: Any) -> Result:
        """The result of a job, run if it has not been."""
        job["rules"] = SEARCH_RULES if job["kind"] == "search" else RULES
        key = _key(job)
        with self._lock:
            if key in self._results:
                return self._results[key]
            if key not in self._running:
                self._running[key] = self._pool.submit(jobs.run, self._data, self._config, job)
        result = self._running[key].result()
        with self._lock:
            if key not in self._results:
                self._results[key] = result
                if job["kind"] == "describe":
                    return result
                self._file.parent.mkdir(parents=True, exist_ok=True)
                with self._file.open("a") as file:
                    file.write(json.dumps({"job": job, "result": result}) + "\n")
                print(f"{self._data}: {_describe(job)}: {_describe(result)}", flush=True)
        return result

    def close(self) -> None:
        """Stop the processes."""
        self._pool.shutdown(cancel_futures=True)


def _key(job: Job) -> str:
    """A job as a text, in which sizes are written as they are today."""
    if "allocation" in job:
        job = job | {"allocation": Allocation.from_json(job["allocation"]).to_json()}
    return json.dumps(job, sort_keys=True)


def _describe(mapping: Mapping[str, Any]) -> str:
    parts = []
    for name, value in mapping.items():
        if name not in ("allocation", "finalists", "ways"):
            text = f"{value:.4g}" if isinstance(value, float) else str(value)
            parts.append(f"{name}={text}")
    return " ".join(parts)


def _start(threads: int) -> None:
    torch.set_num_threads(threads)
    quiet()
