"""Plain layers of torch in place of multi-size ones, for serving code that cannot change."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from optuna_nis.nn import (
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    MultiSizeLinear,
    SwappedEmbeddingBag,
    swapped_layers,
)
from optuna_nis.nn._layers import Model, check_sized, replace_layers
from optuna_nis.nn.multi_size import MultiSize
from optuna_nis.nn.swapped import restore


@overload
def to_dense(model: MultiSizeEmbedding) -> nn.Embedding: ...
@overload
def to_dense(model: MultiSizeEmbeddingBag) -> nn.EmbeddingBag: ...
@overload
def to_dense(model: MultiSizeLinear) -> nn.Linear: ...
@overload
def to_dense(model: Model) -> Model: ...
@torch.no_grad()
def to_dense(model: nn.Module) -> nn.Module:
    """Turn multi-size layers into the plain layers of torch that give the same output, in place.

    Rows are by the users' ids, projected; ids out of vocabulary have zeros. The memory is that of
    the full tables again.

    A layer that :func:`~optuna_nis.nn.apply_allocation` swapped is what it was before, an
    :class:`torch.nn.Embedding`, :class:`torch.nn.EmbeddingBag` or :class:`torch.nn.Linear` with a
    ``weight`` of the same shape and the same settings, tied if it was, so the ``state_dict`` of
    the model loads into one of the original code. A :class:`~optuna_nis.nn.MultiSizeLinear` gives
    a :class:`torch.nn.Linear`. A :class:`~optuna_nis.nn.MultiSizeEmbedding` gives a layer with one
    row more, the id ``num_embeddings`` for unknown and padding, which is its ``padding_idx``; bags
    do not count it in a mean, as before.

    Args:
        model: A model, or one layer.

    Returns:
        The model; of a single :class:`~optuna_nis.nn.MultiSizeEmbedding`,
        :class:`~optuna_nis.nn.MultiSizeEmbeddingBag` or
        :class:`~optuna_nis.nn.MultiSizeLinear`, which is left as it is, the plain layer.

    Raises:
        ValueError: If there is no multi-size layer or a layer is still one of a supernet.

    Example:
        >>> from optuna_nis import TableAllocation, Tier
        >>> table = TableAllocation("user", 100, 16, (Tier(10, 16), Tier(30, 4)))
        >>> layer = MultiSizeEmbedding(table)
        >>> dense = to_dense(layer)
        >>> dense
        Embedding(101, 16, padding_idx=100)
        >>> ids = torch.tensor([0, 20, 99, 100])
        >>> torch.allclose(dense(ids), layer(ids))
        True
    """
    check_sized(model)
    shared: dict[int, nn.Parameter] = {}
    # A bag does not look its row of padding up, but what is tied to it does.
    for layer in sorted(swapped_layers(model), key=lambda e: isinstance(e, SwappedEmbeddingBag)):
        key = id(layer.fields)
        if key not in shared:
            wanted = any(p.requires_grad for p in layer.fields.parameters())
            first = next(layer.fields.parameters(), None)
            weight = layer.weight if first is None else layer.weight.to(first.dtype)
            shared[key] = nn.Parameter(weight.contiguous(), requires_grad=wanted)
        restore(layer, shared[key])
    dense = replace_layers(model, MultiSizeLinear, _linear)
    return replace_layers(dense, MultiSize, _plain)


def weight_by_id(layer: MultiSize) -> Tensor:
    """The table as the model sees it, by the users' ids and with zeros for the id unknown.

    Returns:
        Shape ``(num_embeddings + 1, embedding_dim)``.
    """
    weight = layer.rows()
    weight = torch.cat([weight, weight.new_zeros(1, layer.embedding_dim)])
    first = next(layer.parameters(), None)
    return weight if first is None else weight.to(first.dtype)


def _linear(layer: MultiSizeLinear) -> nn.Linear:
    plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, "meta")
    weight = layer.weight.to(layer.field_layers()[0].like().dtype)
    wanted = any(p.requires_grad for p in layer.fields.parameters())
    plain.weight = nn.Parameter(weight.contiguous(), requires_grad=wanted)
    if layer.bias is not None:
        bias = layer.bias.detach().clone()
        plain.bias = nn.Parameter(bias, requires_grad=layer.bias.requires_grad)
    return plain


def _plain(layer: MultiSize) -> nn.Module:
    weight = weight_by_id(layer)
    padding, wanted = layer.num_embeddings, any(p.requires_grad for p in layer.parameters())
    if isinstance(layer, MultiSizeEmbeddingBag):
        return nn.EmbeddingBag.from_pretrained(
            weight, freeze=not wanted, padding_idx=padding, sparse=layer.sparse, mode=layer.mode
        )
    plain: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
        weight, freeze=not wanted, padding_idx=padding, sparse=layer.sparse
    )
    return plain
