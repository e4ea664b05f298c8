"""Giving a model of chosen sizes the weights of the supernet that it was chosen from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from optuna_nis.nn.multi_size import sized_layers
from optuna_nis.nn.supernet import supernet_layers


def warm_start(model: nn.Module, supernet: nn.Module) -> None:
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
