"""Rows of layers with tiers, looked up and projected in one operation for all.

With compiled loops: a model has dozens of tiers of which a batch wants some hundred rows each, and
left to torch each of a dozen operations on them would take longer to be noted than to be done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from optuna_nis.nn import _native
from optuna_nis.nn._distinct import distinct
from optuna_nis.nn._look_up import full_precision, table_gradient
from optuna_nis.nn._native import Multiplied, Taken
from optuna_nis.nn._projected import project, project_back


class Wanted(NamedTuple):
    """The rows that are wanted of a layer.

    Attributes:
        weights: The tables of its tiers, each of shape ``(rows, width)``; at least one.
        projection: Shape ``(widest, columns)``, None if all are as wide as the output.
        ranks: Which rows, one tier after the other, shape ``(n,)``; zeros for those beyond all.
        sparse: Whether the gradients of the tables are sparse.
    """

    weights: Sequence[Tensor]
    projection: Tensor | None
    ranks: Tensor
    sparse: bool

    @property
    def columns(self) -> int:
        """Width of the output."""
        return int((self.weights[0] if self.projection is None else self.projection).shape[1])


def joins(wanted: Wanted) -> bool:
    """Whether compiled loops are there for the rows that are wanted of a layer."""
    tables = wanted.weights if wanted.projection is None else [*wanted.weights, wanted.projection]
    return _native.multiplies(tables)


def tier_rows(wanted: Sequence[Wanted]) -> tuple[Tensor, Sequence[Tensor]]:
    """The distinct rows that some layers are to give, projected.

    Args:
        wanted: At least one, for which :func:`joins` holds, with outputs of one width.

    Returns:
        The rows, and which of them is that of each rank, for each layer.
    """
    keys, sizes, start = [], [], 0
    for each in wanted:
        own = [len(weight) for weight in each.weights]
        # After the last tier is a row of zeros.
        keys.append(each.ranks.long().clamp(max=sum(own)) + start)
        sizes += [*own, 1]
        start += sum(own) + 1
    found = distinct(torch.cat(keys), sizes, start - 1)
    weights = [weight for each in wanted for weight in each.weights]
    projections = [each.projection for each in wanted]
    table: Tensor = _TierRows.apply(  # type: ignore[no-untyped-call]
        wanted, found.rows, found.sizes[:-1], *weights, *projections
    )
    return table, torch.split(found.inverse, [len(each.ranks) for each in wanted])


class _Part(NamedTuple):
    """What is taken from one of the tiers of all layers.

    Attributes:
        layer: Number of the layer.
        rows: Which of its rows.
        start: Where they begin among all that are taken.
    """

    layer: int
    rows: Tensor
    start: int


def _parts(
    wanted: Sequence[Wanted], rows: Sequence[Tensor], sizes: Sequence[int]
) -> Iterator[_Part]:
    starts = [0, *accumulate(sizes)]
    place = 0
    for layer, each in enumerate(wanted):
        for _ in each.weights:
            yield _Part(layer, rows[place], starts[place])
            place += 1
        place += 1  # The row of zeros.


def _zeros(wanted: Sequence[Wanted], sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where among all rows those of zeros begin, and how many they are, layer by layer."""
    starts = [0, *accumulate(sizes)]
    place = -1
    for each in wanted:
        place += len(each.weights) + 1
        yield starts[place], sizes[place]


class _TierRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        wanted: Sequence[Wanted],
        rows: Sequence[Tensor],
        sizes: Sequence[int],
        *trained: Any,
    ) -> Tensor:
        number = len(trained) - len(wanted)
        weights, projections = trained[:number], trained[number:]
        columns = wanted[0].columns
        table: Tensor = weights[0].new_empty(sum(sizes), columns)
        for start, size in _zeros(wanted, sizes):
            table[start : start + size] = 0.0
        parts = [*_parts(wanted, rows, sizes)]
        kept = _kept(parts, weights, projections)
        taken = []
        for part, weight, own in zip(parts, weights, kept):
            projection = projections[part.layer]
            output = table[part.start : part.start + len(part.rows)]
            if own is None:
                taken.append(Taken(weight, part.rows, output, None, None))
            else:
                matrix = projection[: own.shape[1]]
                taken.append(Taken(weight, part.rows, own, matrix, output))
        with full_precision(table):
            project(taken, columns)
        ctx.parts, ctx.shapes = parts, [weight.shape for weight in weights]
        ctx.sparse = [each.sparse for each in wanted]
        ctx.save_for_backward(*projections, *kept)
        return table

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        number = len(ctx.sparse)
        # Read once: whoever saves tensors in a way of his own may make them anew each time.
        saved = ctx.saved_tensors
        projections, kept = saved[:number], saved[number:]
        wanted = ctx.needs_input_grad[3:]
        grad = grad.contiguous()
        columns = grad.shape[1]
        of_projections = [
            torch.zeros_like(own) if own is not None and needed else None
            for own, needed in zip(projections, wanted[len(kept) :])
        ]
        of_weights: list[Tensor | None] = [None] * len(kept)
        multiplied = []
        for tier, (part, own) in enumerate(zip(ctx.parts, kept)):
            slopes = grad[part.start : part.start + len(part.rows)]
            if own is None:
                of_weights[tier] = slopes if wanted[tier] else None
                continue
            width = own.shape[1]
            matrix, of_matrix = projections[part.layer][:width], of_projections[part.layer]
            of_matrix = None if of_matrix is None else of_matrix[:width]
            of_rows = torch.empty_like(own) if wanted[tier] else None
            of_weights[tier] = of_rows
            multiplied.append(Multiplied(slopes, own, matrix, of_rows, of_matrix))
        with full_precision(grad):
            project_back(multiplied, columns)
        for tier, part in enumerate(ctx.parts):
            values = of_weights[tier]
            if values is not None:
                shape, sparse = ctx.shapes[tier], ctx.sparse[part.layer]
                of_weights[tier] = table_gradient(part.rows, values, shape, sparse)
        return None, None, None, *of_weights, *of_projections


def _kept(
    parts: Sequence[_Part], weights: Sequence[Tensor], projections: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Room for the rows as they are, where they are to be projected."""
    shapes = [
        None if projections[part.layer] is None else (len(part.rows), weight.shape[1])
        for part, weight in zip(parts, weights)
    ]
    room = weights[0].new_empty(sum(rows * width for rows, width in filter(None, shapes)))
    found: list[Tensor | None] = []
    start = 0
    for shape in shapes:
        if shape is None:
            found.append(None)
            continue
        end = start + shape[0] * shape[1]
        found.append(room[start:end].view(shape))
        start = end
    return found
