"""Metrics of examples that have weights or are in groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import BinaryAUROC
from torchmetrics.utilities import dim_zero_cat


def auc_of_groups(
    scores: Tensor, target: Tensor, weights: Tensor | None, groups: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The area under the ROC curve within each group of examples, exact where scores are tied.

    It is the share of the pairs of a positive and a negative example, by the product of their
    weights, in which the positive one has the larger score, a tie counting half.

    Args:
        scores: Larger for what is likelier positive, shape ``(batch,)``.
        target: 0 or 1 for each.
        weights: Of each, at least 0; None if all are 1.
        groups: Of each an integer that names its group; None if all are in one.

    Returns:
        The areas, NaN where one class has no weight, and the weights of the groups, as 64-bit
        floats in the order of their names.

    Example:
        >>> scores, target = torch.tensor([0.1, 0.5, 0.5, 0.9]), torch.tensor([0, 1, 0, 1])
        >>> auc_of_groups(scores, target, None, None)[0].tolist()
        [0.875]
    """
    order = scores.argsort()
    starts = torch.zeros(len(order), dtype=torch.bool, device=scores.device)
    if groups is not None:
        order = order[groups[order].argsort(stable=True)]
        starts[1:] = groups[order].diff() != 0
    starts[:1] = True
    group = starts.cumsum(0) - 1
    # Examples of a group with the same score.
    starts[1:] |= scores[order].diff() != 0
    tied = starts.cumsum(0) - 1

    weight = torch.ones_like(scores, dtype=torch.float64) if weights is None else weights.double()
    weight = weight[order]
    positive = weight * (target[order] > 0)
    number, ties = (int(each[-1]) + 1 if len(each) else 0 for each in (group, tied))
    positives, negatives = (_sums(each, group, number) for each in (positive, weight - positive))
    ahead, beside = (_sums(each, tied, ties) for each in (positive, weight - positive))
    owner = group[starts]
    # Negatives with a lower score: those before, but of earlier groups.
    below = beside.cumsum(0) - beside - (negatives.cumsum(0) - negatives)[owner]
    won = _sums(ahead * (below + beside / 2), owner, number)
    pairs = positives * negatives
    return (won / pairs).where(pairs > 0, torch.nan), positives + negatives


def weighted_auc(scores: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The area under the ROC curve of examples with weights; NaN where one class has none."""
    area = auc_of_groups(scores, target, weights, None)[0]
    return area[0] if len(area) else torch.tensor(torch.nan)


class AUROC(BinaryAUROC):
    """That of torchmetrics, whose examples may have weights."""

    weights: Any

    def __init__(self) -> None:
        super().__init__()
        self.add_state("weights", default=[], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor, weights: Tensor | None = None) -> None:
        """Take some examples, weights with all of them or none."""
        super().update(preds, target)
        if weights is not None:
            self.weights.append(weights)

    def compute(self) -> Tensor:  # type: ignore[override]
        """The area; NaN where a class has no weight."""
        if not len(self.weights):
            area: Tensor = super().compute()
            return area
        states = (dim_zero_cat(each) for each in (self.preds, self.target, self.weights))
        return weighted_auc(*states).float()


def _sums(values: Tensor, index: Tensor, number: int) -> Tensor:
    return values.new_zeros(number).index_add_(0, index, values)
