"""Bags of ids in tiers of different widths, with a backward pass written by hand.

Left to autograd, sparse gradients have a row for every id of every bag. Here they have one for
each row that is in any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from optuna_nis.nn._distinct import Distinct, distinct
from optuna_nis.nn._look_up import full_precision, split, table_gradient
from optuna_nis.nn._rounding import as_stored, spread_gradient
from optuna_nis.nn._tier import Tier


def pool(
    ranks: Tensor,
    starts: Tensor,
    per_sample_weights: Tensor | None,
    tiers: Sequence[Tier],
    projection: Tensor | None,
    output_dim: int,
    highest: int,
    sparse: bool,
) -> Tensor:
    """Look bags of ids up in tiers, add their rows, and project the sums.

    Args:
        ranks: The ids of all bags, shape ``(n,)``; those beyond the last tier give zeros.
        starts: Where each bag starts, shape ``(bags,)``.
        per_sample_weights: What rows are multiplied by, shape ``(n,)``; it gets no gradient.
        tiers: As for :func:`~optuna_nis.nn._look_up.look_up`, on the CPU.
        projection: As there.
        output_dim: As there.
        highest: As there.
        sparse: As there.

    Returns:
        Shape ``(bags, output_dim)``, of the type of the tables.
    """
    output: Tensor = _Pool.apply(  # type: ignore[no-untyped-call]
        ranks.long(),
        starts.long(),
        per_sample_weights,
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


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        ranks: Tensor,
        starts: Tensor,
        per_sample: Tensor | None,
        output_dim: int,
        highest: int,
        sparse: bool,
        bits: Sequence[int],
        scales: Sequence[float | None],
        projection: Tensor | None,
        *trained: Any,
    ) -> Tensor:
        weights, spreads = trained[: len(bits)], trained[len(bits) :]
        shapes = [weight.shape for weight in weights]
        sizes = [shape[0] for shape in shapes]
        found = None
        if any(ctx.needs_input_grad) or min(bits) < 32:
            found = distinct(ranks, sizes, highest)
        output: Tensor = weights[0].new_zeros(starts.shape[0], output_dim)
        saved: list[Tensor | None] = []
        for index, (where, ids) in enumerate(split(ranks, sizes)[:-1]):
            rows, slopes = weights[index].detach(), None
            if bits[index] < 32:
                assert found is not None
                rows, slopes = as_stored(
                    rows.index_select(0, found.rows[index]),
                    spreads[index],
                    bits[index],
                    sloped=scales[index] is not None,
                )
                ids = found.inverse.index_select(0, where) - sum(found.sizes[:index])
            own = None if per_sample is None else per_sample.index_select(0, where)
            sums = _bags(rows, ids, torch.searchsorted(where, starts), own)
            if projection is None:
                output += sums
            else:
                output.addmm_(sums, projection[: sums.shape[1]])
            saved += [None if projection is None else sums, slopes, spreads[index]]
        ctx.save_for_backward(projection, per_sample, starts, *saved)
        ctx.found, ctx.shapes, ctx.sparse, ctx.scales = found, shapes, sparse, scales
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        projection, per_sample, starts, *saved = ctx.saved_tensors
        found: Distinct = ctx.found
        order = found.order
        # The bag of each place of the batch, in the order of the rows.
        lengths = starts.diff(append=starts.new_full((1,), order.shape[0]))
        bags = torch.arange(starts.shape[0], device=starts.device).repeat_interleave(lengths)
        bags = bags.index_select(0, order)
        own = None if per_sample is None else per_sample.index_select(0, order)
        of_projection = torch.zeros_like(projection) if ctx.needs_input_grad[8] else None
        of_weights: list[Tensor | None] = []
        of_spreads: list[Tensor | None] = []
        with full_precision(grad):
            parts = torch.split(found.starts, found.sizes)
            for index, (ids, part, shape) in enumerate(zip(found.rows, parts, ctx.shapes)):
                sums, slopes, spread = saved[3 * index : 3 * index + 3]
                if of_projection is not None:
                    of_projection[: shape[1]].addmm_(sums.t(), grad)
                wanted = ctx.needs_input_grad[9 + index]
                of_weight = of_spread = None
                if wanted or slopes is not None:
                    of_sums = grad if projection is None else grad @ projection[: shape[1]].t()
                    places = slice(_first(parts[index:], order), _first(parts[index + 1 :], order))
                    weights = None if own is None else own[places]
                    values = _bags(of_sums, bags[places], part - places.start, weights)
                    if wanted:
                        of_weight = table_gradient(ids, values, shape, ctx.sparse)
                    if slopes is not None:
                        of_spread = spread_gradient(values, slopes, spread, ctx.scales[index])
                of_weights.append(of_weight)
                of_spreads.append(of_spread)
        return (*[None] * 8, of_projection, *of_weights, *of_spreads)


def _first(starts: Sequence[Tensor], order: Tensor) -> int:
    """Where in the order the first of some tables starts, of which some may have no rows."""
    return next((int(part[0]) for part in starts if len(part)), len(order))


def _bags(rows: Tensor, ids: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
    """The sums of the rows of bags."""
    sums: Tensor = torch.embedding_bag(rows, ids, starts, per_sample_weights=weights)[0]
    return sums
