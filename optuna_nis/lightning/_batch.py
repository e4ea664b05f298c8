"""Batches of any shape: taking their first examples, repeating them for several choices."""

from __future__ import annotations

from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
import torch
from torch import Tensor


def batch_length(batch: Any) -> int:
    """Number of examples: the first dimension that all tensors of a batch share.

    Raises:
        ValueError: If there is no tensor or they do not share it.
    """
    lengths: set[int] = set()

    def collect(tensor: Tensor) -> Tensor:
        lengths.add(tensor.shape[0] if tensor.dim() else -1)
        return tensor

    apply_to_collection(batch, Tensor, collect)
    if len(lengths) != 1 or -1 in lengths:
        raise ValueError(
            "All tensors of a batch must share their first dimension, the examples, got lengths "
            f"{sorted(lengths)}."
        )
    return lengths.pop()


def take(batch: Any, length: int) -> Any:
    """The first examples of a batch."""
    return apply_to_collection(batch, Tensor, lambda tensor: tensor[:length])


def repeat(batch: Any, times: int) -> Any:
    """The whole batch several times, one run after the other."""
    return apply_to_collection(batch, Tensor, lambda tensor: torch.cat([tensor] * times))
