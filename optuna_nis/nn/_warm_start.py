"""Giving a model of chosen sizes the weights of the supernet that it was chosen from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from optuna_nis.nn._stored import check_not_stored
from optuna_nis.nn.choices import supernet_layers
from optuna_nis.nn.multi_size import sized_layers
from optuna_nis.nn.swapped import SwappedLayer


def warm_start(model: nn.Module, supernet: nn.Module) -> None:
    """Give a model with multi-size layers the weights of a supernet, and its buffers.

    Args:
        model: A model of chosen sizes, changed in place.
        supernet: The supernet that it was chosen from.

    Raises:
        ValueError: If the parameters outside the embeddings are not the same in both, an
            embedding is of another feature, it sorts its ids in another order, or it is frozen or
            quantised. Nothing is changed then.

    Example:
        >>> from optuna_nis.nn import apply_allocation, make_searchable
        >>> supernet, model = (nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 1)) for _ in "12")
        >>> space = make_searchable(supernet, budget="50%")
        >>> warm_start(apply_allocation(model, space.full()), supernet)
        >>> torch.equal(model[1].weight, supernet[1].weight)
        True
    """
    embeddings = supernet_layers(supernet)
    layers = sized_layers(model)
    check_not_stored(layers, "and cannot be given weights")
    shared = _outside(supernet, list(embeddings.values()))
    own = _outside(model, layers)
    if {n: p.shape for n, p in shared.items()} != {n: p.shape for n, p in own.items()}:
        raise ValueError(
            "The model must have the parameters of the supernet outside its embeddings, they "
            f"differ in {sorted(set(shared) ^ set(own)) or 'their shapes'}."
        )
    for layer in layers:
        if layer.name not in embeddings:
            raise ValueError(
                f"The model must have the features {sorted(embeddings)} of the supernet, got a "
                f"layer of {layer.name!r}."
            )
        if not layer.same_order(embeddings[layer.name]):
            raise ValueError(
                f"The model must sort the ids of {layer.name!r} as the supernet does: build "
                "both with the same counts."
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(shared[name])
        _copy_buffers(model, supernet)
    for layer in layers:
        embeddings[layer.name].copy_to(layer)


def _copy_buffers(model: nn.Module, supernet: nn.Module) -> None:
    """Copy what a model has beside what is trained: buffers, and constant rows of padding."""
    known = {_plain(name): buffer for name, buffer in supernet.named_buffers()}
    for name, buffer in model.named_buffers():
        other_buffer = known.get(_plain(name))
        if other_buffer is not None and other_buffer.shape == buffer.shape:
            buffer.copy_(other_buffer)
    others = {_plain(name): module for name, module in supernet.named_modules()}
    for name, layer in model.named_modules():
        other = others.get(_plain(name))
        if not isinstance(layer, SwappedLayer) or not isinstance(other, SwappedLayer):
            continue
        # A row of zeros is not kept.
        if other._padding_row is None and layer._padding_row is not None:
            layer._padding_row.zero_()
        elif other._padding_row is not None and layer._padding_row is None:
            layer._padding_row = other._padding_row.clone()


def _outside(model: nn.Module, layers: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Parameters and statistics (of batch normalisation) outside the embeddings."""
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    tensors: dict[str, Tensor] = {
        _plain(name): p for name, p in model.named_parameters() if id(p) not in inside
    }
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for name, buffer in module.named_buffers(path, recurse=False):
                tensors[_plain(name)] = buffer
    return tensors


def _plain(name: str) -> str:
    """A name without what compiling a part of a model has put into it."""
    return name.replace("_orig_mod.", "")
