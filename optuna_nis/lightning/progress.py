"""How far a training is, in words."""

from __future__ import annotations

from collections.abc import Callable
import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from optuna_nis._format import duration
from optuna_nis.lightning._batch import batch_length

# Seconds without a line before there is one, and between two.
_EVERY = 30.0


class RowLines(Callback):
    """A line every half a minute of an epoch: rows done, rows a second, the time left of it.

    Args:
        progress: Called with each line.
        what: What is trained.
    """

    def __init__(self, progress: Callable[[str], None], what: str) -> None:
        self._progress = progress
        self._what = what
        self._rows = self._batches = 0
        self._start = self._told = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count: an epoch that goes on after an interruption has no start."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count."""
        self._rows = self._batches = 0
        self._start = self._told = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Say how far it is, if it is time."""
        try:
            self._rows += batch_length(batch) * trainer.world_size
        except ValueError:
            # What its examples are it does not tell.
            return
        self._batches += 1
        now = time.perf_counter()
        if now - self._told < _EVERY:
            return
        self._told, took = now, now - self._start
        of = left = ""
        total = trainer.num_training_batches
        if math.isfinite(total):
            # Where an epoch was resumed, not all of it was counted.
            remaining = (total - batch_idx - 1) / self._batches
            of = f" of {self._rows + round(self._rows * remaining):,}"
            left = f"; {duration(took * remaining)} of it left"
        self._progress(
            f"{self._what}: epoch {trainer.current_epoch + 1}, {self._rows:,}{of} rows, "
            f"{self._rows / took:,.0f} rows a second{left}."
        )


class EpochLines(Callback):
    """A line after each epoch of the supernet, with the time left where that is known.

    Later epochs take longer, when choices are scored besides, and the finalists at the end: what
    is left is at least so many epochs like the last one.

    Args:
        progress: Called with each line.
        epochs: How many there are; None if the training ends by itself.
    """

    def __init__(self, progress: Callable[[str], None], epochs: int | None) -> None:
        self._progress = progress
        self._epochs = epochs
        self._start = self._epoch_start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time."""
        # An epoch that goes on after an interruption may have had its start before.
        self._start = self._epoch_start = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time."""
        self._epoch_start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how long it took."""
        done = trainer.current_epoch + 1
        epochs = self._epochs or done
        now = time.perf_counter()
        left = (now - self._epoch_start) * (epochs - done)
        of = f" of {self._epochs}" if self._epochs else ""
        more = f"; at least {duration(left)} of it left" if done < epochs else ""
        self._progress(f"Supernet: epoch {done}{of}, {duration(now - self._start)}{more}.")
