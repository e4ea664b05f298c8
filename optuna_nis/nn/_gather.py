"""Rows of dense tables on the CPU, whose gradients add up faster than those of torch's lookups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

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


def gather(tables: Sequence[Tensor], places: Sequence[Tensor | None]) -> Tensor:
    """Rows of several tables side by side.

    As stacking what :func:`torch.nn.functional.embedding` gives for each, whose backward pass goes
    from id to id. This one takes a third of the time.

    Args:
        tables: Each of one row at least, and all as wide.
        places: Which row of each table each example has, shape ``(batch,)``; those beyond the last
            one are zeros. None where a table has a row for each example.

    Returns:
        Shape ``(batch, tables, width)``.
    """
    found = [_Places(own, len(table)) for own, table in zip(places, tables)]
    output: Tensor = _Gather.apply(found, *tables)  # type: ignore[no-untyped-call]
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
    def forward(places: list[_Places], *tables: Tensor) -> Tensor:
        batch = next(len(t) if p.rows is None else len(p.rows) for t, p in zip(tables, places))
        output = tables[0].new_empty(batch, len(tables), tables[0].shape[1])
        for index, (table, own) in enumerate(zip(tables, places)):
            if own.rows is None:
                output[:, index] = table
            else:
                torch.index_select(table, 0, own.rows, out=output[:, index])
            if own.inside is not None:
                output[:, index] *= own.inside
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        places, *tables = inputs
        # Nothing of them is trained, or changed by anyone before it is used again.
        ctx.places = places
        ctx.rows = [len(table) for table in tables]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grads: list[Tensor | None] = []
        for index, (own, rows) in enumerate(zip(ctx.places, ctx.rows)):
            if not ctx.needs_input_grad[1 + index]:
                grads.append(None)
                continue
            values = grad[:, index] if own.inside is None else grad[:, index] * own.inside
            # Rows are added at once if they are next to each other, else number by number.
            values = values.contiguous()
            if own.rows is not None:
                where = own.rows.unsqueeze(1).expand_as(values)
                values = values.new_zeros(rows, values.shape[1]).scatter_add_(0, where, values)
            grads.append(values)
        return (None, *grads)
