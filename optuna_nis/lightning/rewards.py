"""How good choices are on validation data, for any Lightning module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
import inspect
import math
import re
from typing import Any, Literal, Protocol, get_args, runtime_checkable

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from optuna_nis.lightning._batch import copied, examples_length, repeat
from optuna_nis.lightning._evaluation import Evaluation
from optuna_nis.lightning._package import is_overridden
from optuna_nis.lightning._validation import (
    Validation,
    batch_weight,
    compute,
    num_examples,
    on_device,
)
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace

MonitorMode = Literal["max", "min"]

_DEFAULT_MONITOR = "val_loss"
# In the names of what should be small, most often, and of what should be large; the short ones are
# a word of the name.
_ERRORS = ("error", "mse", "mae", "mape", "nll", "perplexity", "entropy", "bce", "inaccuracy")
_LARGE = ("accuracy", "auc", "auroc", "auprc", "precision", "recall", "ndcg")
_LARGE_WORDS = frozenset(
    {
        "acc",
        "ap",
        "f1",
        "hit",
        "hitrate",
        "hits",
        "hr",
        "map",
        "metric",
        "mrr",
        "quality",
        "r2",
        "reward",
    }
)
# More examples at once do not fit the caches of a processor: each takes half as long again.
_MAX_EXAMPLES = 16_384


@runtime_checkable
class Searchable(Protocol):
    """A :class:`~lightning.pytorch.LightningModule` that scores choices side by side."""

    def choice_quality(self, batch: Any, num_choices: int) -> Tensor:
        """Quality of several choices on the same examples.

        Args:
            batch: The examples, repeated ``num_choices`` times: one run for each choice.
            num_choices: Number of choices.

        Returns:
            Shape ``(num_choices,)``, larger is better; all NaN where these examples cannot tell.
        """


class NotLoggedError(MisconfigurationException):
    """A validation does not log the value by which choices are scored.

    Args:
        pl_module: The module.
        names: What it logs.
        wanted: The name of the value.
    """

    def __init__(self, pl_module: LightningModule, names: Sequence[str], wanted: str) -> None:
        self.names = names
        super().__init__(
            f"The validation of {type(pl_module).__name__} logs {[*names]}, not {wanted!r}. Give "
            "a `monitor` that is logged there, or a `metric` for what is returned, or define "
            "`choice_quality`."
        )


@dataclass(frozen=True)
class Monitored:
    """By which value of a validation trained models are compared.

    Attributes:
        name: Under which it is logged.
        mode: Whether the largest (``"max"``) or the smallest (``"min"``) is best.
        metric: What is fed by ``validation_step`` and logged under this name; None if the model
            logs it itself.
    """

    name: str
    mode: MonitorMode = "max"
    metric: Metric | None = None

    @property
    def label(self) -> str:
        """What the value is called, for people."""
        return self.name if self.metric is None else type(self.metric).__name__

    def label_of(self, model: LightningModule) -> str:
        """The same of a model that may have a name of its own for what it is compared by."""
        is_own = self.metric is None and self.name == getattr(model, "monitor", None)
        return str(getattr(model, "monitor_name", self.label)) if is_own else self.label

    @property
    def sign(self) -> float:
        """1 if large values are good, -1 if small ones are."""
        return 1.0 if self.mode == "max" else -1.0

    def callbacks(self) -> list[Callback]:
        """What the trainer needs for the value to be logged."""
        return [] if self.metric is None else [_Logged(self.metric, self.name)]


def known_mode(name: str) -> MonitorMode | None:
    """``"min"`` for a name with "loss" in it; no other name says which values are best."""
    return "min" if "loss" in name.lower() else None


def mode_by_name(monitor: str, mode: MonitorMode | None = None) -> MonitorMode:
    """Whether the largest or the smallest value of some name is best, if it is not said.

    Args:
        monitor: The name.
        mode: What is said.

    Raises:
        ValueError: If the mode is unknown, or the name does not say that it is that of a loss, or
            of something of which the largest value is best, such as an accuracy.
    """
    _check_mode("mode", mode)
    if found := mode or known_mode(monitor):
        return found
    name = re.sub("(?<=[a-z])(?=[A-Z])", "_", monitor).lower()
    words = re.findall(r"[a-z]+\d*", name)
    words += [word.rstrip("0123456789") for word in words]
    is_large = any(part in name for part in _LARGE) or not _LARGE_WORDS.isdisjoint(words)
    if not is_large or any(part in name for part in _ERRORS):
        raise ValueError(
            f'`mode` must be given for the monitor {monitor!r}: "min" if smaller values are '
            'better, else "max".'
        )
    return "max"


def check_goal(
    metric: Metric | None, monitor: str | None, mode: MonitorMode | None, name: str = "mode"
) -> None:
    """Check what says how good choices are, see :class:`Rewards`.

    Args:
        metric: The metric.
        monitor: The name of the value.
        mode: Whether the largest or the smallest value is best.
        name: What the mode is called where it is given.

    Raises:
        ValueError: If both metric and monitor are given, or one of these is none.
    """
    if metric is not None and monitor is not None:
        raise ValueError(f"Either `metric` or `monitor` may be given, got {monitor!r} too.")
    if metric is not None and not isinstance(metric, Metric):
        raise ValueError(f"`metric` must be a torchmetrics.Metric, got {metric!r}.")
    if not isinstance(monitor, str | None):
        raise ValueError(f"`monitor` must be the name of a value, got {monitor!r}.")
    _check_mode(name, mode)


def _check_mode(name: str, mode: object) -> None:
    if mode not in (None, *get_args(MonitorMode)):
        raise ValueError(f'`{name}` must be "max" or "min", got {mode!r}.')


class Rewards:
    """Scores choices, by the first of these that there is.

    1. A metric of torchmetrics, fed by what ``validation_step`` returns: ``(preds, target)``, or
       a mapping from the arguments of the metric's ``update``.
    2. A value that ``validation_step`` or a hook of validation logs, if ``monitor`` names it.
    3. The module's own ``choice_quality`` (:class:`Searchable`).
    4. The ``"val_loss"`` that ``validation_step`` logs.

    ``choice_quality`` sees several choices at once; otherwise the choices are scored one after
    the other on the same batches, each by a validation as Lightning runs it, hooks of the module
    included (those at the end only if they are needed, see :class:`Validation`). Scoring leaves
    no trace in the module: its attributes, metrics and buffers, what is in its lists and
    dictionaries, and random numbers are put back after each choice, and nothing is logged. Of
    several processes, each scores its own part of the validation data; all get the mean.

    Args:
        space: The space of the choices.
        metric: See above. It is copied.
        monitor: See above.
        mode: Whether the largest or the smallest value is best. By default what the metric says
            of itself, and ``"min"`` for a monitor with "loss" in its name.

    Raises:
        ValueError: If both metric and monitor are given, or the mode is unknown.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        metric: Metric | None = None,
        monitor: str | None = None,
        mode: MonitorMode | None = None,
    ) -> None:
        check_goal(metric, monitor, mode)
        self.space = space
        self.metric = None if metric is None else metric.clone()
        self.monitor = monitor
        self.mode = mode
        self._evaluation = Evaluation(space)
        self._found_mode = mode

    @property
    def logged(self) -> str:
        """The name of the value that counts where a module logs it."""
        return self.monitor or _DEFAULT_MONITOR

    def monitored(self, pl_module: LightningModule) -> Monitored:
        """What models of chosen sizes are compared by: what the choices were scored by.

        A module that scores choices itself (:class:`Searchable`) names the value that it logs in
        its attribute ``monitor``; without one it is ``"val_loss"``.
        """
        if self.metric is not None:
            name = f"nis_{type(self.metric).__name__}"
            higher = self.metric.higher_is_better
            return Monitored(name, self.mode or ("min" if higher is False else "max"), self.metric)
        logged = self.monitor or str(getattr(pl_module, "monitor", _DEFAULT_MONITOR))
        return Monitored(logged, self._found_mode or known_mode(logged) or "max")

    def side_by_side(self, pl_module: LightningModule) -> bool:
        """Whether the module takes several choices in one batch."""
        given = self.metric is not None or self.monitor is not None
        return not given and isinstance(pl_module, Searchable)

    def check(self, pl_module: LightningModule) -> None:
        """Check that there is something to score by.

        Raises:
            lightning.pytorch.utilities.exceptions.MisconfigurationException: If there is not.
        """
        if not self.side_by_side(pl_module) and not is_overridden("validation_step", pl_module):
            raise MisconfigurationException(
                f"{type(pl_module).__name__} must define `choice_quality(batch, num_choices)` or "
                "`validation_step` to be searched by NISCallback."
            )

    def try_out(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batches: Iterable[Any],
        *,
        dataloader_idx: int | None = None,
    ) -> None:
        """Check that a validation of the full tables tells how good they are, if it can at all.

        Args:
            trainer: As in :meth:`score`.
            pl_module: As in :meth:`score`.
            batches: As in :meth:`score`.
            dataloader_idx: As in :meth:`score`.

        Raises:
            NotLoggedError: If it does not log the monitor.
            lightning.pytorch.utilities.exceptions.MisconfigurationException: As in :meth:`score`.
        """
        full = [self.space.full()]
        self.score(trainer, pl_module, full, batches, dataloader_idx=dataloader_idx)

    def score(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        choices: Sequence[Allocation],
        batches: Iterable[Any],
        *,
        dataloader_idx: int | None = None,
    ) -> Tensor:
        """Quality of some choices on batches of validation data.

        Args:
            trainer: The trainer that the module is attached to.
            pl_module: The supernet.
            choices: The choices.
            batches: Batches as the dataloader gives them, gone over more than once.
            dataloader_idx: Which of several dataloaders gives them; None if there is one only.

        Returns:
            Shape ``(choices,)``, 64-bit floats, larger is better; NaN where the examples cannot
            tell.

        Raises:
            lightning.pytorch.utilities.exceptions.MisconfigurationException: If
                ``validation_step`` does not return or log what is needed, or the module keeps
                what it has computed under one choice.
        """
        with self._evaluation.prepared(trainer, pl_module):
            scored = self._side_by_side if self.side_by_side(pl_module) else self._one_by_one
            totals, weights = scored(trainer, pl_module, choices, batches, dataloader_idx)
        if trainer.world_size > 1:
            both = torch.stack([totals, weights]).to(trainer.strategy.root_device)
            totals, weights = trainer.strategy.reduce(both, reduce_op="sum").cpu()
        quality: Tensor = totals / weights
        return quality

    def _side_by_side(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        choices: Sequence[Allocation],
        batches: Iterable[Any],
        dataloader_idx: int | None,
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(pl_module, Searchable)
        totals = torch.zeros(len(choices), dtype=torch.float64)
        weights = torch.zeros(len(choices), dtype=torch.float64)
        for batch in batches:
            try:
                length, divisible = examples_length(batch), True
            except ValueError:
                # One choice after the other sees all of it.
                length, divisible = num_examples(batch), False
            size = max(1, _MAX_EXAMPLES // max(1, length)) if divisible else 1

            def measured(group: Sequence[Allocation]) -> Tensor:
                examples = repeat(batch, len(group)) if divisible else copied(batch)  # noqa: B023
                examples = on_device(trainer, pl_module, examples, dataloader_idx)
                with trainer.precision_plugin.val_step_context():
                    return pl_module.choice_quality(examples, len(group)).cpu()

            starts = range(0, len(choices), size)
            groups = [choices[start : start + size] for start in starts]
            parts = [self._evaluation.under(pl_module, group, measured) for group in groups]
            quality = torch.cat(parts).double()
            self._evaluation.check(pl_module, quality.tolist())
            # Some choices without a quality are an error, told when they become rewards.
            if not quality.isnan().all():
                weight = batch_weight(pl_module, batch)
                totals += quality * weight
                weights += weight
        return totals, weights

    def _one_by_one(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        choices: Sequence[Allocation],
        batches: Iterable[Any],
        dataloader_idx: int | None,
    ) -> tuple[Tensor, Tensor]:
        def measured(_: Sequence[Allocation]) -> tuple[float, float]:
            validation = Validation(trainer, pl_module, dataloader_idx)
            if self.metric is not None:
                return self._measured(validation, pl_module, self.metric, batches)
            return self._logged(validation, pl_module, batches)

        totals, weights = [], []
        for choice in choices:
            value, weight = self._evaluation.under(pl_module, [choice], measured)
            totals.append(0.0 if math.isnan(value) else value * weight)
            weights.append(0.0 if math.isnan(value) else weight)
        self._evaluation.check(pl_module, totals)
        return torch.tensor(totals, dtype=torch.float64), torch.tensor(weights).double()

    def _measured(
        self,
        validation: Validation,
        pl_module: LightningModule,
        metric: Metric,
        batches: Iterable[Any],
    ) -> tuple[float, float]:
        metric.to(pl_module.device)
        metric.reset()
        for outputs in validation.outputs(batches):
            _feed(metric, outputs, pl_module)
        validation.close()
        return self._sign(metric, type(metric).__name__) * compute(metric), 1.0

    def _logged(
        self, validation: Validation, pl_module: LightningModule, batches: Iterable[Any]
    ) -> tuple[float, float]:
        for module in pl_module.modules():
            if isinstance(module, (Metric, MetricCollection)):
                module.reset()
        name = self.logged
        num_batches = sum(1 for _ in validation.outputs(batches))
        if num_batches == 0:
            raise MisconfigurationException(
                "NISCallback scores choices on validation data: the validation dataloader gave no "
                "batch."
            )
        found = validation.log.find(name)
        if found is not None:
            _ = found.value  # Of a metric, before a hook resets it.
        validation.close(entirely=found is None)
        found = validation.log.find(name)
        if found is None:
            raise NotLoggedError(pl_module, validation.log.names, name)
        return self._sign(found.source, name) * found.value, found.weight

    def _sign(self, source: Any, name: str) -> float:
        """1 if larger is better, -1 if smaller is."""
        mode = self.mode
        if mode is None and isinstance(source, Metric):
            mode = {True: "max", False: "min"}.get(source.higher_is_better)  # type: ignore[assignment,arg-type]
        mode = mode or known_mode(name)
        if mode is None:
            raise MisconfigurationException(
                f'NISCallback needs `mode`, "max" or "min", to know whether {name!r} should be '
                "large or small; in `search_sizes` this is `monitor_mode`."
            )
        self._found_mode = mode
        return 1.0 if mode == "max" else -1.0


class _Logged(Callback):
    """Logs a metric of what ``validation_step`` and ``test_step`` return.

    Args:
        metric: The metric, copied.
        name: Under which it is logged; in a test with "_test" behind it.
    """

    def __init__(self, metric: Metric, name: str) -> None:
        self._metric, self._name = metric.clone(), name

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._metric.to(pl_module.device).reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        _feed(self._metric, outputs, pl_module)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log(self._name, compute(self._metric))

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_validation_epoch_start(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        _feed(self._metric, outputs, pl_module, "test_step")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log(f"{self._name}_test", compute(self._metric))


def _feed(
    metric: Metric, outputs: Any, pl_module: LightningModule, step: str = "validation_step"
) -> None:
    wanted = list(inspect.signature(metric.update).parameters)
    if isinstance(outputs, Mapping):
        known = {name: outputs[name] for name in wanted if name in outputs}
        if known:
            metric.update(**known)
            return
    elif isinstance(outputs, (tuple, list)) and len(outputs) > 1:
        metric.update(*outputs)
        return
    raise MisconfigurationException(
        f"`{step}` of {type(pl_module).__name__} must return a tuple or a dictionary of "
        f"{wanted}, for {type(metric).__name__}, got {type(outputs).__name__}."
    )
