"""Trying the most promising choices for real, since a supernet ranks badly across costs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
import math
from pathlib import Path
import tempfile
import time
from typing import Any
import zlib

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
import torch
from torch import Tensor, nn

from optuna_nis._format import duration
from optuna_nis._logging import get_logger
from optuna_nis.lightning.checkpoints import PeriodicCheckpoint, save_checkpoint
from optuna_nis.lightning.rewards import MonitorMode
from optuna_nis.lightning.training import BuildModel, logged, quiet_lightning, quiet_trainer
from optuna_nis.nn import sized_layers, supernet_layers
from optuna_nis.space.allocation import Allocation

_logger = get_logger(__name__)

# Choices cost about the same if the larger has at most so many times the parameters.
_SAME_COST = 1.25
# However many there are, no more are trained on after a round.
_MAX_KEPT = 3


@dataclass(frozen=True)
class Candidate:
    """A choice that was trained for real.

    Attributes:
        allocation: The choice.
        val_metric: Its metric on the validation data at the end of its training, negated if
            smaller is better.
    """

    allocation: Allocation
    val_metric: float


def train_shortlist(
    allocations: Sequence[Allocation],
    supernet: LightningModule,
    build_model: BuildModel,
    datamodule: LightningDataModule,
    *,
    rounds: Sequence[int] = (1, 1, 2),
    limit_train_batches: float = 0.5,
    keep: Collection[Allocation] = (),
    monitor: str = "val_metric",
    mode: MonitorMode = "max",
    metric: str | None = None,
    progress: Callable[[str], None] | None = None,
    folder: Path | None = None,
) -> list[Candidate]:
    """Train choices from the weights of the supernet and keep the better half, several times.

    Starting from the supernet, a choice shows after few epochs what it would be worth after
    many from scratch (successive halving: Jamieson and Talwalkar, 2016). What counts is the metric
    at the end of a round, not the best of it: choices that are too large are at their best at
    the start. For the same reason choices of the same cost can be told apart early, and
    others cannot: after the first round, only the best of those stay that cost about the same.

    Args:
        allocations: The choices.
        supernet: A trained supernet.
        build_model: Makes a model of given sizes; its weights outside the embeddings must have
            the names that they have in the supernet.
        datamodule: Train and validation data.
        rounds: Epochs of each round; after each but the last, the worse half is dropped (of an odd
            number, the smaller half) and all but three, after the first also what costs about as
            much as a better one.
        limit_train_batches: Share of the training batches that make an epoch here, drawn anew
            for each if the dataloader shuffles.
        keep: Choices whose places are safe until the last round, if they are among those given:
            such as a supernet has trained too little for the first rounds to be fair. At least one
            other stays beside them.
        monitor: Name under which the models log their validation metric.
        mode: Whether the largest (``"max"``) or the smallest (``"min"``) value of it is best.
        metric: What the value is called in the lines of ``progress``; by default ``monitor``.
        progress: Called with a line of text after each training: its round, its score, and about
            how long the others of the round will take.
        folder: Where the trainings are kept, to go on from there if they are interrupted and
            started again with the same arguments; by default a temporary folder.

    Returns:
        All choices whose metric is a finite number, best first.

    Raises:
        ValueError: If the models log no value of that name in validation.
        FloatingPointError: If there is none whose metric is a finite number.

    Example:
        >>> from optuna_nis import SearchSpace
        >>> from optuna_nis.strategy import baselines
        >>> from optuna_nis.lightning import reference_model
        >>> space = SearchSpace(data.embedding_specs(8), budget="50%")
        >>> build = reference_model(data.features)
        >>> choices = [space.full(), baselines.uniform(space, projected=True)]
        >>> found = train_shortlist(choices, build(space), build, data)
        >>> found[0].val_metric >= found[1].val_metric
        True
    """
    with ExitStack() as stack:
        stack.enter_context(quiet_lightning())
        kept = folder is not None
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        runs = [
            _Run(
                allocation,
                supernet,
                build_model,
                folder,
                kept,
                limit_train_batches,
                _LatestMetric(monitor, mode, metric or monitor),
            )
            for allocation in allocations
        ]
        alive = runs
        for index, epochs in enumerate(rounds):
            start = time.perf_counter()
            for position, run in enumerate(alive, start=1):
                run.train(datamodule, epochs)
                if progress is not None:
                    seconds = (time.perf_counter() - start) / position
                    left = seconds * (len(alive) - position)
                    more = f", about {duration(left)} left in it" if left else ""
                    progress(
                        f"round {index + 1} of {len(rounds)}: {position} of {len(alive)}, {run}"
                        f"{more}"
                    )
            ranked = sorted(alive, key=lambda run: run.latest, reverse=True)
            others = _best_of_each_cost(ranked) if index == 0 else ranked
            places = min((len(others) + 1) // 2, _MAX_KEPT)
            alive = [run for run in ranked if run.allocation in keep]
            others = [run for run in others if run not in alive]
            alive += others[: max(places - len(alive), 1)]
        runs.sort(key=lambda run: run.latest, reverse=True)
        found = [Candidate(r.allocation, r.latest) for r in runs if math.isfinite(r.latest)]
        if runs and not found:
            raise FloatingPointError(
                f"{monitor!r} was not a finite number for any of the {len(runs)} choices: their "
                "trainings diverged, or the metric cannot be computed on the validation data."
            )
        if len(found) < len(runs):
            _logger.warning(
                f"{monitor!r} was not a finite number for {len(runs) - len(found)} of the "
                f"{len(runs)} choices; they are left out."
            )
        return found


class _Run:
    """The training of one choice, in pieces."""

    def __init__(
        self,
        allocation: Allocation,
        supernet: LightningModule,
        build_model: BuildModel,
        folder: Path,
        kept: bool,
        limit_train_batches: float,
        metric: _LatestMetric,
    ) -> None:
        self.allocation = allocation
        self._metric = metric
        self._model = build_model(allocation)
        self._folder = folder
        self._kept = kept
        self._limit_train_batches = limit_train_batches
        self._epochs = 0
        warm_start(self._model, supernet)

    @property
    def latest(self) -> float:
        return self._metric.value

    def __str__(self) -> str:
        return f"{self.allocation.num_parameters:,} parameters: {self._metric}"

    @property
    def _checkpoint(self) -> Path:
        name = zlib.crc32(self.allocation.to_json().encode())
        return self._folder / f"{name:08x}-{self._epochs}.ckpt"

    def train(self, datamodule: LightningDataModule, epochs: int) -> None:
        before = self._checkpoint
        self._epochs += epochs
        callbacks: list[Callback] = [self._metric]
        if self._kept:
            callbacks.append(PeriodicCheckpoint(self._checkpoint))
        trainer = quiet_trainer(
            self._model,
            max_epochs=self._epochs,
            # What counts is the end of the round.
            check_val_every_n_epoch=self._epochs,
            callbacks=callbacks,
            limit_train_batches=self._limit_train_batches,
        )
        # Its own, if it was interrupted; that of the round before; none in the first round.
        known = [path for path in (self._checkpoint, before) if path.exists()]
        trainer.fit(self._model, datamodule=datamodule, ckpt_path=known[0] if known else None)
        save_checkpoint(trainer, self._checkpoint)


def _best_of_each_cost(runs: Sequence[_Run]) -> list[_Run]:
    """Those that no better one costs about as much as; best first, as they come."""
    kept: list[_Run] = []
    for run in runs:
        costs = [(run.allocation.num_parameters, k.allocation.num_parameters) for k in kept]
        if all(max(pair) > _SAME_COST * min(pair) for pair in costs):
            kept.append(run)
    return kept


class _LatestMetric(Callback):
    def __init__(self, monitor: str, mode: MonitorMode, name: str) -> None:
        self._monitor, self._name = monitor, name
        self._sign = 1.0 if mode == "max" else -1.0
        self.value = float("-inf")

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value = state_dict["value"]

    def __str__(self) -> str:
        return f"{self._name} {self._sign * self.value:.4f}"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = self._sign * logged(trainer, self._monitor)
        self.value = value if math.isfinite(value) else -math.inf


def warm_start(model: LightningModule, supernet: LightningModule) -> None:
    """Give a model with multi-size layers the weights of a supernet.

    Args:
        model: A model of chosen sizes, changed in place.
        supernet: The supernet that it was chosen from.

    Raises:
        ValueError: If the parameters outside the embeddings are not the same in both, or an
            embedding sorts its ids in another order.

    Example:
        >>> from optuna_nis import SearchSpace
        >>> from optuna_nis.lightning import reference_model
        >>> space = SearchSpace(data.embedding_specs(8))
        >>> build = reference_model(data.features)
        >>> supernet, model = build(space), build(space.full())
        >>> warm_start(model, supernet)
        >>> torch.equal(model.head.weight, supernet.head.weight)
        True
    """
    embeddings = supernet_layers(supernet)
    layers = sized_layers(model)
    shared = _outside(supernet, list(embeddings.values()))
    own = _outside(model, layers)
    if {n: p.shape for n, p in shared.items()} != {n: p.shape for n, p in own.items()}:
        raise ValueError(
            "The model must have the parameters of the supernet outside its embeddings, they "
            f"differ in {sorted(set(shared) ^ set(own)) or 'their shapes'}."
        )
    for layer in layers:
        if not layer.same_order(embeddings[layer.name]):
            raise ValueError(
                f"The model must sort the ids of {layer.name!r} as the supernet does: build "
                "both with the same counts."
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(shared[name])
    for layer in layers:
        embeddings[layer.name].copy_to(layer)


def _outside(model: nn.Module, layers: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Parameters and statistics (of batch normalisation) outside the embeddings."""
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    tensors: dict[str, Tensor] = {
        name: p for name, p in model.named_parameters() if id(p) not in inside
    }
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for name, buffer in module.named_buffers(path, recurse=False):
                tensors[name] = buffer
    return tensors
