"""When the updates of the controller are due, by training batches."""

from __future__ import annotations

import math

import numpy as np


class Schedule:
    """The warm-up and the updates of a search, over the batches of a training.

    Args:
        num_batches: Training batches until the end.
        num_updates: Updates of the controller.
        warmup: Share of the batches that come before the first; 1 makes none due.
    """

    def __init__(self, num_batches: int, *, num_updates: int, warmup: float) -> None:
        self._num_updates = num_updates
        # Whose training has no end that is known, learns after it.
        self._after = warmup == 1.0
        self.warmup_batches = math.floor(warmup * num_batches)
        self._due = np.linspace(0, num_updates, max(num_batches - self.warmup_batches, 0) + 1)

    def begin(self) -> str:
        """What is to come, in words."""
        if self._after:
            return "The controller learns when the supernet has been trained."
        return f"The search warms up for {self.warmup_batches:,} batches."

    def resume(self, batches_done: int, updates_done: int) -> None:
        """Make up for updates that are missing: what is left for what is left."""
        if self._after:
            return
        past = self._past(batches_done)
        if updates_done < round(self._due[past]):
            self._due[past:] = np.linspace(updates_done, self._num_updates, len(self._due) - past)

    def learning(self, batches_done: int) -> bool:
        """Whether the warm-up is over after so many batches."""
        return not self._after and batches_done >= self.warmup_batches

    def num_due(self, batches_done: int) -> int:
        """Number of updates that are to be made by the end of so many batches."""
        past = 0 if self._after else self._past(batches_done)
        return round(self._due[past]) if past > 0 else 0

    def _past(self, batches_done: int) -> int:
        """Number of batches since the warm-up."""
        return min(max(batches_done - self.warmup_batches, 0), len(self._due) - 1)
