"""Training from scratch: until validation stops improving, back to the best epoch, test once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
import copy
from dataclasses import dataclass
import logging
import math
from pathlib import Path
import tempfile
import threading
import time
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
import torch

from optuna_nis._checks import check_seed
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning._package import lightning_of
from optuna_nis.lightning.building import BuildModel, check_takes_sizes
from optuna_nis.lightning.convergence import Convergence, check_ending, error_on_validation
from optuna_nis.lightning.rewards import Monitored, MonitorMode, mode_by_name
from optuna_nis.lightning.sparse_gradients import SparseGradients
from optuna_nis.nn.multi_size import sized_layers
from optuna_nis.space.allocation import Allocation

#: A data module, or the dataloaders of training and validation, and of the test if there is one.
Data = LightningDataModule | Sequence[Any]

_loggers = [logging.getLogger(package) for package in ("lightning.pytorch", "pytorch_lightning")]
_levels = [logger.level for logger in _loggers]
_quiet_lock = threading.Lock()
_num_quiet = 0


# What errors of others hold, and what helps here.
_ADVICE = {
    "enable_checkpointing=False": "That is the default here: give "
    '`trainer_options={"enable_checkpointing": True}`.',
    "that has no logger": 'Here trainers have none by default: give `trainer_options={"logger": '
    "...}`.",
    "Tried to step": "A schedule of the model is made for fewer steps than the training has, "
    "which goes on until validation improves no more. Say how long it is, `epochs` of a search "
    "and `max_epochs` of other trainings, or make the schedule by "
    "`self.trainer.estimated_stepping_batches`.",
}


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep back what Lightning tells whoever makes a trainer; its warnings stay.

    Trials may train in several threads: the last one to end gives Lightning its voice back.
    """
    global _levels, _num_quiet
    with _quiet_lock:
        if _num_quiet == 0:
            _levels = [logger.level for logger in _loggers]
            for logger in _loggers:
                logger.setLevel(max(logger.getEffectiveLevel(), logging.WARNING))
        _num_quiet += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _num_quiet -= 1
            if _num_quiet == 0:
                for logger, level in zip(_loggers, _levels):
                    logger.setLevel(level)


@contextmanager
def naming_options() -> Iterator[None]:
    """Add to errors of Lightning and torch the options of ours that they are about."""
    try:
        yield
    except Exception as error:  # Lightning's packages have classes of their own.
        advice = [text for part, text in _ADVICE.items() if part in str(error)]
        if not advice:
            raise
        try:
            named = type(error)(f"{error} {advice[0]}")
        except Exception:  # It is made of something else than a text.
            raise error from None
        raise named from error


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        model: The model, with the weights of its best epoch.
        val_metric: Its metric on the validation data, as it was logged.
        epochs: Number of epochs until it stopped.
        seconds: Time it took.
        best_epoch: The epoch, from 1, that it returned to.
        steps: Number of steps until it stopped.
        ended: Whether it stopped because validation no longer improved, and not at the most
            epochs allowed.
        decays: How often the learning rate was lowered.
        val_error: Standard error of the metric on the validation data; infinite if unknown.
    """

    model: LightningModule
    val_metric: float
    epochs: int
    seconds: float
    best_epoch: int = 0
    steps: int = 0
    ended: bool = True
    decays: int = 0
    val_error: float = math.inf


def train(
    build_model: BuildModel,
    allocation: Allocation,
    datamodule: Data,
    *,
    seed: int,
    max_epochs: int | None = None,
    patience: int = 2,
    monitor: str = "val_metric",
    mode: MonitorMode | None = None,
    callbacks: Sequence[Callback] | Callback | None = None,
    checkpoint_dir: str | Path | None = None,
    **trainer_options: Any,
) -> Training:
    """Train a model from scratch until its validation metric stops improving.

    Args:
        build_model: Makes the model; called once the seed is set.
        allocation: Its embedding sizes.
        datamodule: Train and validation data, or the dataloaders of both.
        seed: Seed of the initial weights.
        max_epochs: Most epochs; by default as many as it takes, see
            :class:`~optuna_nis.lightning.convergence.Convergence`.
        patience: Validations without improvement after which the learning rate is lowered, and
            after which to stop when it has been.
        monitor: Name under which the model logs its validation metric.
        mode: Whether the largest (``"max"``) or the smallest (``"min"``) value of it is best; by
            default ``"min"`` for a monitor with "loss" in its name, ``"max"`` for one such as an
            accuracy, an AUC or a recall. Others need it.
        callbacks: Further callbacks of the trainer.
        checkpoint_dir: Folder that has room for the best weights while the training goes on; by
            default the system's folder for temporary files, which may be in memory.
        **trainer_options: Further arguments of the :class:`lightning.pytorch.Trainer`.

    Returns:
        The model at its best epoch, and what it took.

    Raises:
        ValueError: If a number is out of range, the mode is unknown, the model logs no value of
            that name in validation, or no mode is given for an error.
        FloatingPointError: If the best value is not a finite number.
        RuntimeError: If the training ended before its first validation.

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
    check_takes_sizes(build_model)
    check_seed("seed", seed)
    check_ending(max_epochs, patience)
    monitored = Monitored(monitor, mode_by_name(monitor, mode))
    torch.manual_seed(seed)
    model = build_model(allocation)
    with ExitStack() as stack:
        folder = None
        if checkpoint_dir is not None:
            Path(checkpoint_dir).mkdir(parents=True, exist_ok=True)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=checkpoint_dir)))
        convergence = Convergence(
            monitored,
            patience=patience,
            max_epochs=max_epochs,
            error=error_on_validation(model, datamodule, monitor),
            folder=folder,
        )
        stack.enter_context(quiet_lightning())
        stack.enter_context(naming_options())
        trainer = quiet_trainer(
            model,
            max_epochs=convergence.most_epochs(max_epochs),
            callbacks=[*listed(callbacks), convergence],
            **trainer_options,
        )
        start = time.perf_counter()
        fit(trainer, model, **fit_data(datamodule))
        seconds = time.perf_counter() - start
    if not convergence.num_validations:
        raise RuntimeError(
            "The training ended before its first validation: there must be validation data, and "
            "`check_val_every_n_epoch` must not be above `max_epochs`, nor may `max_steps` or "
            "`max_time` end it before."
        )
    if not convergence.best_epoch:
        raise FloatingPointError(
            f"{monitor!r} must be a finite number after a validation, the last was "
            f"{convergence.last}: the training diverged, or the metric cannot be computed on the "
            "validation data."
        )
    return Training(
        model,
        convergence.best,
        trainer.current_epoch,
        seconds,
        best_epoch=convergence.best_epoch,
        steps=trainer.global_step,
        ended=convergence.ended,
        decays=convergence.decays,
        val_error=convergence.standard_error(convergence.best),
    )


