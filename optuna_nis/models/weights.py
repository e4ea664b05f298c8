"""Sample weights: how much each example counts."""

from __future__ import annotations

import torch
from torch import Tensor, distributed

from optuna_nis.data.keys import LABEL, WEIGHT
from optuna_nis.models.embeddings import Batch


def weights_of(batch: Batch) -> Tensor:
    """The weights of the examples of a batch that has some.

    Raises:
        TypeError: If they are integers.
        ValueError: If there are not as many as labels, or one is negative or not finite; the
            latter is not checked off the CPU, where it would stall the device.
    """
    weights = batch[WEIGHT]
    if weights.shape != batch[LABEL].shape:
        raise ValueError(
            f"`batch[{WEIGHT!r}]` must have the shape of the labels, "
            f"{tuple(batch[LABEL].shape)}, got {tuple(weights.shape)}."
        )
    if not weights.is_floating_point():
        raise TypeError(
            f"`batch[{WEIGHT!r}]` must be floating-point numbers, got {weights.dtype}."
        )
    if weights.device.type == "cpu":
        wrong = weights[~((weights >= 0) & weights.isfinite())]
        if len(wrong):
            raise ValueError(
                f"`batch[{WEIGHT!r}]` must be finite numbers of at least 0, got {wrong[0]:g}."
            )
    return weights


def mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """The mean of values, by their weights if they have some; 0 if all of these are 0.

    Args:
        values: Shape ``(batch,)``.
        weights: Of the same shape, or None.

    Example:
        >>> mean(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 1.0]))
        tensor(2.)
    """
    if weights is None:
        return values.mean()
    return (values * weights).sum() / weight_sum(weights)


def share_of_processes(weights: Tensor) -> Tensor:
    """What a mean by weights is to be multiplied by where processes train together.

    The mean of what is then in all of them is the mean over the examples of all.

    Args:
        weights: Those of the examples of this process.
    """
    own = weights.sum()
    total = own.clone()
    distributed.all_reduce(total)
    return own * distributed.get_world_size() / total.clamp(min=_tiny(weights))


def weight_sum(weights: Tensor) -> Tensor:
    """What weights add up to, to divide by: never 0."""
    return weights.sum().clamp(min=_tiny(weights))


def _tiny(weights: Tensor) -> float:
    return torch.finfo(weights.dtype).tiny
