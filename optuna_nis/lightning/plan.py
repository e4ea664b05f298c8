"""When the updates of the controller are due, by training batches."""

from __future__ import annotations

import math

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
import numpy as np


class Plan:
    """The warm-up and the updates of a search, over the batches of a training.

    Args:
        trainer: The trainer, at the start of the training.
        num_updates: Updates of the controller.
        warmup: Share of the batches that come before the first.

    Raises:
        lightning.pytorch.utilities.exceptions.MisconfigurationException: If it is not known how
            many batches there will be.
    """

    def __init__(self, trainer: Trainer, *, num_updates: int, warmup: float) -> None:
        self._num_updates = num_updates
        self._total = _total_batches(trainer)
        self._first = math.floor(warmup * self._total)
        self._due = np.linspace(0, num_updates, max(self._total - self._first, 0) + 1)

    def resume(self, trainer: Trainer, updates_done: int) -> None:
        """Make up for updates that are missing: what is left for what is left."""
        past = self._batches(trainer)
        if updates_done < round(self._due[past]):
            self._due[past:] = np.linspace(updates_done, self._num_updates, len(self._due) - past)

    def learning(self, trainer: Trainer) -> bool:
        """Whether the warm-up is over, at the start of a batch."""
        return self._batches_done(trainer) - 1 >= self._first

    def num_due(self, trainer: Trainer) -> int:
        """Number of updates that are to be made by the end of this batch."""
        past = self._batches(trainer)
        return round(self._due[past]) if past > 0 else 0

    def _batches_done(self, trainer: Trainer) -> int:
        """Number of training batches so far, this one included."""
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if trainer.max_steps != -1:
            # Manual optimisation may take several steps for a batch.
            done = max(done, self._total * trainer.global_step // trainer.max_steps)
        return done

    def _batches(self, trainer: Trainer) -> int:
        """Number of batches since the warm-up, this one included."""
        return min(max(self._batches_done(trainer) - self._first, 0), len(self._due) - 1)


def _total_batches(trainer: Trainer) -> int:
    """Number of training batches until the end."""
    totals = []
    if trainer.max_epochs not in (None, -1):
        totals.append(trainer.num_training_batches * trainer.max_epochs)
    if trainer.max_steps != -1:
        totals.append(trainer.max_steps * trainer.accumulate_grad_batches)
    if not math.isfinite(total := min(totals)):
        raise MisconfigurationException(
            "The trainer needs `max_steps` where the length of the training data is not "
            "known: the search plans its warm-up."
        )
    return int(total)