class NeedsTrainerError(ValueError):
    """A data module has no dataloaders as long as no trainer has it."""


class NothingToTrainError(ValueError):
    """An optimiser is for tables alone of which a choice keeps no row."""


def fit(trainer: Trainer, model: LightningModule, **arguments: Any) -> None:
    """Fit a model of chosen sizes.

    Raises:
        NothingToTrainError: If an optimiser has no parameter, and the model tables without rows.
    """
    try:
        trainer.fit(model, **arguments)
    except ValueError as error:
        removed = sorted(layer.name for layer in sized_layers(model) if not layer.table.tiers)
        if not removed or "empty parameter list" not in str(error):
            raise
        raise NothingToTrainError(
            "`configure_optimizers` gives an optimiser nothing to train, since these sizes have "
            f"no row of {removed}: let it leave out optimisers of layers without parameters, or "
            "`exclude` such layers from the search."
        ) from error


def fit_data(data: Data) -> dict[str, Any]:
    """Data as arguments of ``Trainer.fit``.

    Raises:
        ValueError: If they are neither a data module nor two or three dataloaders.
    """
    if isinstance(data, Sequence):
        if len(data) not in (2, 3):
            raise ValueError(
                "`data` must be a data module, or the dataloaders of training and validation, and "
                f"of the test if there is one, got {len(data)}."
            )
        return {"train_dataloaders": data[0], "val_dataloaders": data[1]}
    if not hasattr(data, "train_dataloader"):
        raise ValueError(
            "`data` must be a data module, or a tuple of the dataloaders of training and "
            f"validation, got {type(data).__name__}."
        )
    return {"datamodule": data}


def training_loader(data: Data) -> Any:
    """The dataloader of the training data.

    Raises:
        NeedsTrainerError: If a data module asks its trainer for something, and has none.
    """
    if isinstance(data, Sequence):
        return data[0]
    data.prepare_data()
    data.setup("fit")
    try:
        return data.train_dataloader()
    except AttributeError as error:
        if data.trainer is not None:
            raise
        raise NeedsTrainerError(
            f"`data` must give its training rows without a trainer too, {type(data).__name__} "
            f"does not ({error}): let it do without where `self.trainer` is None, or give "
            "`counts`."
        ) from error


