"""A validation of a module as Lightning runs one, but without callbacks, loggers and traces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
import math
import re
from typing import Any
import warnings

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger, Logger
from lightning.pytorch.utilities.data import extract_batch_size
import torch
from torch import Tensor
from torchmetrics import Metric

from optuna_nis._steps import step_arguments, takes_iterator
from optuna_nis.lightning._batch import batch_length, copied
from optuna_nis.lightning._package import is_overridden
from optuna_nis.models import EmbeddingModule

_OPENING = ("on_validation_model_eval", "on_validation_start", "on_validation_epoch_start")
_CLOSING = ("on_validation_epoch_end", "on_validation_end", "on_validation_model_train")

_OTHER_REDUCTIONS: dict[str, Callable[[Iterable[float]], float]] = {
    "sum": sum,
    "max": max,
    "min": min,
}
_REDUCTIONS = ("mean", "avg", *_OTHER_REDUCTIONS)
_NO_VALUE = re.compile("No (positive|negative) samples")


class Validation:
    """The hooks and steps of a module for some batches of one dataloader.

    Args:
        trainer: The trainer that the module is attached to.
        pl_module: The module, in evaluation mode.
        dataloader_idx: Which of several dataloaders gives the batches; None if there is one only.
    """

    def __init__(
        self, trainer: Trainer, pl_module: LightningModule, dataloader_idx: int | None = None
    ) -> None:
        self.log = Log(dataloader_idx)
        self._trainer = trainer
        self._module = pl_module
        self._dataloader_idx = dataloader_idx
        self._is_open = any(is_overridden(hook, pl_module) for hook in _OPENING)

    def outputs(self, batches: Iterable[Any]) -> Iterator[Any]:
        """What ``validation_step`` returns for each batch, as the dataloader gives them."""
        for hook in _OPENING:
            self._call(hook)
        for index, batch in enumerate(batches):
            yield self._step(copied(batch), index)

    def close(self, *, entirely: bool = False) -> None:
        """Run the hooks at the end, which close what those at the start have opened.

        Args:
            entirely: Whether to run them even if nothing has been opened, for what they log. What
                else they do, such as printing, should not happen for each choice without need.
        """
        if not entirely and not self._is_open:
            return
        for hook in _CLOSING:
            if is_overridden(hook, self._module):
                # Where models look for what they have logged.
                self._trainer.callback_metrics.update(self.log.values())
                with _no_value() as unknown, self._of_one_dataloader(hook):
                    self._call(hook)
                if _in_any_process(unknown, self._module.device):
                    self.log.withdraw(hook)

    @contextmanager
    def _of_one_dataloader(self, hook: str) -> Iterator[None]:
        """Say of what goes wrong in a hook that other dataloaders have not been gone over."""
        try:
            yield
        except Exception as error:  # Of the module, whatever it is.
            if self._dataloader_idx is None:
                raise
            raise MisconfigurationException(
                f"`{hook}` of {type(self._module).__name__} failed: {error!r}. Choices are scored "
                "on one of several dataloaders at a time, here on that of index "
                f"{self._dataloader_idx}: it must not need what the others give."
            ) from error

    def _step(self, batch: Any, batch_idx: int) -> Any:
        trainer, module = self._trainer, self._module
        index = () if self._dataloader_idx is None else (self._dataloader_idx,)
        if takes_iterator(module.validation_step):
            self.log.batch = batch
            arguments: tuple[Any, ...] = (iter([(batch, batch_idx, *(index or (0,)))]),)
        else:
            batch = on_device(trainer, module, batch, self._dataloader_idx)
            self.log.batch = batch
            arguments = step_arguments(module.validation_step, batch, batch_idx, *index)
        self._call("on_validation_batch_start", batch, batch_idx, *index)
        outputs = self._call("validation_step", *arguments)
        self._call("on_validation_batch_end", outputs, batch, batch_idx, *index)
        self.log.batch = None
        return outputs

    def _call(self, method: str, *arguments: Any) -> Any:
        # The two that set the mode are called if they are the module's own, as Lightning does.
        if method.startswith("on_validation_model") and not is_overridden(method, self._module):
            return None
        with self.log.instead_of_that_of(self._module, method):
            if method == "validation_step":
                with self._trainer.precision_plugin.val_step_context():
                    return getattr(self._module, method)(*arguments)
            return getattr(self._module, method)(*arguments)


class Log:
    """What a module logs in a validation.

    Args:
        dataloader_idx: As in :class:`Validation`.
    """

    def __init__(self, dataloader_idx: int | None = None) -> None:
        #: The batch at hand, None before and after all batches.
        self.batch: Any = None
        self._dataloader_idx = dataloader_idx
        self._hook = ""
        # What is logged under one name in several hooks is not one mean; the latest counts.
        self._logged: dict[tuple[str, str], Logged] = {}

    @property
    def names(self) -> list[str]:
        """What has been logged."""
        return sorted({name for name, _ in self._logged})

    def find(self, name: str) -> Logged | None:
        """What has been logged under a name."""
        found = [logged for (known, _), logged in self._logged.items() if known == name]
        return found[-1] if found else None

    def values(self) -> dict[str, Tensor]:
        """What has been logged, as Lightning tells it to callbacks."""
        return {name: torch.tensor(each.value) for (name, _), each in self._logged.items()}

    def withdraw(self, hook: str) -> None:
        """Take back what was logged in a hook: there is no value."""
        for (_, logged_in), logged in self._logged.items():
            if logged_in == hook:
                logged.value = math.nan

    def log(
        self,
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: str | Callable[..., Any] = "mean",
        enable_graph: bool = False,
        sync_dist: bool = False,
        sync_dist_group: Any = None,
        add_dataloader_idx: bool = True,
        batch_size: int | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Instead of :meth:`lightning.pytorch.LightningModule.log`."""
        names = [name]
        if on_step and on_epoch:
            names.append(f"{name}_epoch")
        if self._dataloader_idx is not None and add_dataloader_idx:
            names += [f"{each}/dataloader_idx_{self._dataloader_idx}" for each in names]
        if isinstance(value, Tensor):
            value = value.detach().clone()
        for each in names:
            logged = self._logged.setdefault((each, self._hook), Logged(reduce_fx))
            logged.add(value, self._size() if batch_size is None else batch_size)

    def log_dict(self, dictionary: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Instead of :meth:`lightning.pytorch.LightningModule.log_dict`."""
        for name, value in dictionary.items():
            self.log(name, value, *args, **kwargs)

    @contextmanager
    def instead_of_that_of(self, pl_module: LightningModule, hook: str) -> Iterator[None]:
        """Take what a module logs in a hook."""
        attributes = vars(pl_module)
        attributes |= {"log": self.log, "log_dict": self.log_dict}
        self._hook = hook
        try:
            yield
        finally:
            for name in ("log", "log_dict"):
                attributes.pop(name, None)

    def _size(self) -> int:
        return 1 if self.batch is None else num_examples(self.batch)


class Logged:
    """The values of one name, one for each time it was logged in a hook."""

    def __init__(self, reduce_fx: str | Callable[..., Any]) -> None:
        name = reduce_fx if isinstance(reduce_fx, str) else getattr(reduce_fx, "__name__", "")
        self._reduction = name.lower()
        if self._reduction not in _REDUCTIONS:
            raise MisconfigurationException(
                f"`reduce_fx` of `self.log` must be one of {', '.join(_REDUCTIONS)}, "
                f"got {reduce_fx!r}."
            )
        self._values: list[Any] = []
        self._sizes: list[int] = []

    def add(self, value: Any, size: int) -> None:
        """Add what was logged of some examples."""
        self._values.append(value)
        self._sizes.append(size)
        vars(self).pop("value", None)

    @property
    def source(self) -> Any:
        """The metric, if it is one that was logged; else a number."""
        return self._values[-1]

    @cached_property
    def value(self) -> float:
        """What Lightning makes of it at the end of a validation."""
        # Hooks at the end may reset a metric: it is computed once.
        if isinstance(self.source, Metric):
            return compute(self.source)
        values = [float(value) for value in self._values]
        if self._reduction in _OTHER_REDUCTIONS:
            return _OTHER_REDUCTIONS[self._reduction](values)
        return sum(v * size for v, size in zip(values, self._sizes)) / max(self.weight, 1.0)

    @property
    def weight(self) -> float:
        """Number of examples that it is the mean of, 1 for what is no mean."""
        if isinstance(self.source, Metric) or self._reduction in _OTHER_REDUCTIONS:
            return 1.0
        return float(sum(self._sizes))


def on_device(
    trainer: Trainer, pl_module: LightningModule, batch: Any, dataloader_idx: int | None = None
) -> Any:
    """A batch of a dataloader as steps get it."""
    index = dataloader_idx or 0
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=index)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=index)


def num_examples(batch: Any) -> int:
    """What a value of a batch is weighted with, as Lightning does; 1 if that cannot be known."""
    try:
        return batch_length(batch)
    except ValueError:
        pass
    try:
        return extract_batch_size(batch)
    except (MisconfigurationException, RecursionError):
        return 1


def batch_weight(pl_module: LightningModule, batch: Any) -> float:
    """What a mean over a batch counts among those over others: its examples, or their weights."""
    weights = pl_module.weights_of(batch) if isinstance(pl_module, EmbeddingModule) else None
    return num_examples(batch) if weights is None else float(weights.double().sum())


def compute(metric: Metric) -> float:
    """The value of a metric, NaN where torchmetrics warns that there is none."""
    with _no_value() as unknown:
        value = metric.compute()
    return math.nan if _in_any_process(unknown, metric.device) else float(value)


def _in_any_process(unknown: list[str], device: torch.device) -> bool:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return bool(unknown)
    # The value is that of all processes, but only the first one is warned.
    told = torch.tensor(len(unknown), dtype=torch.int32, device=device)
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return bool(told)


@contextmanager
def silent(trainer: Trainer) -> Iterator[None]:
    """Let nothing of what a module does in a validation reach loggers, callbacks or the loop."""
    loggers, should_stop = trainer.loggers, trainer.should_stop
    metrics = trainer.callback_metrics
    logged = dict(metrics)
    trainer.loggers = [_Silent(logger) for logger in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers
        trainer.should_stop = should_stop
        metrics.clear()
        metrics.update(logged)


class _Silent(DummyLogger):
    """Takes whatever is done with a logger and does nothing."""

    def __init__(self, logger: Logger) -> None:
        super().__init__()
        self._logger = logger

    @property
    def name(self) -> Any:
        return self._logger.name

    @property
    def version(self) -> Any:
        return self._logger.version

    @property
    def save_dir(self) -> str | None:
        return self._logger.save_dir

    @property
    def log_dir(self) -> str | None:
        return self._logger.log_dir


@contextmanager
def _no_value() -> Iterator[list[str]]:
    """What torchmetrics says where examples are of one class; other warnings go on."""
    unknown: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield unknown
    for warning in caught:
        if _NO_VALUE.search(str(warning.message)):
            unknown.append(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
