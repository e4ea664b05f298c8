"""Training and evaluation mode of the modules of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Leave every module in the mode that it was in: some models freeze a part of themselves.

    Example:
        >>> model = nn.Sequential(nn.Dropout().eval(), nn.Linear(1, 1))
        >>> with modes_kept(model):
        ...     _ = model.eval()
        >>> [module.training for module in model]
        [False, True]
    """
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
