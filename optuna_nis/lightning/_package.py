"""The two packages that Lightning comes in, ``lightning.pytorch`` and ``pytorch_lightning``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lightning_utilities.core import overrides

# Their classes look alike but are not the same, and neither trainer takes modules of the other.
_PACKAGES = ("pytorch_lightning", "lightning.pytorch")


def lightning_of(instance: object) -> Any:
    """The package whose classes a module, a data module or a trainer derives from.

    Raises:
        TypeError: If it derives from neither's.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> lightning_of(LightningModule()).__name__
        'lightning.pytorch'
    """
    for base in type(instance).__mro__:
        for package in _PACKAGES:
            if base.__module__.startswith(f"{package}."):
                return import_module(package)
    raise TypeError(f"A model must be a LightningModule, got {type(instance).__name__}.")


def is_a(instance: object, name: str) -> bool:
    """Whether something is of a class of this name, of either package.

    Example:
        >>> from lightning.pytorch.callbacks import EarlyStopping
        >>> is_a(EarlyStopping("val_loss"), "EarlyStopping")
        True
    """
    return any(kind.__name__ == name for kind in type(instance).__mro__)


def is_overridden(method: str, pl_module: object) -> bool:
    """Whether a module of either package defines a method of ``LightningModule`` itself.

    Example:
        >>> from lightning.pytorch import LightningModule
        >>> is_overridden("validation_step", LightningModule())
        False
    """
    parent = lightning_of(pl_module).LightningModule
    return overrides.is_overridden(method, pl_module, parent)
