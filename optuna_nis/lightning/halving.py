"""Trying the most promising choices for real, since a supernet ranks badly across costs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
import math
from pathlib import Path
import tempfile
import time
from typing import Any
import zlib

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
import torch
from torch.utils.data import DataLoader, DistributedSampler

from optuna_nis._format import duration, size
from optuna_nis._logging import get_logger
from optuna_nis.lightning._memory import free
from optuna_nis.lightning.building import BuildModel, check_takes_sizes
from optuna_nis.lightning.checkpoints import (
    PeriodicCheckpoint,
    checkpoint_of_all,
    save_checkpoint,
    without_copies,
)
from optuna_nis.lightning.convergence import error_on_validation
from optuna_nis.lightning.logged import logged_by_first
from optuna_nis.lightning.processes import Group, group_of
from optuna_nis.lightning.rewards import Monitored, MonitorMode, mode_by_name
from optuna_nis.lightning.training import (
    Data,
    NeedsTrainerError,
    NothingToTrainError,
    ValidationForSchedules,
    check_trainer_options,
    fit,
    fit_data,
    naming_options,
    quiet_lightning,
    quiet_trainer,
    training_loader,
)
from optuna_nis.nn import warm_start
from optuna_nis.space.allocation import Allocation
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.shortlist import Candidate, Shortlist, Training

_logger = get_logger(__name__)


def train_shortlist(
    allocations: Sequence[Allocation],
    supernet: LightningModule,
    build_model: BuildModel,
    datamodule: Data,
    *,
    plan: SearchPlan | None = None,
    keep: Collection[Allocation] = (),
    monitor: str = "val_metric",
    mode: MonitorMode | None = None,
    progress: Callable[[str], None] | None = None,
    folder: Path | None = None,
    trainer_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> list[Candidate]:
    """Train choices and keep the better ones, several times.

    They begin with the weights of the supernet; those that stay are trained again, from scratch.
    Who stays is told by :class:`~optuna_nis.strategy.shortlist.Shortlist`.

    Args:
        allocations: The choices.
        supernet: A trained supernet.
        build_model: Makes a model of given sizes; its weights outside the embeddings must have
            the names that they have in the supernet.
        datamodule: Train and validation data, or the dataloaders of both.
        plan: The numbers that shape the shortlist.
        keep: Choices to which trainings from the supernet's weights are unfair, see there.
        monitor: Name under which the models log their validation metric.
        mode: Whether the largest (``"max"``) or the smallest (``"min"``) value of it is best; by
            default ``"min"`` for a monitor with "loss" in its name, ``"max"`` for one such as an
            accuracy, an AUC or a recall. Others need it.
        progress: Called with a line of text after each training: its round, its score, and about
            how long the others of the round will take.
        folder: Where the trainings are kept, to go on from there if they are interrupted and
            started again with the same arguments; by default a temporary folder. Of several
            processes each has one of its own, named after it.
        trainer_options: Further arguments of the trainers.
        **settings: Fields of the :class:`~optuna_nis.SearchPlan` in place of those
            of ``plan``, such as ``shortlist_epochs=(2, 2)``.

    Returns:
        All choices whose metric is a finite number, best first.

    Raises:
        TypeError: If a setting is no field of a plan.
        ValueError: If the models log no value of that name in validation, or no mode is given for
            an error.
        FloatingPointError: If there is none whose metric is a finite number.

    Example:
        >>> from optuna_nis import SearchSpace
        >>> from optuna_nis.lightning import reference_model
        >>> from optuna_nis.strategy.baselines import uniform
        >>> space = SearchSpace(data.embedding_specs(8), budget="50%")
        >>> build = reference_model(data.features)
        >>> choices = [space.full(), uniform(space, projected=True)]
        >>> found = train_shortlist(choices, build(space), build, data)
        >>> found[0].is_finalist
        True
    """
    return run_shortlist(
        Shortlist(allocations, SearchPlan.of(plan, settings), keep=keep),
        supernet,
        build_model,
        datamodule,
        monitored=Monitored(monitor, mode_by_name(monitor, mode)),
        progress=progress,
        folder=folder,
        trainer_options=trainer_options,
    )


def run_shortlist(
    shortlist: Shortlist,
    supernet: LightningModule,
    build_model: BuildModel,
    data: Data,
    *,
    monitored: Monitored,
    label: str | None = None,
    progress: Callable[[str], None] | None = None,
    folder: Path | None = None,
    trainer_options: Mapping[str, Any] | None = None,
) -> list[Candidate]:
    """Do the trainings that a shortlist asks for; see :func:`train_shortlist`.

    Args:
        shortlist: The shortlist.
        supernet: As in :func:`train_shortlist`.
        build_model: As in :func:`train_shortlist`.
        data: As in :func:`train_shortlist`.
        monitored: By which value the models are compared.
        label: What it is called in the lines of ``progress``; by default its name.
        progress: As in :func:`train_shortlist`.
        folder: As in :func:`train_shortlist`.
        trainer_options: As in :func:`train_shortlist`.
    """
    check_takes_sizes(build_model)
    check_trainer_options(trainer_options or {})
    with ExitStack() as stack:
        stack.enter_context(quiet_lightning())
        stack.enter_context(naming_options())
        kept = folder is not None
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        group = group_of(trainer_options or {})
        folder = group.own(folder)
        folder.mkdir(parents=True, exist_ok=True)
        options = {
            "limit_train_batches": _epoch_batches(shortlist, data, group),
            **(trainer_options or {}),
        }
        if shortlist.error is None:
            shortlist.error = error_on_validation(supernet, data, monitored.name)
        runs = {
            allocation: _Run(
                allocation,
                supernet,
                build_model,
                folder,
                kept,
                options,
                group,
                shortlist.plan,
                monitored,
                label or monitored.name,
            )
            for allocation in shortlist.allocations
        }
        nbytes = sum(parameter.nbytes for parameter in supernet.parameters())
        start = time.perf_counter()
        while (training := shortlist.ask()) is not None:
            if training.position == 1:
                start = time.perf_counter()
            run = runs[training.allocation]
            run.train(data, training)
            free(data, nbytes)
            shortlist.tell(run.latest)
            if progress is not None:
                seconds = (time.perf_counter() - start) / training.position
                left = seconds * (training.num_in_round - training.position)
                more = f", about {duration(left)} left in it" if left else ""
                progress(f"{training}, {run}{more}")
        return shortlist.candidates()


def _epoch_batches(shortlist: Shortlist, data: Data, group: Group) -> int | float:
    """What an epoch of the shortlist is limited to, batches or their share."""
    try:
        loader = training_loader(data)
        num_batches = sized_len(loader)
    except NeedsTrainerError:
        num_batches = None
    if num_batches is None:
        return shortlist.plan.shortlist_batches or 1.0
    if isinstance(loader, DataLoader) and not isinstance(loader.sampler, DistributedSampler):
        # Lightning deals them out.
        num_batches = math.ceil(num_batches / group.size)
    return shortlist.epoch_batches(num_batches)


class _Run:
    """The training of one choice, in pieces.

    There is a model only while a piece is trained: the weights of many choices may be more than
    fits into memory. Between the pieces they are in the checkpoint.
    """

    def __init__(
        self,
        allocation: Allocation,
        supernet: LightningModule,
        build_model: BuildModel,
        folder: Path,
        kept: bool,
        options: Mapping[str, Any],
        group: Group,
        plan: SearchPlan,
        monitored: Monitored,
        label: str,
    ) -> None:
        self.allocation = allocation
        #: What the last piece came to, larger is better.
        self.latest = -math.inf
        self._monitored = monitored
        self._label = label
        self._supernet = supernet
        self._build = build_model
        self._folder = folder
        self._kept = kept
        self._options = options
        self._group = group
        epochs, warm = plan.shortlist_epochs, plan.warm_rounds
        self._most_epochs, self._epochs_from_scratch = sum(epochs[:warm]), sum(epochs[warm:])
        self._epochs = 0
        self._before: Path | None = None
        # All choices draw their weights one after the other, before the first is trained.
        self._rng = torch.get_rng_state()
        build_model(allocation)

    def __str__(self) -> str:
        value = self._monitored.sign * self.latest
        return f"{size(self.allocation.nbytes())}: {self._label} {value:.4f}"

    def train(self, data: Data, training: Training) -> None:
        if training.from_scratch:
            self._begin_anew()
        name = zlib.crc32(self.allocation.to_json().encode())
        checkpoint = self._folder / f"{name:08x}-{training.round}.ckpt"
        self._epochs += training.epochs
        metric = _LatestMetric(self._monitored)
        callbacks = [*self._monitored.callbacks(), metric]
        callbacks += [_Until(self._epochs), ValidationForSchedules()]
        if self._kept:
            callbacks.append(PeriodicCheckpoint(checkpoint))
        # Its own, if it was interrupted; that of the round before; none in the first round.
        ckpt_path = checkpoint_of_all(checkpoint, self._group) or self._before
        model = self._model(warm=not training.from_scratch and ckpt_path is None)
        trainer = quiet_trainer(
            model,
            # Schedules of the learning rate are made for all rounds.
            max_epochs=self._most_epochs,
            # What counts is the end of the round.
            check_val_every_n_epoch=self._epochs,
            callbacks=callbacks,
            **self._options,
        )
        without_copies(trainer, self._folder)
        try:
            fit(trainer, model, **fit_data(data), ckpt_path=ckpt_path)
        except NothingToTrainError as error:
            # Others may still be compared.
            _logger.warning(f"A choice is left out: {error}")
            self.latest = -math.inf
            return
        save_checkpoint(trainer, checkpoint)
        self._before = checkpoint
        self.latest = metric.value

    def _begin_anew(self) -> None:
        self._before, self._epochs = None, 0
        self._most_epochs = self._epochs_from_scratch
        # Drawn from the same random numbers for all, whatever was trained before.
        with torch.random.fork_rng(devices=[]):
            self._rng = torch.manual_seed(torch.initial_seed()).get_state()

    def _model(self, warm: bool) -> LightningModule:
        """The model, with the weights of the supernet if it is to begin with them."""
        with isolate_rng(include_cuda=False):
            torch.set_rng_state(self._rng)
            model = self._build(self.allocation)
        if warm:
            warm_start(model, self._supernet)
        return model


class _Until(Callback):
    """Ends a training after so many epochs, though its schedules go on."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.fit_loop.max_epochs = self._epochs


class _LatestMetric(Callback):
    def __init__(self, monitored: Monitored) -> None:
        self._monitored = monitored
        self.value = -math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value = state_dict["value"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = self._monitored.sign * logged_by_first(trainer, self._monitored.name)
        self.value = value if math.isfinite(value) else -math.inf
