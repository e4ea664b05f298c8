"""Values that a model has logged in a validation."""

from __future__ import annotations

import math
from statistics import fmean

from lightning.pytorch import Trainer

from optuna_nis._logging import get_logger

_logger = get_logger(__name__)


def logged(trainer: Trainer, monitor: str) -> float:
    """A value that the model has logged; of several dataloaders the mean over them.

    Raises:
        ValueError: If it logs none of that name.
    """
    metrics = trainer.callback_metrics
    # As Lightning calls what is logged for each of several.
    of_each = [metrics[name] for name in metrics if name.startswith(f"{monitor}/dataloader_idx_")]
    if monitor not in metrics and of_each:
        return fmean(map(float, of_each))
    if monitor not in metrics:
        raise ValueError(
            f"`monitor` must be a value that the model logs in validation, one of "
            f"{sorted(metrics)}, got {monitor!r}."
        )
    return float(metrics[monitor])


def logged_by_first(trainer: Trainer, monitor: str) -> float:
    """A value that the model has logged; of several processes all go by what the first one has.

    Raises:
        ValueError: If it logs none of that name.
    """
    own = logged(trainer, monitor)
    first: float = trainer.strategy.broadcast(own)
    warn_of_another(monitor, own, first)
    return first


def warn_of_another(name: str, own: float, first: float) -> None:
    """Warn if a value of this process is another one than that of the first process."""
    if not math.isclose(own, first, rel_tol=1e-6, abs_tol=1e-9) and not math.isnan(own):
        warn_of_own_rows(name)


def warn_of_own_rows(name: str) -> None:
    """Say that a value is of the rows of one process only."""
    _logger.warning(
        f"{name!r} is another value in each process, of its own rows: log it with "
        "`sync_dist=True`, or as a metric of torchmetrics. That of the first process counts."
    )
