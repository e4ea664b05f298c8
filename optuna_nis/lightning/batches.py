"""How many batches a training has, and had, and whether its end is known."""

from __future__ import annotations

import math

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from optuna_nis.lightning._package import is_a


class TrainingBatches:
    """The batches of a training, as far as they are certain.

    Where a callback may stop the training early, these are those of the trainer's ``min_epochs``
    or ``min_steps``; the supernet goes on learning until the training stops.

    Args:
        trainer: The trainer, at the start of the training.

    Raises:
        lightning.pytorch.utilities.exceptions.MisconfigurationException: If it is not known how
            many batches there will be.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._total = _total_batches(trainer)

    @property
    def number(self) -> int:
        """Number of training batches that are certain."""
        certain = min(self._total, _certain_batches(self._trainer))
        if not math.isfinite(certain):
            raise MisconfigurationException(
                "The trainer needs `max_steps` where the length of the training data is not "
                "known: the search plans its warm-up."
            )
        return int(certain)

    def done(self, trainer: Trainer) -> int:
        """Number of training batches so far, one that has begun included."""
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        if trainer.max_steps != -1:
            # Manual optimisation may take several steps for a batch.
            done = max(done, int(self._total * trainer.global_step // trainer.max_steps))
        return done


def check_end(trainer: Trainer) -> None:
    """Check that it is certain when the training ends, at the earliest.

    Raises:
        lightning.pytorch.utilities.exceptions.MisconfigurationException: If it may end at any
            time.
    """
    if trainer.max_steps == -1 and trainer.max_epochs in (None, -1):
        raise MisconfigurationException(
            "The trainer needs `max_epochs` or `max_steps`: the search plans its warm-up."
        )
    stopping = _stopping(trainer)
    if stopping and not (trainer.min_epochs or trainer.min_steps):
        raise MisconfigurationException(
            f"{' and '.join(stopping)} may end the training before the search has made its "
            "updates, which come after a warm-up. Leave it out and train as many epochs as the "
            "supernet needs (`max_epochs`), or give the trainer `min_epochs` or `min_steps`, by "
            "which the search is to be done, or the search `warmup=1`."
        )


def _stopping(trainer: Trainer) -> list[str]:
    """Callbacks that may stop the training early."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return []
    found = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if is_a(callback, "EarlyStopping"):
            found.append(type(callback).__name__)
        elif is_a(callback, "Timer") and callback.time_remaining() is not None:
            found.append(f"{type(callback).__name__} (`max_time`)")
    return found


def _certain_batches(trainer: Trainer) -> float:
    """Number of training batches that there will be at least."""
    if not _stopping(trainer):
        return math.inf
    return max(
        (trainer.min_epochs or 0) * trainer.num_training_batches,
        (trainer.min_steps or 0) * trainer.accumulate_grad_batches,
    )


def _total_batches(trainer: Trainer) -> float:
    """Number of training batches until the end."""
    totals: list[float] = []
    if trainer.max_epochs not in (None, -1):
        totals.append(trainer.num_training_batches * trainer.max_epochs)
    if trainer.max_steps != -1:
        totals.append(trainer.max_steps * trainer.accumulate_grad_batches)
    return min(totals, default=math.inf)
