"""Setting the choices of all supernet layers of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import nn

from optuna_nis.nn._choice_masks import set_sizes
from optuna_nis.nn.supernet import SupernetEmbedding
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace


def supernet_layers(module: nn.Module) -> dict[str, SupernetEmbedding]:
    """The supernet embeddings of a model by feature name.

    Raises:
        ValueError: If two of them are of the same feature.

    Example:
        >>> from optuna_nis import EmbeddingSpec
        >>> model = nn.Sequential(SupernetEmbedding(EmbeddingSpec("user", 1000, 16)))
        >>> list(supernet_layers(model))
        ['user']
    """
    layers: dict[str, SupernetEmbedding] = {}
    for layer in module.modules():
        if isinstance(layer, SupernetEmbedding):
            if layer.spec.name in layers:
                raise ValueError(f"The model has two supernet embeddings of {layer.spec.name!r}.")
            layers[layer.spec.name] = layer
    return layers


def set_choices(module: nn.Module, space: SearchSpace, allocations: Sequence[Allocation]) -> None:
    """Let all supernet embeddings of a model share their batches among some allocations.

    Args:
        module: A model with a :class:`SupernetEmbedding` for every feature of the space.
        space: The space that the allocations are from.
        allocations: The choices, one for each run of a batch.

    Raises:
        ValueError: If there is no allocation or no such layer, the space has not the features of
            all of them, an allocation is not of this space, or has codes where a layer was made
            for float32 alone.

    Example:
        >>> from optuna_nis import EmbeddingSpec
        >>> space = SearchSpace([EmbeddingSpec("user", 100, 8)])
        >>> model = nn.ModuleList([SupernetEmbedding(space.specs[0])])
        >>> set_choices(model, space, [space.full(), space.full()])
        >>> model[0].num_choices
        2
    """
    if not allocations:
        raise ValueError("`allocations` must hold a choice for each run of a batch, got none.")
    layers = supernet_layers(module)
    if not layers:
        raise ValueError(
            f"`module` must have supernet layers, {type(module).__name__} has none: call "
            "`make_searchable(model)` first."
        )
    if unknown := sorted(layers.keys() - {spec.name for spec in space.specs}):
        raise ValueError(
            "`space` must have the features of all supernet layers of `module`, it lacks "
            f"{unknown}."
        )
    sizes = [space.sizes(allocation) for allocation in allocations]
    given = []
    for name, layer in layers.items():
        own = np.array([choice[name] for choice in sizes], dtype=np.int64)
        shared = [allocation[name].num_shared for allocation in allocations]
        given.append((layer, own[:, :, 0], own[:, :, 1], shared))
    set_sizes(given)
