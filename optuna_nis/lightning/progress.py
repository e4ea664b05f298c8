"""How far the supernet of a search is, in words."""

from __future__ import annotations

from collections.abc import Callable
import time

from lightning.pytorch import Callback, LightningModule, Trainer

from optuna_nis._format import duration


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
