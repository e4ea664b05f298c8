"""The rows of ids in tiers of different widths, with a backward pass written by hand.

Left to autograd, every tier would write a whole output and read a whole gradient. Here each row is
written and read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from optuna_nis.nn._distinct import Distinct, distinct
from optuna_nis.nn._rounding import as_stored, spread_gradient
from optuna_nis.nn._tier import Tier


def look_up(
    ranks: Tensor,
    tiers: Sequence[Tier],
    projection: Tensor | None,
    output_dim: int,
    highest: int,
    sparse: bool,
) -> Tensor:
    """Look ids up in tiers, and project them.

    Args:
        ranks: Shape ``(n,)``; ids beyond the last tier give zeros.
        tiers: At least one.
        projection: The projection of the widest rows to the width of the output, None if all are
            as wide.
        output_dim: Width of the output.
        highest: The highest rank there may be.
        sparse: Whether the gradients of the tables are sparse.

    Returns:
        Shape ``(n, output_dim)``, of the type of the tables.
    """
    output: Tensor = _LookUp.apply(  # type: ignore[no-untyped-call]
        ranks.long(),
        output_dim,
        highest,
        sparse,
        [tier.bits for tier in tiers],
        [tier.spread_scale() for tier in tiers],
        projection,
        *(tier.weight for tier in tiers),
        *(tier.spread for tier in tiers),
    )
    return output


def sparse_rows(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of one table, whose sparse gradient has each of them once.

    As :func:`torch.nn.functional.embedding`, after which an optimiser has to add up the gradients
    of all places that have a row.

    Args:
        ids: Shape ``(*,)``, in range.
        weight: Shape ``(rows, width)``.

    Returns:
        Shape ``(*, width)``.
    """
    rows, width = weight.shape
    found: Tensor = _LookUp.apply(  # type: ignore[no-untyped-call]
        ids.reshape(-1).long(), width, rows - 1, True, [32], [None], None, weight, None
    )
    return found.view(*ids.shape, width)


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ranks: Tensor,
        output_dim: int,
        highest: int,
        sparse: bool,
        bits: Sequence[int],
        scales: Sequence[float | None],
        projection: Tensor | None,
        *trained: Any,
    ) -> Tensor:
        weights, spreads = trained[: len(bits)], trained[len(bits) :]
        ctx.shapes = [weight.shape for weight in weights]
        ctx.sparse, ctx.scales = sparse, scales
        sizes = [shape[0] for shape in ctx.shapes]
        ctx.find = partial(distinct, tables=sizes, highest=highest)
        if projection is None and [*bits] == [32]:
            # Nothing is computed for a row, so all of them are taken as they come.
            ctx.save_for_backward(None, ranks, None, None, None)
            return _rows_alone(ranks, weights[0])
        found = ctx.find(ranks)
        table: Tensor = weights[0].new_empty(sum(found.sizes), output_dim)
        *parts, beyond = torch.split(table, found.sizes)
        saved: list[Tensor | None] = []
        for index, (ids, part) in enumerate(zip(found.rows, parts)):
            rows, slopes = as_stored(
                weights[index].index_select(0, ids),
                spreads[index],
                bits[index],
                sloped=scales[index] is not None,
            )
            if projection is None:
                part.copy_(rows)
            else:
                torch.mm(rows, projection[: rows.shape[1]], out=part)
            saved += [None if projection is None else rows, slopes, spreads[index]]
        beyond.zero_()
        ctx.find = lambda _: found
        ctx.save_for_backward(projection, None, *saved)
        return table.index_select(0, found.inverse)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        projection, ranks, *saved = ctx.saved_tensors
        found: Distinct = ctx.find(ranks)
        of_projection = torch.zeros_like(projection) if ctx.needs_input_grad[6] else None
        of_weights: list[Tensor | None] = []
        of_spreads: list[Tensor | None] = []
        with full_precision(grad):
            # A bag for each row: the gradients of all places that have it.
            sums = torch.embedding_bag(grad, found.order, found.starts)[0]
            parts = torch.split(sums, found.sizes)
            for index, (ids, values, shape) in enumerate(zip(found.rows, parts, ctx.shapes)):
                rows, slopes, spread = saved[3 * index : 3 * index + 3]
                wanted = ctx.needs_input_grad[7 + index]
                if of_projection is not None:
                    of_projection[: shape[1]].addmm_(rows.t(), values)
                if projection is not None and (wanted or slopes is not None):
                    values = values @ projection[: shape[1]].t()
                of_weight = of_spread = None
                if wanted:
                    of_weight = table_gradient(ids, values, shape, ctx.sparse)
                if slopes is not None:
                    of_spread = spread_gradient(values, slopes, spread, ctx.scales[index])
                of_weights.append(of_weight)
                of_spreads.append(of_spread)
        return (*[None] * 6, of_projection, *of_weights, *of_spreads)


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
    # Most ids are in the first tiers, so each tier only looks at those that are left over. Numpy
    # finds where something holds several times as fast as torch.
    parts = []
    left = ranks.numpy()
    places = np.arange(len(left))
    for size in sizes:
        inside = left < size
        here, others = np.flatnonzero(inside), np.flatnonzero(~inside)
        parts.append((places[here], left[here]))
        places, left = places[others], left[others]
        left -= size
    return [
        (torch.from_numpy(where), torch.from_numpy(ids)) for where, ids in [*parts, (places, left)]
    ]


def _rows_alone(ranks: Tensor, weight: Tensor) -> Tensor:
    """The rows of one table, zeros for ids beyond it."""
    end = weight.shape[0]
    inside, beyond = ranks.clamp(max=end - 1), ranks >= end
    rows: Tensor
    if weight.device.type == "cpu" and weight.dtype is torch.float32:
        # As bags of one id each: that fetches rows of large tables ahead, index_select does not.
        places = torch.arange(inside.shape[0], device=inside.device)
        rows = torch.embedding_bag(weight.detach(), inside, places)[0]
    else:
        rows = weight.index_select(0, inside)
    if beyond.device.type != "cpu":
        # Where they are, the device would have to be waited for.
        return rows.masked_fill_(beyond.unsqueeze(1), 0.0)
    return rows.index_fill_(0, beyond.nonzero().squeeze(1), 0.0)


def table_gradient(ids: Tensor, values: Tensor, shape: torch.Size, sparse: bool) -> Tensor:
    """The gradient of a table, of distinct ids."""
    if sparse:
        return torch.sparse_coo_tensor(
            ids.unsqueeze(0), values, shape, is_coalesced=True, check_invariants=False
        )
    return values.new_zeros(shape).index_copy_(0, ids, values)
