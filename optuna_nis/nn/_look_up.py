"""The rows of ids in tiers of different widths, with a backward pass written by hand.

Left to autograd, every tier would write a whole output and read a whole gradient. Here each row is
written and read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from optuna_nis.nn._rounding import as_stored, spread_gradient
from optuna_nis.nn._tier import Tier


def look_up(
    ranks: Tensor,
    tiers: Sequence[Tier],
    projection: Tensor | None,
    output_dim: int,
    sparse: bool,
) -> Tensor:
    """Look ids up in tiers, and project them.

    Args:
        ranks: Shape ``(n,)``; ids beyond the last tier give zeros.
        tiers: At least one.
        projection: The projection of the widest rows to the width of the output, None if all are
            as wide.
        output_dim: Width of the output.
        sparse: Whether the gradients of the tables are sparse.

    Returns:
        Shape ``(n, output_dim)``, of the type of the tables.
    """
    output: Tensor = _LookUp.apply(  # type: ignore[no-untyped-call]
        ranks,
        output_dim,
        sparse,
        [tier.bits for tier in tiers],
        [tier.spread_scale() for tier in tiers],
        projection,
        *(tier.weight for tier in tiers),
        *(tier.spread for tier in tiers),
    )
    return output


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ranks: Tensor,
        output_dim: int,
        sparse: bool,
        bits: Sequence[int],
        scales: Sequence[float | None],
        projection: Tensor | None,
        *trained: Any,
    ) -> Tensor:
        weights, spreads = trained[: len(bits)], trained[len(bits) :]
        saved: list[Tensor | None] = []
        *parts, (beyond, _) = split(ranks, [len(weight) for weight in weights])
        alone = projection is None and [*bits] == [32]
        if alone:
            # The rows of ids beyond the tier are overwritten.
            output = _rows(weights[0], ranks.clamp(max=len(weights[0]) - 1))
            if len(beyond):
                output.index_fill_(0, beyond, 0.0)
        else:
            output = weights[0].new_zeros(len(ranks), output_dim)
        for index, (where, ids) in enumerate(parts):
            rows = slopes = None
            if not alone:
                rows, slopes = as_stored(
                    _rows(weights[index], ids),
                    spreads[index],
                    bits[index],
                    sloped=scales[index] is not None,
                )
                wide = rows if projection is None else rows @ projection[: rows.shape[1]]
                output.index_copy_(0, where, wide)
            saved += [where, ids, None if projection is None else rows, slopes, spreads[index]]
        ctx.save_for_backward(projection, *saved)
        ctx.shapes = [weight.shape for weight in weights]
        ctx.sparse = sparse
        ctx.scales = scales
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        projection, *saved = ctx.saved_tensors
        of_projection = None if projection is None else torch.zeros_like(projection)
        of_weights: list[Tensor | None] = []
        of_spreads: list[Tensor | None] = []
        with full_precision(grad):
            for index, shape in enumerate(ctx.shapes):
                where, ids, rows, slopes, spread = saved[5 * index : 5 * index + 5]
                values = grad.index_select(0, where)
                if projection is not None and of_projection is not None:
                    of_projection[: shape[1]].addmm_(rows.T, values)
                wanted = ctx.needs_input_grad[6 + index]
                if projection is not None and (wanted or slopes is not None):
                    values = values @ projection[: shape[1]].T
                table_grad = _table_grad(ids, values, shape, ctx.sparse) if wanted else None
                of_weights.append(table_grad)
                of_spread = None
                if slopes is not None:
                    of_spread = spread_gradient(values, slopes, spread, ctx.scales[index])
                of_spreads.append(of_spread)
        return (None, None, None, None, None, of_projection, *of_weights, *of_spreads)


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Products as precise as the tables are, as looking up is: autocast is for what comes after.

    Args:
        tensor: On the device that it is meant for.
    """
    kind = tensor.device.type
    # Entering autocast takes longer than a small product, even with nothing to switch off.
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def split(ranks: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Take ranks apart by which of some tables, one after the other, they are in.

    Args:
        ranks: Shape ``(n,)``.
        sizes: Number of rows of each table.

    Returns:
        For each table where its ranks are, and which of its rows; at last those beyond all.
    """
    if ranks.device.type == "cpu":
        return _split_in_turns(ranks, sizes)
    # The shapes depend on the data, so the device must be waited for: once for all tables.
    ends = list(accumulate(sizes))
    table = torch.zeros_like(ranks)
    for end in ends:
        table += ranks >= end
    order = table.sort(stable=True).indices
    counts = torch.stack([(table == index).sum() for index in range(len(sizes))]).cpu().tolist()
    places = torch.split(order, [*counts, len(ranks) - sum(counts)])
    starts = [0, *ends]
    return [(where, ranks.index_select(0, where) - start) for where, start in zip(places, starts)]


def _split_in_turns(ranks: Tensor, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    # Most ids are in the first tiers, so each tier only looks at those that are left over.
    parts = []
    places, left = None, ranks
    for size in sizes:
        inside = left < size
        parts.append(_taken(places, left, inside))
        places, left = _taken(places, left, ~inside)
        left -= size
    assert places is not None
    return [*parts, (places, left)]


def _rows(weight: Tensor, ids: Tensor) -> Tensor:
    if weight.device.type == "cpu" and weight.dtype is torch.float32:
        # As bags of one id each: that fetches rows of large tables ahead, index_select does not.
        bags = torch.arange(len(ids), dtype=ids.dtype)
        rows: Tensor = torch.embedding_bag(weight.detach(), ids, bags)[0]
        return rows
    return weight.index_select(0, ids)


def _taken(places: Tensor | None, ids: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
    """Places in the batch and ids of some of the ids that are left."""
    where = which.nonzero().squeeze(1)
    return (where if places is None else places.index_select(0, where)), ids.index_select(0, where)


def _table_grad(ids: Tensor, values: Tensor, shape: torch.Size, sparse: bool) -> Tensor:
    if sparse:
        return torch.sparse_coo_tensor(ids.unsqueeze(0), values, shape, check_invariants=False)
    grad: Tensor = torch.ops.aten.embedding_dense_backward(values, ids, shape[0], -1, False)
    return grad
