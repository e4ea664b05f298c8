"""How good choices are on validation data, for any Lightning module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
import inspect
import math
from typing import Any, Literal, Protocol, runtime_checkable
import warnings

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.model_helpers import is_overridden
import torch
from torch import Tensor
from torchmetrics import Metric

from optuna_nis.allocation import Allocation
from optuna_nis.lightning._batch import batch_length, repeat
from optuna_nis.nn import set_choices
from optuna_nis.space import SearchSpace

MonitorMode = Literal["max", "min"]

_DEFAULT_MONITOR = "val_loss"
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


class Rewards:
    """Scores choices, by the first of these that there is.

    1. A metric of torchmetrics, fed by what ``validation_step`` returns: ``(preds, target)``, or
       a mapping from the arguments of the metric's ``update``.
    2. A value that ``validation_step`` logs, if ``monitor`` names it.
    3. The module's own ``choice_quality`` (:class:`Searchable`).
    4. The ``"val_loss"`` that ``validation_step`` logs.

    ``choice_quality`` sees several choices at once; otherwise the choices are scored one after
    the other on the same batches. Scoring leaves no trace in the module: its metrics, lists and
    dictionaries are put back, and what it logs meanwhile is not logged. Of several processes,
    each scores its own part of the validation data; all get the mean.

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
        if metric is not None and monitor is not None:
            raise ValueError(f"Either `metric` or `monitor` may be given, got {monitor!r} too.")
        if metric is not None and not isinstance(metric, Metric):
            raise ValueError(f"`metric` must be a torchmetrics.Metric, got {metric!r}.")
        if mode not in (None, "max", "min"):
            raise ValueError(f'`mode` must be "max" or "min", got {mode!r}.')
        self.space = space
        self.metric = None if metric is None else metric.clone()
        self.monitor = monitor
        self.mode = mode

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
                ``validation_step`` does not return or log what is needed.
        """
        with _undisturbed(trainer, pl_module):
            if self.side_by_side(pl_module):
                totals, weights = self._side_by_side(
                    trainer, pl_module, choices, batches, dataloader_idx
                )
            else:
                totals, weights = self._one_by_one(
                    trainer, pl_module, choices, batches, dataloader_idx
                )
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
            parts = []
            length = batch_length(batch)
            size = max(1, _MAX_EXAMPLES // max(1, length))
            for start in range(0, len(choices), size):
                group = choices[start : start + size]
                set_choices(pl_module, self.space, group)
                examples = _on_device(
                    trainer, pl_module, repeat(batch, len(group)), dataloader_idx
                )
                parts.append(pl_module.choice_quality(examples, len(group)).cpu())
            quality = torch.cat(parts).double()
            # Some choices without a quality are an error, told when they become rewards.
            if not quality.isnan().all():
                totals += quality * length
                weights += length
        return totals, weights

    def _one_by_one(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        choices: Sequence[Allocation],
        batches: Iterable[Any],
        dataloader_idx: int | None,
    ) -> tuple[Tensor, Tensor]:
        totals, weights = [], []
        for choice in choices:
            set_choices(pl_module, self.space, [choice])
            if self.metric is not None:
                value = self._measured(trainer, pl_module, self.metric, batches, dataloader_idx)
                weight = 1.0
            else:
                value, weight = self._logged(trainer, pl_module, batches, dataloader_idx)
            totals.append(0.0 if math.isnan(value) else value * weight)
            weights.append(0.0 if math.isnan(value) else weight)
        return torch.tensor(totals, dtype=torch.float64), torch.tensor(weights).double()

    def _measured(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        metric: Metric,
        batches: Iterable[Any],
        dataloader_idx: int | None,
    ) -> float:
        metric.to(pl_module.device)
        metric.reset()
        for index, batch in enumerate(batches):
            outputs = _step(trainer, pl_module, batch, index, dataloader_idx)
            _feed(metric, outputs, pl_module)
        return self._sign(metric, type(metric).__name__) * _compute(metric)

    def _logged(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batches: Iterable[Any],
        dataloader_idx: int | None,
    ) -> tuple[float, float]:
        name = self.monitor or _DEFAULT_MONITOR
        for metric in _metrics(pl_module):
            metric.reset()
        total, weight = 0.0, 0.0
        found: Any = None
        for index, batch in enumerate(batches):
            log = _Log()
            with log.instead_of_that_of(pl_module):
                _step(trainer, pl_module, batch, index, dataloader_idx)
            if name not in log.values:
                raise MisconfigurationException(
                    f"`validation_step` of {type(pl_module).__name__} logs {sorted(log.values)}, "
                    f"not {name!r}. Give NISCallback a `monitor` that is logged there, or a "
                    "`metric` for what is returned, or define `choice_quality`."
                )
            found = log.values[name]
            if not isinstance(found, Metric):
                size = log.batch_sizes[name] or _length_or_one(batch)
                total += float(found) * size
                weight += size
        if isinstance(found, Metric):
            return self._sign(found, name) * _compute(found), 1.0
        return self._sign(found, name) * total / max(weight, 1.0), weight

    def _sign(self, source: Any, name: str) -> float:
        """1 if larger is better, -1 if smaller is."""
        mode = self.mode
        if mode is None and isinstance(source, Metric):
            mode = {True: "max", False: "min"}.get(source.higher_is_better)  # type: ignore[assignment,arg-type]
        if mode is None and "loss" in name:
            mode = "min"
        if mode is None:
            raise MisconfigurationException(
                f'NISCallback needs `mode`, "max" or "min", to know whether {name!r} should be '
                "large or small."
            )
        return 1.0 if mode == "max" else -1.0


class _Log:
    """What a module logs in a step."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.batch_sizes: dict[str, int | None] = {}

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        self.values[name] = value
        self.batch_sizes[name] = kwargs.get("batch_size")

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        for name, value in dictionary.items():
            self.log(name, value, **kwargs)

    @contextmanager
    def instead_of_that_of(self, pl_module: LightningModule) -> Iterator[None]:
        attributes = vars(pl_module)
        attributes |= {"log": self.log, "log_dict": self.log_dict}
        try:
            yield
        finally:
            del attributes["log"], attributes["log_dict"]


