"""Rows of supernet layers under their choices, masked and projected in one operation for all.

With a backward pass written by hand: left to autograd, each of a dozen operations on some hundred
rows would take longer to be noted than to be done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from optuna_nis.nn._gather import add_rows, look_up
from optuna_nis.nn._look_up import full_precision


class Wanted(NamedTuple):
    """The rows that are wanted of a layer.

    Attributes:
        weight: The full table, shape ``(num_rows, columns)``.
        projection: Shape ``(columns, columns)``.
        masks: What choices keep, of which nothing is learned, shape ``(m, columns)``.
        own: Which of the masks each row has, shape ``(n,)``.
        rows: Which rows, shape ``(n,)``; None for all of them, once for each choice.
    """

    weight: Tensor
    projection: Tensor
    masks: Tensor
    own: Tensor
    rows: Tensor | None

    def kept(self) -> Tensor:
        """What is kept of them, not projected, shape ``(n, columns)``."""
        masks = self.masks.index_select(0, self.own)
        if self.rows is not None:
            return look_up(self.rows, self.weight) * masks
        return (self.weight * masks.view(-1, *self.weight.shape)).view_as(masks)


def masked_rows(wanted: Sequence[Wanted]) -> Tensor:
    """What choices keep of the rows of some layers, projected, one layer after the other.

    Args:
        wanted: At least one, all with as many columns and of one type.

    Returns:
        Shape ``(sum of n, columns)``.
    """
    trained = [each.weight for each in wanted] + [each.projection for each in wanted]
    with full_precision(trained[0]):
        found: Tensor = _MaskedRows.apply(wanted, *trained)  # type: ignore[no-untyped-call]
    return found


class _MaskedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wanted: Sequence[Wanted], *trained: Tensor) -> Tensor:
        columns, sizes = trained[0].shape[1], [len(each.own) for each in wanted]
        masks, kept, output = trained[0].new_empty(3, sum(sizes), columns).unbind()
        parts = zip(*(torch.split(each, sizes) for each in (masks, kept, output)))
        for each, (mask, own, projected) in zip(wanted, parts):
            torch.index_select(each.masks, 0, each.own, out=mask)
            if each.rows is None:
                shape = -1, *each.weight.shape
                torch.mul(each.weight, mask.view(shape), out=own.view(shape))
            else:
                torch.index_select(each.weight, 0, each.rows, out=own)
                own.mul_(mask)
            torch.mm(own, each.projection, out=projected)
        ctx.sizes, ctx.shapes = sizes, [each.weight.shape for each in wanted]
        rows = [each.rows for each in wanted]
        ctx.save_for_backward(masks, kept, *trained[len(wanted) :], *rows)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        masks, kept, *others = ctx.saved_tensors
        number = len(ctx.sizes)
        projections, rows = others[:number], others[number:]
        wanted = ctx.needs_input_grad[1:]
        of_weights: list[Tensor | None] = [None] * number
        of_projections: list[Tensor | None] = [None] * number
        values = torch.empty_like(kept)
        pairs = [torch.split(each, ctx.sizes) for each in (kept, grad, values)]
        with full_precision(grad):
            for index, (own, slopes, found) in enumerate(zip(*pairs)):
                if wanted[number + index]:
                    of_projections[index] = own.t() @ slopes
                if wanted[index]:
                    torch.mm(slopes, projections[index].t(), out=found)
            values *= masks
            for index, found in enumerate(pairs[2]):
                if wanted[index]:
                    of_weights[index] = _added(found, rows[index], ctx.shapes[index])
        return None, *of_weights, *of_projections


def _added(values: Tensor, rows: Tensor | None, shape: torch.Size) -> Tensor:
    """The gradient of a table, of which rows come under several choices."""
    if rows is None:
        return values.view(-1, *shape).sum(0)
    total = values.new_zeros(shape)
    add_rows(total, rows, values)
    return total
