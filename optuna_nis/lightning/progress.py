"""How far the supernet of a search is, in words."""

from __future__ import annotations

from collections.abc import Callable
import time

from lightning.pytorch import Callback, LightningModule, Trainer

from optuna_nis._format import duration


class EpochLines(Callback):
    """A line after each epoch of the supernet, with the time left.

    Later epochs take longer, when choices are scored besides, and the finalists at the end: what
    is left is at least so many epochs like the last one.
    """

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
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
        done, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        now = time.perf_counter()
        left = (now - self._epoch_start) * (epochs - done)
        more = f"; at least {duration(left)} of it left" if done < epochs else ""
        self._progress(f"Supernet: epoch {done} of {epochs}, {duration(now - self._start)}{more}.")
