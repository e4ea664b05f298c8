"""Products of the rows of an example, whose gradients take one pass over the rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from optuna_nis.nn._tracing import is_traced


class Products(NamedTuple):
    """What factorisation machines and penalties need of the rows of each example.

    Attributes:
        pairs: The products of all pairs of rows, added up, shape ``(batch,)``.
        norms: The squared norm of all rows together, shape ``(batch,)``.
        sums: The sum of the rows, shape ``(batch, width)``.
    """

    pairs: Tensor
    norms: Tensor
    sums: Tensor


def products(rows: Tensor) -> Products:
    """The products of some rows.

    Args:
        rows: Shape ``(batch, fields, width)``.
    """
    if torch.is_grad_enabled() and rows.requires_grad and not is_traced():
        return Products(*_Products.apply(rows))  # type: ignore[no-untyped-call]
    return _products(rows)


def _products(rows: Tensor) -> Products:
    # Not as powers, which ONNX Runtime computes in three times as long.
    sums, norms = rows.sum(1), (rows * rows).sum((1, 2))
    return Products(0.5 * ((sums * sums).sum(1) - norms), norms, sums)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(_products(rows))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs, output[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_pairs: Tensor, of_norms: Tensor, of_sums: Tensor) -> Tensor:
        rows, sums = ctx.saved_tensors
        common = torch.addcmul(of_sums, sums, of_pairs.unsqueeze(1))
        own = (2 * of_norms - of_pairs).view(-1, 1, 1)
        return torch.addcmul(common.unsqueeze(1), rows, own)
