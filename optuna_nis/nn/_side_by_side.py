"""The rows that examples have of several layers, with one operation for all that can share one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor, nn

from optuna_nis.nn._gather import gather, gathers
from optuna_nis.nn._supernet_rows import Wanted as MaskedRows
from optuna_nis.nn._supernet_rows import masked_rows
from optuna_nis.nn._tier_rows import Wanted as TierRows
from optuna_nis.nn._tier_rows import tier_rows
from optuna_nis.nn.multi_size import MultiSizeEmbedding
from optuna_nis.nn.supernet import SupernetEmbedding

_T = TypeVar("_T")


def rows_side_by_side(
    pairs: Sequence[tuple[nn.Module, Tensor]], alone: Callable[[int], Tensor]
) -> Tensor:
    """The rows that examples have of several layers.

    Args:
        pairs: Layers that give rows of one width, at least one, and the ids of each, of shape
            ``(batch,)``, or of another for layers that are to be asked alone.
        alone: Gives the rows of a layer by its number, shape ``(batch, width)``. It is asked for
            those that have no faster way.

    Returns:
        Shape ``(batch, layers, width)``.
    """
    together = _together(pairs)
    parts = []
    for index, pair in enumerate(pairs):
        found = together[index] if index in together else _table(*pair)
        parts.append((alone(index), None) if found is None else found)
    if all(places is None for _, places in parts):
        return torch.stack([rows for rows, _ in parts], 1)
    tables, places = zip(*parts)
    return gather(tables, places)


def has_hooks(layer: nn.Module) -> bool:
    """Whether somebody looks at what a layer is given or gives."""
    return bool(
        layer._forward_pre_hooks
        or layer._forward_hooks
        or layer._backward_pre_hooks
        or layer._backward_hooks
    )


def _table(layer: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """A table of a layer and which of its rows examples have, or their rows and None."""
    if ids.dim() != 1 or has_hooks(layer):
        return None
    if isinstance(layer, SupernetEmbedding) and layer.mode is not None:
        return None
    if isinstance(layer, SupernetEmbedding | MultiSizeEmbedding) and gathers(layer.like()):
        return layer.parts(ids)
    return None


def _together(pairs: Sequence[tuple[nn.Module, Tensor]]) -> dict[int, tuple[Tensor, Tensor]]:
    """The same by the numbers of layers, from one table for those of a supernet, one for tiers."""
    own = {
        index: (layer, ids)
        for index, (layer, ids) in enumerate(pairs)
        if ids.dim() == 1 and not has_hooks(layer)
    }
    masked = {
        index: layer.wanted(ids)
        for index, (layer, ids) in own.items()
        if isinstance(layer, SupernetEmbedding) and layer.mode is None
    }
    sized = {
        index: (layer, ids)
        for index, (layer, ids) in own.items()
        if isinstance(layer, MultiSizeEmbedding)
    }
    # One alone is as fast by itself.
    tiered = {index: layer.wanted(ids) for index, (layer, ids) in sized.items() if len(sized) > 1}
    return _of_supernets(_known(masked)) | _of_tiers(_known(tiered))


def _known(found: Mapping[int, _T | None]) -> dict[int, _T]:
    return {index: each for index, each in found.items() if each is not None}


def _of_supernets(
    wanted: Mapping[int, tuple[MaskedRows, Tensor]],
) -> dict[int, tuple[Tensor, Tensor]]:
    if not wanted:
        return {}
    table = masked_rows([each for each, _ in wanted.values()])
    starts = accumulate((len(each.own) for each, _ in wanted.values()), initial=0)
    pairs = zip(starts, wanted.items())
    return {index: (table, where + start) for start, (index, (_, where)) in pairs}


def _of_tiers(wanted: Mapping[int, TierRows]) -> dict[int, tuple[Tensor, Tensor]]:
    if not wanted:
        return {}
    table, places = tier_rows([*wanted.values()])
    return {index: (table, where) for index, where in zip(wanted, places)}
