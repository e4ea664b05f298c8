"""The rows of ids in tiers of different widths, with a backward pass written by hand.

Left to autograd, every tier would write a whole output and read a whole gradient. Here each row is
written and read once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def look_up(
    ranks: Tensor,
    weights: Sequence[Tensor],
    projection: Tensor | None,
    output_dim: int,
    sparse: bool,
) -> Tensor:
    """Look ids up in tiers, and project them.

    Args:
        ranks: Shape ``(n,)``; ids beyond the last tier give zeros.
        weights: The tables of the tiers.
        projection: The projection of the widest rows to the width of the output, None if all are
            as wide.
        output_dim: Width of the output.
        sparse: Whether the gradients of the tables are sparse.

    Returns:
        Shape ``(n, output_dim)``.
    """
    if not weights:
        return torch.zeros(len(ranks), output_dim, device=ranks.device)
    output: Tensor = _LookUp.apply(  # type: ignore[no-untyped-call]
        ranks, output_dim, sparse, projection, *weights
    )
    return output


class _LookUp(torch.autograd.Function):
    # Most ids are in the first tiers, so each tier only looks at those that are left over.

    @staticmethod
    def forward(
        ctx: Any,
        ranks: Tensor,
        output_dim: int,
        sparse: bool,
        projection: Tensor | None,
        *weights: Tensor,
    ) -> Tensor:
        saved: list[Tensor | None] = []
        with _full_precision(ranks):
            if projection is None:
                # One tier; the rows of ids beyond it are overwritten.
                output = _rows(weights[0], ranks.clamp(max=len(weights[0]) - 1))
            else:
                output = weights[0].new_zeros(len(ranks), output_dim)
            places, left = None, ranks
            for weight in weights:
                inside = left < len(weight)
                where, ids = _taken(places, left, inside)
                rows = None
                if projection is not None:
                    rows = _rows(weight, ids)
                    output.index_copy_(0, where, rows @ projection[: weight.shape[1]])
                saved += [where, ids, rows]
                places, left = _taken(places, left, ~inside)
                left -= len(weight)
            if projection is None and places is not None and len(places):
                output.index_fill_(0, places, 0.0)
        ctx.save_for_backward(projection, *saved)
        ctx.shapes = [weight.shape for weight in weights]
        ctx.sparse = sparse
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        projection, *saved = ctx.saved_tensors
        of_projection = None if projection is None else torch.zeros_like(projection)
        of_weights: list[Tensor | None] = []
        with _full_precision(grad):
            for index, shape in enumerate(ctx.shapes):
                where, ids, rows = saved[3 * index : 3 * index + 3]
                values = grad.index_select(0, where)
                used = None if projection is None else projection[: shape[1]]
                if of_projection is not None:
                    of_projection[: shape[1]].addmm_(rows.T, values)
                if not ctx.needs_input_grad[4 + index]:
                    of_weights.append(None)
                    continue
                if used is not None:
                    values = values @ used.T
                of_weights.append(_table_grad(ids, values, shape, ctx.sparse))
        return (None, None, None, of_projection, *of_weights)


def _full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    # Entering autocast takes longer than a small product, even with nothing to switch off.
    kind = tensor.device.type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


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
