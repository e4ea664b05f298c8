"""Functions that make models: of the sizes they are given, or as they are without a search."""

from __future__ import annotations

from collections.abc import Callable
import inspect
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from optuna_nis.nn import apply_allocation, swapped_layers
from optuna_nis.nn.swap import counts_by_rank
from optuna_nis.space.allocation import Allocation

#: Makes a model of given embedding sizes.
BuildModel = Callable[[Allocation], LightningModule]


def takes_sizes(build_model: Callable[..., LightningModule]) -> bool:
    """Whether a function takes the sizes of the model that it makes; else it takes nothing.

    Raises:
        TypeError: If it is no function.
        ValueError: If it takes more.
    """
    _check_function(build_model)
    required = [
        parameter
        for parameter in inspect.signature(build_model).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) > 1:
        raise ValueError(
            "`build_model` must be a function without arguments, or of the sizes, got one of "
            f"{[parameter.name for parameter in required]}."
        )
    return bool(required)


def check_takes_sizes(build_model: BuildModel) -> None:
    """Check that a function can be given sizes.

    Raises:
        TypeError: If it is no function.
        ValueError: If it takes nothing.
    """
    _check_function(build_model)
    try:
        inspect.signature(build_model).bind(None)
    except TypeError as error:
        raise ValueError(
            "`build_model` must be a function of the sizes alone, such as "
            "`lambda sizes: apply_allocation(Model(), sizes, counts=counts)`, got "
            f"{build_model!r}: {error}."
        ) from error


def sized_like(
    build_model: Callable[..., LightningModule], supernet: LightningModule
) -> BuildModel:
    """A function of the sizes, from one that may take none and make the model unsearched.

    Args:
        build_model: The function.
        supernet: The model that was searched, by whose order the ids are sorted.

    Raises:
        TypeError: If it is no function.
        ValueError: If it takes more than sizes, or nothing though no layers of the supernet were
            swapped.
    """
    if takes_sizes(build_model):
        return build_model
    if not swapped_layers(supernet):
        raise ValueError(
            "`build_model` must be a function of the sizes, since the embedding layers of "
            f"{type(supernet).__name__} are not those that `make_searchable` swaps, got one "
            "without arguments."
        )
    counts = counts_by_rank(supernet)
    return lambda sizes: apply_allocation(build_model(), sizes, counts=counts)


def _check_function(build_model: Any) -> None:
    if isinstance(build_model, nn.Module) or not callable(build_model):
        raise TypeError(
            "`build_model` must be a function that makes a model, such as `lambda: Model(...)`, "
            f"since each training needs a new one, got {type(build_model).__name__}."
        )
