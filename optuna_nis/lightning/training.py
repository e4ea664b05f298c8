"""Training from scratch: until validation stops improving, back to the best epoch, test once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import logging
from pathlib import Path
import tempfile
import threading
import time
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
import torch

from optuna_nis.allocation import Allocation
from optuna_nis.lightning.rewards import MonitorMode

#: Makes a model of given embedding sizes.
BuildModel = Callable[[Allocation], LightningModule]

_logger = logging.getLogger("lightning.pytorch")
_level = _logger.level
_quiet_lock = threading.Lock()
_num_quiet = 0


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep back what Lightning tells whoever makes a trainer; its warnings stay.

    Trials may train in several threads: the last one to end gives Lightning its voice back.
    """
    global _level, _num_quiet
    with _quiet_lock:
        if _num_quiet == 0:
            _level = _logger.level
            _logger.setLevel(max(_logger.getEffectiveLevel(), logging.WARNING))
        _num_quiet += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _num_quiet -= 1
            if _num_quiet == 0:
                _logger.setLevel(_level)


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        model: The model, with the weights of its best epoch.
        val_metric: Its metric on the validation data, as it was logged.
        epochs: Number of epochs until it stopped.
        seconds: Time it took.
    """

    model: LightningModule
    val_metric: float
    epochs: int
    seconds: float


def train(
    build_model: BuildModel,
    allocation: Allocation,
    datamodule: LightningDataModule,
    *,
    seed: int,
    max_epochs: int = 30,
    patience: int = 2,
    monitor: str = "val_metric",
    mode: MonitorMode = "max",
    callbacks: list[Callback] | None = None,
    **trainer_options: Any,
) -> Training:
    """Train a model from scratch until its validation metric stops improving.

    Args:
        build_model: Makes the model; called once the seed is set.
        allocation: Its embedding sizes.
        datamodule: Train and validation data.
        seed: Seed of the initial weights.
        max_epochs: Most epochs.
        patience: Epochs without improvement after which to stop.
        monitor: Name under which the model logs its validation metric.
        mode: Whether the largest (``"max"``) or the smallest (``"min"``) value of it is best.
        callbacks: Further callbacks of the trainer.
        **trainer_options: Further arguments of the :class:`lightning.pytorch.Trainer`.

    Returns:
        The model at its best epoch, and what it took.

    Example:
        >>> from optuna_nis import SearchSpace
        >>> from optuna_nis.lightning import reference_model
        >>> full = SearchSpace(data.embedding_specs(8)).full()
        >>> training = train(reference_model(data.features), full, data, seed=0, max_epochs=1)
        >>> training.epochs
        1
        >>> 0 <= evaluate(training.model, data) <= 1
        True
    """
    torch.manual_seed(seed)
    model = build_model(allocation)
    with tempfile.TemporaryDirectory() as folder, quiet_lightning():
        best = ModelCheckpoint(dirpath=folder, monitor=monitor, mode=mode, save_weights_only=True)
        stopping = EarlyStopping(monitor, mode=mode, patience=patience)
        trainer = quiet_trainer(
            max_epochs=max_epochs,
            enable_checkpointing=True,
            callbacks=[best, stopping, *(callbacks or [])],
            **trainer_options,
        )
        start = time.perf_counter()
        trainer.fit(model, datamodule=datamodule)
        seconds = time.perf_counter() - start
        if best.best_model_score is None:
            raise RuntimeError("The training ended before its first validation.")
        state = torch.load(Path(best.best_model_path), weights_only=True)["state_dict"]
    model.load_state_dict(state)
    return Training(model, float(best.best_model_score), trainer.current_epoch, seconds)


def evaluate(
    model: LightningModule, datamodule: LightningDataModule, *, monitor: str = "test_metric"
) -> float:
    """The metric on the test data; see :func:`train`.

    Args:
        model: A trained model.
        datamodule: The data.
        monitor: Name under which the model logs its test metric.

    Raises:
        ValueError: If it logs none of that name.
    """
    with quiet_lightning():
        (metrics,) = quiet_trainer().test(model, datamodule=datamodule, verbose=False)
    if monitor not in metrics:
        raise ValueError(
            f"`monitor` must be a value that `test_step` logs, one of {sorted(metrics)}, "
            f"got {monitor!r}."
        )
    return float(metrics[monitor])


def quiet_trainer(**options: Any) -> Trainer:
    """A trainer that writes no files and no summary unless it is asked to."""
    defaults: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**(defaults | options))
