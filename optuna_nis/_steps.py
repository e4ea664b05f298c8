"""Calling the step of a Lightning module as Lightning does, without importing it."""

from __future__ import annotations

from collections.abc import Callable
import inspect
from typing import Any


def step_arguments(
    step: Callable[..., Any], batch: Any, batch_idx: int, dataloader_idx: int | None = None
) -> tuple[Any, ...]:
    """What Lightning would pass, by position, to a training or validation step.

    The index of the batch goes to a step that has an argument of that name, takes any number of
    arguments, or has a second one of any name.

    Args:
        step: The method of the module.
        batch: The batch.
        batch_idx: Its index.
        dataloader_idx: Index of its dataloader, where there are several one after the other.

    Example:
        >>> class Module:
        ...     def training_step(self, batch): ...
        ...     def validation_step(self, batch, _): ...
        >>> step_arguments(Module().training_step, "batch", 3)
        ('batch',)
        >>> step_arguments(Module().validation_step, "batch", 3)
        ('batch', 3)
    """
    names, takes_any = _arguments(step)
    arguments = [batch]
    if "batch_idx" in names or takes_any or len(names) >= 2:
        arguments.append(batch_idx)
    if dataloader_idx is not None:
        arguments.append(dataloader_idx)
    return tuple(arguments)


def takes_iterator(step: Callable[..., Any]) -> bool:
    """Whether a step takes the iterator over the data, ``dataloader_iter``, and no batch.

    Example:
        >>> class Module:
        ...     def training_step(self, dataloader_iter): ...
        >>> takes_iterator(Module().training_step)
        True
    """
    return "dataloader_iter" in _arguments(step)[0]


def _arguments(step: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names of the arguments after the first, ``self``; and whether there may be any number."""
    # A decorator may hide the arguments; Lightning looks behind one.
    found = inspect.getfullargspec(getattr(step, "__wrapped__", step))
    return found.args[1:], found.varargs is not None
