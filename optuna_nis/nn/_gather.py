"""Rows of dense tables on the CPU, whose gradients add up faster than those of torch's lookups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from optuna_nis.nn import _native
from optuna_nis.nn._tracing import is_traced


def gathers(table: Tensor) -> bool:
    """Whether a dense table is one that :func:`gather` is for."""
    return (
        table.device.type == "cpu"
        and table.dtype in (torch.float32, torch.float64)
        and table.requires_grad
        and torch.is_grad_enabled()
        and not is_traced()
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
    """
    own_tables = list({id(table): table for table in tables}.values())
    numbers = {id(table): number for number, table in enumerate(own_tables)}
    output: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
        [_Places(own, len(table)) for own, table in zip(places, tables)],
        [numbers[id(table)] for table in tables],
        *own_tables,
    )
    return output


class _Places:
    """Which row of a table each example has: all in range, and whether they were."""

    def __init__(self, places: Tensor | None, rows: int) -> None:
        self.rows: Tensor | None = None
        self.inside: Tensor | None = None
        if places is not None:
            self.rows = places.long()
            if len(places) and int(places.max()) >= rows:
                self.rows = self.rows.clamp(max=rows - 1)
                self.inside = (places < rows).unsqueeze(1)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(places: list[_Places], columns: list[int], *tables: Tensor) -> Tensor:
        own_tables = [tables[number] for number in columns]
        batch = next(len(t) if p.rows is None else len(p.rows) for t, p in zip(own_tables, places))
        output = tables[0].new_empty(batch, len(columns), tables[0].shape[1])
        for index, (table, own) in enumerate(zip(own_tables, places)):
            if own.rows is None:
                output[:, index] = table
            else:
                torch.index_select(table, 0, own.rows, out=output[:, index])
            if own.inside is not None:
                output[:, index] *= own.inside
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        places, columns, *tables = inputs
        # Nothing of them is trained, or changed by anyone before it is used again.
        ctx.places, ctx.columns = places, columns
        ctx.rows = [len(table) for table in tables]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = [None] * len(ctx.rows)
        for index, (own, number) in enumerate(zip(ctx.places, ctx.columns)):
            if not ctx.needs_input_grad[2 + number]:
                continue
            values, total = grad[:, index], grads[number]
            if own.inside is not None:
                values = values * own.inside
            if own.rows is None:
                grads[number] = values.contiguous() if total is None else total + values
                continue
            if total is None:
                total = grads[number] = grad.new_zeros(ctx.rows[number], grad.shape[2])
            add_rows(total, own.rows, values)
        return (None, None, *grads)


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
        # Rows are added at once if they are next to each other, else number by number.
        values = values.contiguous()
        total.scatter_add_(0, rows.unsqueeze(1).expand_as(values), values)
