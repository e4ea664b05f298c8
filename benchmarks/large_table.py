"""A one-shot search over a table of 10,000,000 x 256: its memory, and what a step costs.

    python benchmarks/large_table.py

The example of Joglekar et al. (2020): one table of 20 blocks, warm-up and 200 steps of the
controller, with sparse gradients and :class:`~optuna_nis.nn.RowwiseAdagrad`, on made-up clicks
whose ids have a Zipf distribution. The same search over 1,000,000 x 256 takes its steps in turns
with the large one, so that both see the same machine; each is a process of its own, on one thread.
Prints one JSON object as its last line and writes it to ``benchmarks/results/large_table.json``:

- ``peak_gib``: most memory that the process with the large table held at any time.
- ``step_ratio_10m_vs_1m``: median step, of the warm-up and of the search, in seconds of the
  processor, against the small one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
import json
from multiprocessing import connection, get_context
from multiprocessing.synchronize import Semaphore
from pathlib import Path
import resource
from statistics import median
import sys
import time
from typing import Any, TypedDict
import warnings

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics.functional.classification import binary_auroc

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.lightning import NISCallback
from optuna_nis.nn import RowwiseAdagrad, SupernetEmbedding

RESULTS = Path(__file__).parent / "results"
ROW_BLOCKS, COL_BLOCKS = 5, 4
BATCH, EXAMPLES = 4096, 2048
# Steps that one search takes before it is the turn of the other.
TURN = 10

Batch = dict[str, Tensor]


class Run(TypedDict):
    """What a search reports of itself."""

    peak_gib: float
    warmup_step: float
    search_step: float
    quality: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "large_table.json")
    parser.add_argument("--rows", type=int, nargs=2, default=[10_000_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--updates", type=int, default=200)
    args = parser.parse_args()
    large, small = search_in_turns(args.rows, args.dim, args.updates)
    steps = [(large[phase], small[phase]) for phase in ("warmup_step", "search_step")]
    result = {
        "rows": args.rows,
        "embedding_dim": args.dim,
        "blocks": ROW_BLOCKS * COL_BLOCKS,
        "updates": args.updates,
        "table_gib": round(args.rows[0] * args.dim * 4 / 2**30, 2),
        "peak_gib": round(large["peak_gib"], 2),
        "step_ratio_10m_vs_1m": round(sum(a for a, _ in steps) / sum(b for _, b in steps), 3),
        "warmup_step_ratio": round(steps[0][0] / steps[0][1], 3),
        "search_step_ratio": round(steps[1][0] / steps[1][1], 3),
        "roc_auc": round(large["quality"], 4),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def search_in_turns(rows: list[int], dim: int, updates: int) -> list[Run]:
    """Search over tables of some sizes, each in a process of its own."""
    context = get_context("spawn")
    turns = [context.Semaphore(int(index == 0)) for index in range(len(rows))]
    processes, pipes = [], []
    for index, size in enumerate(rows):
        receive, send = context.Pipe(duplex=False)
        mine, next_one = turns[index], turns[(index + 1) % len(turns)]
        process = context.Process(target=search, args=(size, dim, updates, mine, next_one, send))
        process.start()
        send.close()
        processes.append(process)
        pipes.append(receive)
    try:
        return [_received(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _received(pipe: connection.Connection) -> Run:
    try:
        run: Run = pipe.recv()
    except EOFError:
        sys.exit("A search ended before its time.")
    return run


def search(
    rows: int,
    dim: int,
    updates: int,
    mine: Semaphore,
    next_one: Semaphore,
    pipe: connection.Connection,
) -> None:
    """Search over a table of some size; half of the steps are the warm-up."""
    warnings.filterwarnings("ignore", module="lightning")
    seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    spec = EmbeddingSpec("item", rows, dim, row_blocks=ROW_BLOCKS, col_blocks=COL_BLOCKS)
    space = SearchSpace([spec], budget="25%")
    steps = 2 * updates
    clock = Turns(mine, next_one)
    nis = NISCallback(space, num_updates=updates, score_examples=EXAMPLES, warmup=0.5)
    trainer = Trainer(
        max_steps=steps,
        val_check_interval=steps,
        num_sanity_val_steps=0,
        accelerator="cpu",
        callbacks=[clock, nis],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    training = DataLoader(Clicks(rows, steps, seed=1), batch_size=None)
    validation = DataLoader(Clicks(rows, 8, seed=2), batch_size=None)
    trainer.fit(Ranking(spec), training, validation)
    trials = nis.study.get_trials(deepcopy=False)
    assert len(trials) > updates * nis.plan.group_size, "not all updates were made"
    pipe.send(
        Run(
            # Linux counts it in KiB.
            peak_gib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
            warmup_step=median(clock.seconds[: steps // 2]),
            search_step=median(clock.seconds[steps // 2 :]),
            quality=max(trial.values[0] for trial in trials),
        )
    )


class Ranking(LightningModule):
    """Clicks from the embedding of an item."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__()
        self.item = SupernetEmbedding(spec, sparse=True, init_std=0.03)
        self.mlp = nn.Sequential(nn.Linear(spec.embedding_dim, 64), nn.ReLU(), nn.Linear(64, 1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One accumulator for each row."""
        return RowwiseAdagrad(self.parameters(), lr=0.05)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of a click."""
        logits: Tensor = self.mlp(self.item(batch["item"])).squeeze(1)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Binary cross-entropy."""
        return functional.binary_cross_entropy_with_logits(self(batch), batch["click"])

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """ROC-AUC."""
        self.log("val_auc", binary_auroc(self(batch), batch["click"].int()))

    def choice_quality(self, batch: Batch, num_choices: int) -> Tensor:
        """ROC-AUC of several choices on the same examples."""
        target = batch["click"].view(num_choices, -1)[0].int()
        logits = self(batch).view(num_choices, -1)
        return torch.stack([binary_auroc(choice, target) for choice in logits])


class Clicks(IterableDataset[Batch]):
    """Batches of items, probable as one over their rank, and clicks that depend on them."""

    def __init__(self, rows: int, batches: int, seed: int) -> None:
        super().__init__()
        self.rows = rows
        self.batches = batches
        self.seed = seed

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.batches):
            uniform = torch.rand(BATCH, generator=generator, dtype=torch.float64)
            # The sum of 1 / rank up to r is close to log(r).
            items = (float(self.rows + 1) ** uniform).long().clamp(max=self.rows) - 1
            logits = 2.0 * torch.sin(items * 12.9898)
            clicks = torch.rand(BATCH, generator=generator) < logits.sigmoid()
            yield {"item": items, "click": clicks.float()}


class Turns(Callback):
    """Takes the time of every step, and takes turns with another process.

    It must come first of all callbacks: a step lasts until the next one starts, so that what the
    others do in it is part of it.
    """

    def __init__(self, mine: Semaphore, next_one: Semaphore) -> None:
        self.mine = mine
        self.next_one = next_one
        self.seconds: list[float] = []
        self._start: float | None = None

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Wait, if it is the turn of the other."""
        self._stop()
        if len(self.seconds) % TURN == 0:
            if self.seconds:
                self.next_one.release()
            self.mine.acquire()
        self._start = time.process_time()

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        """Leave the machine to the other."""
        self._stop()
        self.next_one.release()

    def _stop(self) -> None:
        if self._start is not None:
            self.seconds.append(time.process_time() - self._start)


if __name__ == "__main__":
    main()