def _step(
    trainer: Trainer,
    pl_module: LightningModule,
    batch: Any,
    index: int,
    dataloader_idx: int | None,
) -> Any:
    """What ``validation_step`` returns for a batch as the dataloader gives it."""
    batch = _on_device(trainer, pl_module, batch, dataloader_idx)
    parameters = inspect.signature(pl_module.validation_step).parameters
    arguments: list[Any] = [batch]
    if "batch_idx" in parameters:
        arguments.append(index)
    if "dataloader_idx" in parameters:
        arguments.append(dataloader_idx or 0)
    if "log" in vars(pl_module):
        return pl_module.validation_step(*arguments)
    with _Log().instead_of_that_of(pl_module):
        return pl_module.validation_step(*arguments)


def _on_device(
    trainer: Trainer, pl_module: LightningModule, batch: Any, dataloader_idx: int | None
) -> Any:
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=dataloader_idx or 0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=dataloader_idx or 0)


def _feed(metric: Metric, outputs: Any, pl_module: LightningModule) -> None:
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
        f"`validation_step` of {type(pl_module).__name__} must return a tuple or a dictionary of "
        f"{wanted}, for {type(metric).__name__}, got {type(outputs).__name__}."
    )


def _compute(metric: Metric) -> float:
    """The value of a metric, NaN where torchmetrics warns that there is none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = metric.compute()
    without = ("No positive samples", "No negative samples")
    unknown = any(text in str(w.message) for w in caught for text in without)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # The value is that of all processes, but only the first one is warned.
        told = torch.tensor(unknown, dtype=torch.int32, device=metric.device)
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        unknown = bool(told)
    return math.nan if unknown else float(value)


def _length_or_one(batch: Any) -> int:
    try:
        return batch_length(batch)
    except ValueError:
        return 1


def _metrics(pl_module: LightningModule) -> list[Metric]:
    return [module for module in pl_module.modules() if isinstance(module, Metric)]


@contextmanager
def _undisturbed(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Evaluate without gradients, and put everything back."""
    modes = {module: module.training for module in pl_module.modules()}
    undo = [_remember(metric) for metric in _metrics(pl_module)]
    undo += [
        _remember_container(value)
        for name, value in vars(pl_module).items()
        if not name.startswith("_") and isinstance(value, (list, dict, set))
    ]
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.VALIDATING
    pl_module.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            yield
    finally:
        trainer.state.stage = stage
        for module, training in modes.items():
            module.training = training
        for put_back in undo:
            put_back()


def _remember(metric: Metric) -> Callable[[], None]:
    """How to give a metric back what it has seen."""
    state = {
        name: value.clone() if isinstance(value, Tensor) else list(value)
        for name, value in metric.metric_state.items()
    }
    count, computed = metric._update_count, metric._computed

    def put_back() -> None:
        for name, value in state.items():
            setattr(metric, name, value)
        metric._update_count, metric._computed = count, computed

    return put_back


def _remember_container(value: Any) -> Callable[[], None]:
    copied = value.copy()

    def put_back() -> None:
        value.clear()
        if isinstance(value, list):
            value.extend(copied)
        else:
            value.update(copied)

    return put_back
