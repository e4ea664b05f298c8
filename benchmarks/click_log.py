"""A click log of tens of millions of rows, from its files to the sizes found.

    python benchmarks/click_log.py FOLDER

The logs of :mod:`click_log_data` are made in the folder where they are not there yet; it needs
30 GB. Each measurement is a process of its own. Prints one JSON object as its last line and
writes it to ``benchmarks/results/click_log.json``:

- ``prepare_peak_gib``: most resident memory at any time until 45 million rows are read and
  encoded, ``prepare_vs_engine`` how many times as long that takes as a bare count of the distinct
  values of the same columns by the same engine, ``growth_10m_vs_1m`` how many times as long 10
  million rows take as one million. Seconds are those of the processor.
- ``search_peak_gib``: most resident memory of a search and a retraining on 10 million rows,
  ``search_cost_ratio`` the time of the search in trainings of the full tables until they no
  longer learn, ``metric`` the ROC-AUC on the test of the sizes found at 10 % of the bytes and of
  the full tables, and the best that there can be.
- ``step_ratio_30m_vs_1m``: the cost of a training step of the supernet and of the full tables
  with 30 million rows in the tables, against one million. Both take their steps in turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
import json
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
import shutil
from statistics import median
import sys
import time
from typing import Any

from click_log_data import COLUMNS, IDS, NUMBERS, make_log
import optuna
import pyarrow as pa
from pyarrow import parquet
import pyarrow.compute as pc
from quiet import quiet
import torch

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace
from optuna_nis.data import TableDataModule
from optuna_nis.lightning import DataConfig, retrain, search
from optuna_nis.models import RankingModule
from optuna_nis.nn import set_choices
from optuna_nis.strategy.baselines import uniform
from optuna_nis.study.results import results_of, search_cost_ratio

RESULTS = Path(__file__).parent / "results"
STAGES = ("prepare", "search", "step")
SMALL, MIDDLE, LARGE = 1_000_000, 10_000_000, 45_000_000
PARTS = {SMALL: 20, MIDDLE: 20, LARGE: 90}
BUDGET = "10%"
# Rows of the tables, width, examples of a batch, steps of which the median counts.
TABLES, DIM, BATCH, STEPS = (1_000_000, 30_000_000), 32, 4096, 30

# The study of the search, and where it has the most resident memory, in GiB.
STUDY, PEAK_ATTR = "click-log", "peak_gib"

#: The seconds of the processor, the seconds and the most memory that something took.
Cost = tuple[float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--output", type=Path, default=RESULTS / "click_log.json")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    if args.output.exists():
        # Of the stages that are not measured anew.
        found = json.loads(args.output.read_text())
    for stage in args.stages:
        found |= {"prepare": preparing, "search": searching, "step": stepping}[stage](args.folder)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


def preparing(folder: Path) -> dict[str, Any]:
    """What reading and encoding costs."""
    logs = {rows: log_of(folder, rows)[0] for rows in PARTS}
    count = measured(count_distinct, logs[LARGE])
    prepared = {rows: measured(prepare, log) for rows, log in logs.items()}
    return {
        "prepare_peak_gib": round(prepared[LARGE][2], 2),
        "prepare_vs_engine": round(prepared[LARGE][0] / count[0], 2),
        "growth_10m_vs_1m": round(prepared[MIDDLE][0] / prepared[SMALL][0], 2),
        "prepare_seconds": {rows: [round(s, 1) for s in prepared[rows][:2]] for rows in logs},
        "engine_seconds": [round(seconds, 1) for seconds in count[:2]],
    }


def searching(folder: Path) -> dict[str, Any]:
    """A search and a retraining on 10 million rows."""
    log, facts = log_of(folder, MIDDLE)
    storage = f"sqlite:///{folder / 'search.db'}"
    study = _study(storage)
    if results_of(study):
        optuna.delete_study(study_name=STUDY, storage=storage)
        study = _study(storage)
    # What was interrupted goes on.
    measured(search_and_retrain, log, storage, anew=not study.user_attrs)
    peak = study.user_attrs[PEAK_ATTR]
    results = {result.name: result for result in results_of(study)}
    cost = search_cost_ratio(study)
    assert cost is not None
    return {
        "search_peak_gib": round(peak, 2),
        "search_cost_ratio": round(cost, 2),
        "metric": {name: round(results[name].mean, 4) for name in ("nis", "full")},
        "best_auc": round(facts["best_auc"], 4),
        "nbytes": {name: results[name].nbytes for name in ("nis", "full")},
    }


def stepping(folder: Path) -> dict[str, Any]:
    """What a training step costs with many rows in the tables, and with few."""
    small, large = steps_in_turns(TABLES)
    ratios = {kind: large[kind] / small[kind] for kind in small}
    return {
        "step_ratio_30m_vs_1m": round(sum(large.values()) / sum(small.values()), 3),
        "step_ratios": {kind: round(ratio, 3) for kind, ratio in ratios.items()},
        "step_seconds_30m": {kind: round(seconds, 4) for kind, seconds in large.items()},
    }


def log_of(folder: Path, rows: int) -> tuple[Path, dict[str, Any]]:
    """A log, made if it is not there, and what is known of it."""
    log, facts = folder / f"log-{rows}", folder / f"log-{rows}.json"
    if not facts.exists():
        facts.write_text(json.dumps(make_log(log, rows, 0, PARTS[rows])))
    known: dict[str, Any] = json.loads(facts.read_text())
    return log, known


def count_distinct(log: Path) -> None:
    """Nothing but the number of distinct values of each column, a column at a time."""
    for name in COLUMNS:
        chunks = [parquet.read_table(part, columns=[name])[name] for part in _parts(log)]
        pc.count_distinct(pa.chunked_array([c for each in chunks for c in each.chunks]))


def prepare(log: Path) -> None:
    """Read and encode a log that has not been read before."""
    data = TableDataModule(
        log,
        label="label",
        features=[*IDS],
        numeric=[*NUMBERS],
        split="chronological",
        cache_dir=_cache(log),
    )
    data.setup("fit")
    next(iter(data.train_dataloader()))


def search_and_retrain(log: Path, storage: str) -> None:
    """What the commands of these names do."""
    quiet()
    study = _study(storage)
    data = DataConfig(
        table=str(log),
        label="label",
        features=tuple(IDS),
        numeric=tuple(NUMBERS),
        split="chronological",
    )
    checkpoints = log.with_name("checkpoints")
    where: dict[str, Any] = {"checkpoint_dir": checkpoints, "cache_dir": _cache(log)}

    def told(line: str) -> None:
        _told(line)
        _note_peak(study)

    search(study, data, budget=BUDGET, progress=told, **where)
    retrain(study, seeds=[0], progress=told, **where)
    _note_peak(study)


def measured(work: Callable[..., None], log: Path, *arguments: Any, anew: bool = True) -> Cost:
    """What something costs in a process of its own.

    Args:
        work: What is done.
        log: The log, its first argument.
        *arguments: Its other arguments.
        anew: Whether it is to find nothing that earlier processes have read.
    """
    if anew:
        shutil.rmtree(_cache(log), ignore_errors=True)
    context = get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(work, (log, *arguments), send))
    process.start()
    send.close()
    try:
        cost: Cost = receive.recv()
    except EOFError:
        sys.exit(f"{work.__name__} of {log} has failed.")
    process.join()
    _told(f"{work.__name__} of {log.name}: {cost[0]:.1f} s of the processor, {cost[2]:.2f} GiB.")
    return cost


def _study(storage: str) -> optuna.Study:
    return optuna.create_study(
        study_name=STUDY, storage=storage, direction="maximize", load_if_exists=True
    )


def _note_peak(study: optuna.Study) -> None:
    """Keep the most resident memory so far, of processes before this one, too."""
    before = study.user_attrs.get(PEAK_ATTR, 0.0)
    study.set_user_attr(PEAK_ATTR, max(before, _peak_gib()))


def _measure(work: Callable[..., None], arguments: Sequence[Any], pipe: Connection) -> None:
    start, begin = time.perf_counter(), time.process_time()
    work(*arguments)
    pipe.send((time.process_time() - begin, time.perf_counter() - start, _peak_gib()))


def _peak_gib() -> float:
    """Most resident memory of this process; `ru_maxrss` has that of its parent in it."""
    status = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in status if line.startswith("VmHWM"))
    return int(peak) / 2**20


def steps_in_turns(rows: Sequence[int]) -> list[dict[str, float]]:
    """The median cost of a step with tables of so many rows in all, by kind of model.

    Steps take turns in one process, so that all see the same machine.
    """
    torch.set_num_threads(1)
    found: list[dict[str, float]] = [{} for _ in rows]
    for kind in ("supernet", "full"):
        models = [Model(num, supernet=kind == "supernet") for num in rows]
        seconds = [[model.step(number) for model in models] for number in range(STEPS)]
        for own, each in zip(found, zip(*seconds[3:])):
            own[kind] = median(each)
        del models
    return found


class Model:
    """A reference model of 26 features whose tables have so many rows in all."""

    def __init__(self, rows: int, *, supernet: bool) -> None:
        torch.manual_seed(0)
        total = sum(ids.vocabulary for ids in IDS.values())
        self.space = SearchSpace(
            [
                EmbeddingSpec(name, max(ids.vocabulary * rows // total, 2), DIM)
                for name, ids in IDS.items()
            ],
            budget=BUDGET,
        )
        full = self.space.full()
        self.model = RankingModule(self.space if supernet else full)
        self.choices: list[Allocation] = []
        if supernet:
            # As a search trains it: the full tables and some choices share each batch.
            choice = uniform(self.space, projected=True)
            self.choices = [full, choice, choice, choice]
        self.optimizer = self.model.configure_optimizers()

    def step(self, number: int) -> float:
        """Take a training step.

        Returns:
            The seconds of the processor.
        """
        batch = self._batch(number)
        start = time.process_time()
        if self.choices:
            set_choices(self.model, self.space, self.choices)
        self.optimizer.zero_grad()
        self.model.training_step(batch, number).backward()
        self.optimizer.step()
        return time.process_time() - start

    def _batch(self, seed: int) -> Mapping[str, torch.Tensor]:
        """Ids of Zipf's distribution, and any labels."""
        generator = torch.Generator().manual_seed(seed)
        batch = {}
        for spec in self.space.specs:
            uniformly = torch.rand(BATCH, generator=generator, dtype=torch.float64)
            ranks = (float(spec.num_embeddings + 1) ** uniformly).long()
            batch[spec.name] = ranks.clamp(max=spec.num_embeddings) - 1
        batch["label"] = (torch.rand(BATCH, generator=generator) < 0.25).float()
        return batch


def _cache(log: Path) -> Path:
    return log.with_name("cache")


def _parts(log: Path) -> list[Path]:
    return sorted(log.glob("*.parquet"))


def _told(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