def data_of_test(data: Data) -> dict[str, Any]:
    """Data as arguments of ``Trainer.test``.

    Raises:
        ValueError: If they have no test part.
    """
    if isinstance(data, Sequence):
        if len(data) < 3 or data[2] is None:
            raise ValueError(
                "`data` must have the dataloader of the test as its third. Sizes that were "
                "searched without are retrained with `data=(training, validation, test)`."
            )
        return {"dataloaders": data[2]}
    if isinstance(data, EmbeddingDataModule) and data.withhold_test:
        raise ValueError("`data` must have a test part, got one made with `withhold_test=True`.")
    # Lightning's own, in either of its packages, has none to give.
    if getattr(data.test_dataloader, "__qualname__", "") == "DataHooks.test_dataloader":
        raise ValueError(f"`data` must have a test part, {type(data).__name__} has none.")
    return {"datamodule": data}


class ValidationForSchedules(Callback):
    """Validates after every epoch where a schedule of the learning rate goes by a metric."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the schedules."""
        if any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs):
            trainer.check_val_every_n_epoch = 1


def evaluate(
    model: LightningModule,
    datamodule: Data,
    *,
    monitor: str = "test_metric",
    callbacks: Sequence[Callback] | Callback | None = None,
    **trainer_options: Any,
) -> float:
    """The metric on the test data; see :func:`train`.

    Args:
        model: A trained model.
        datamodule: The data, or its dataloaders, the third being that of the test.
        monitor: Name under which the model logs its test metric.
        callbacks: Callbacks of the trainer.
        **trainer_options: Further arguments of the trainer.

    Raises:
        ValueError: If it logs none of that name, or there are no test data.
    """
    return evaluated(model, datamodule, monitor=monitor, callbacks=callbacks, **trainer_options)[
        monitor
    ]


def evaluated(
    model: LightningModule,
    datamodule: Data,
    *,
    monitor: str,
    callbacks: Sequence[Callback] | Callback | None = None,
    named: str = "monitor",
    **trainer_options: Any,
) -> dict[str, float]:
    """All values that are logged in a test, the metric among them: see :func:`evaluate`.

    Errors say ``named`` of the argument by which it is known.
    """
    with quiet_lightning():
        trainer = quiet_trainer(model, callbacks=listed(callbacks), **trainer_options)
        found = trainer.test(model, **data_of_test(datamodule), verbose=False)
    # Of several dataloaders each has its own; names tell which.
    metrics = {name: float(value) for each in found for name, value in each.items()}
    if monitor not in metrics:
        raise ValueError(
            f"`{named}` must be a value that `test_step` logs, one of {sorted(metrics)}, "
            f"got {monitor!r}."
        )
    return metrics


def check_trainer_options(options: Mapping[str, Any]) -> None:
    """Check that trainers of a search may be given some arguments.

    Raises:
        ValueError: If one of them is the search's to give.
    """
    for name, instead in (
        ("callbacks", "`callbacks` of the search are those of the supernet's trainer"),
        ("max_epochs", "`epochs` and `shortlist_epochs` of the plan say how long is trained"),
        ("check_val_every_n_epoch", "a search validates at the end of its trainings"),
        ("val_check_interval", "a search validates at the end of its trainings"),
        ("barebones", "it keeps nothing that models log, by which choices are compared"),
    ):
        if options.get(name, False) is not False:
            raise ValueError(f"`trainer_options` must not have {name!r}: {instead}.")


def copies(callbacks: Sequence[Callback] | Callback | None) -> list[Callback]:
    """The callbacks of one training of several: each begins with what was given.

    Callbacks have a state, such as the weights that they average or the best value so far.

    Raises:
        ValueError: If one cannot be copied.
    """
    copied = []
    for callback in listed(callbacks):
        try:
            copied.append(copy.deepcopy(callback))
        except Exception as error:
            raise ValueError(
                "`callbacks` must be ones that can be copied (copy.deepcopy), as every training "
                f"has its own, got a {type(callback).__name__}: {error}"
            ) from error
    return copied


def listed(callbacks: Sequence[Callback] | Callback | None) -> list[Callback]:
    """What a trainer takes as callbacks, as a list."""
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, Sequence) else [callbacks]


def quiet_trainer(model: LightningModule | None = None, **options: Any) -> Trainer:
    """A trainer that writes no files and no summary unless it is asked to.

    Args:
        model: What it is to train; it decides which of Lightning's packages the trainer is from.
        **options: Arguments of the trainer.
    """
    defaults: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    kind: type[Trainer] = Trainer if model is None else lightning_of(model).Trainer
    trainer = kind(**(defaults | options))
    if trainer.world_size > 1:
        trainer.callbacks.append(SparseGradients())  # type: ignore[attr-defined]
    return trainer
