"""Rows of dense tables on the CPU, whose gradients add up faster than those of torch's lookups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from optuna_nis.nn import _native
from optuna_nis.nn._rounding import has_tangent
from optuna_nis.nn._tracing import is_traced


def gathers(table: Tensor) -> bool:
    """Whether a dense table is one that :func:`gather` is for."""
    return (
        table.device.type == "cpu"
        and table.dtype in (torch.float32, torch.float64)
        and table.requires_grad
        and torch.is_grad_enabled()
        and not is_traced()
        and not has_tangent(table)
    )


def look_up(ids: Tensor, table: Tensor) -> Tensor:
    """As :func:`torch.nn.functional.embedding`."""
    if not gathers(table):
        return functional.embedding(ids, table)
    return gather([table], [ids.reshape(-1)]).view(*ids.shape, table.shape[1])


def bag_sums(
    ids: Tensor,
    table: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """As :func:`torch.nn.functional.embedding_bag` with ``mode="sum"``.

    With the compiled loops, the backward pass for bags of one length takes a third of the time.
    """
    if ids.dim() == 2 and not ids.numel():
        # Which torch refuses where bags are of length 0.
        return functional.embedding(ids, table).sum(1)
    plain = offsets is None and per_sample_weights is None
    if plain and gathers(table) and _native.adds(table):
        sums: Tensor = _BagSums.apply(ids.long(), table)  # type: ignore[no-untyped-call]
        return sums
    return functional.embedding_bag(
        ids,
        table,
        None if offsets is None else offsets.to(ids.dtype),
        mode="sum",
        per_sample_weights=per_sample_weights,
    )


def gather(tables: Sequence[Tensor], places: Sequence[Tensor | None]) -> Tensor:
    """Rows of several tables side by side.

    As stacking what :func:`torch.nn.functional.embedding` gives for each, whose backward pass goes
    from id to id. This one takes a third of the time.

    Args:
        tables: Each of one row at least, and all as wide. One may be there several times.
        places: Which row of each table each example has, shape ``(batch,)``; those beyond the last
            one are zeros. None where a table has a row for each example.

    Returns:
        Shape ``(batch, tables, width)``.

    Raises:
        ValueError: If there are not as many examples for each table.
    """
    batches = [len(table if own is None else own) for own, table in zip(places, tables)]
    if len(set(batches)) > 1:
        raise ValueError(f"All features must have ids of as many examples, got {batches}.")
    places = [None if own is None else own.long().contiguous() for own in places]
    if any(map(has_tangent, tables)):
        return _side_by_side(tables, places)
    own_tables = list({id(table): table for table in tables}.values())
    numbers = {id(table): number for number, table in enumerate(own_tables)}
    output: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
        places,
        [numbers[id(table)] for table in tables],
        *own_tables,
    )
    return output


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(
        places: Sequence[Tensor | None], columns: Sequence[int], *tables: Tensor
    ) -> Tensor:
        own_tables = [tables[number] for number in columns]
        found = _native.gather(own_tables, places)
        return _side_by_side(own_tables, places) if found is None else found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        places, columns, *tables = inputs
        # Some may be the caller's own, who is told if they are changed before they are used again.
        ctx.save_for_backward(*places)
        ctx.columns = columns
        ctx.rows = [len(table) for table in tables]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        places, wanted = ctx.saved_tensors, ctx.needs_input_grad[2:]
        # Of a table that has no gradient every row is beyond.
        rows = [number if needed else 0 for number, needed in zip(ctx.rows, wanted)]
        grad = grad.contiguous()
        totals = [grad.new_zeros(number, grad.shape[2]) for number in rows]
        own_totals = [totals[number] for number in ctx.columns]
        # Of what compiled loops do there are no derivatives.
        derived = grad.requires_grad and torch.is_grad_enabled()
        if derived or not _native.scatter(own_totals, places, grad):
            for total, own, values in zip(own_totals, places, grad.unbind(1)):
                _add(total, own, values)
        return (None, None, *(own if needed else None for own, needed in zip(totals, wanted)))


def _side_by_side(tables: Sequence[Tensor], places: Sequence[Tensor | None]) -> Tensor:
    """As :func:`gather`, by operations that torch knows the derivatives of."""
    pairs = zip(tables, places)
    return torch.stack([table if own is None else _rows(table, own) for table, own in pairs], 1)


def _rows(table: Tensor, places: Tensor) -> Tensor:
    rows = table.index_select(0, places.clamp(max=len(table) - 1))
    inside = _inside(places, len(table))
    return rows if inside is None else rows * inside


def _add(total: Tensor, places: Tensor | None, values: Tensor) -> None:
    """Add what examples have to the rows of a table; what is beyond it to none."""
    if not len(total):
        return
    if places is None:
        total += values
        return
    if (inside := _inside(places, len(total))) is not None:
        places, values = places.clamp(max=len(total) - 1), values * inside
    _add_plainly(total, places, values)


def _inside(places: Tensor, rows: int) -> Tensor | None:
    """Which of some places are rows, shape ``(batch, 1)``; None if all are."""
    if not len(places) or int(places.max()) < rows:
        return None
    return (places < rows).unsqueeze(1)


class _BagSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape = table.shape
        return functional.embedding_bag(ids, table, mode="sum")

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        total, grad = grad.new_zeros(ctx.shape), grad.contiguous()
        for rows in ids.t().contiguous():
            add_rows(total, rows, grad)
        return None, total


def add_rows(total: Tensor, rows: Tensor, values: Tensor) -> None:
    """Add rows to those of a table, each of which may come several times, in place.

    Args:
        total: Shape ``(num_rows, width)``.
        rows: Which row each is added to, shape ``(n,)``.
        values: Shape ``(n, width)``.
    """
    if not _native.add_rows(total, rows, values):
        _add_plainly(total, rows, values)


def _add_plainly(total: Tensor, rows: Tensor, values: Tensor) -> None:
    # Rows are added at once if they are next to each other, else number by number.
    values = values.contiguous()
    total.scatter_add_(0, rows.unsqueeze(1).expand_as(values), values)
