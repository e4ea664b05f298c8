"""Finding the multi-size layers of a model, and putting others in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import nn

from optuna_nis.nn.multi_size import sized_layers
from optuna_nis.nn.supernet import SupernetEmbedding

Model = TypeVar("Model", bound=nn.Module)
Layer = TypeVar("Layer", bound=nn.Module)


def check_sized(model: nn.Module) -> None:
    """Raise a ValueError if a model has no multi-size layer, or is still to be searched."""
    check_not_searchable(model)
    if not sized_layers(model):
        raise ValueError(
            f"`model` must have a multi-size layer, got a {type(model).__name__} without."
        )


def check_not_searchable(model: nn.Module) -> None:
    """Raise a ValueError if a model still has layers of a supernet."""
    for layer in model.modules():
        if isinstance(layer, SupernetEmbedding):
            raise ValueError(
                f"`model` is still searchable: {layer.spec.name!r} is a layer of a supernet. "
                "Give it its sizes first: apply_allocation(model, allocation)."
            )


def replace_layers(
    model: Model, kind: type[Layer], new: Callable[[Layer], nn.Module]
) -> nn.Module:
    """Put other layers in the place of those of a model that are of some kind.

    A layer that is held in several places is replaced by the same one in all of them.

    Returns:
        The model, or what takes its place if it is a layer itself.
    """
    done: dict[int, nn.Module] = {}

    def replacement(layer: Layer) -> nn.Module:
        if id(layer) not in done:
            done[id(layer)] = new(layer).train(layer.training)
        return done[id(layer)]

    if isinstance(model, kind):
        return replacement(model)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, kind):
                parent._modules[name] = replacement(child)
    return model
