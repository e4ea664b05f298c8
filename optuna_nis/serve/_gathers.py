"""Bags of torch as gathers, for runtimes that have no operator for bags."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class Gathers(TorchFunctionMode):
    """While it is entered, bags of torch are looked up id by id, then pooled.

    torch's ONNX exporter writes a loop over the bags otherwise. Bags given by ``offsets`` stay as
    they are: their shapes depend on the data.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Look bags up in another way, and nothing else."""
        if func is functional.embedding_bag:
            return _embedding_bag(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """What :func:`torch.nn.functional.embedding_bag` gives, without gradients."""
    if offsets is not None or max_norm is not None or input.dim() != 2:
        return functional.embedding_bag(
            input,
            weight,
            offsets,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            per_sample_weights,
            include_last_offset,
            padding_idx,
        )
    rows = functional.embedding(input, weight)
    known = None
    if padding_idx is not None:
        known = torch.ne(input, padding_idx % len(weight)).unsqueeze(-1)
    if mode == "max":
        if known is None:
            return rows.amax(1)
        highest = rows.masked_fill(~known, -math.inf).amax(1)
        return torch.where(known.any(1), highest, torch.zeros_like(highest))
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    if known is not None:
        rows = torch.where(known, rows, torch.zeros_like(rows))
    total = rows.sum(1)
    if mode == "sum":
        return total
    if known is None:
        return total / input.shape[1]
    return total / known.sum(1).clamp(min=1).to(total.dtype)
