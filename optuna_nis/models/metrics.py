"""Metrics of examples that have weights or are in groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC
from torchmetrics.utilities import dim_zero_cat

from optuna_nis.data.keys import GROUP, LABEL, NO_GROUP
from optuna_nis.models.embeddings import Batch


def groups_of(batch: Batch) -> Tensor:
    """The groups of the examples of a batch that has some.

    Raises:
        TypeError: If they are no integers.
        ValueError: If there are not as many as labels.
    """
    groups = batch[GROUP]
    if groups.shape != batch[LABEL].shape:
        raise ValueError(
            f"`batch[{GROUP!r}]` must have the shape of the labels, "
            f"{tuple(batch[LABEL].shape)}, got {tuple(groups.shape)}."
        )
    if groups.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"`batch[{GROUP!r}]` must be int64 or int32, got {groups.dtype}.")
    return groups


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
        The areas, NaN where one class has no weight, and the weights of the groups, both in the
        order of their names.

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
    scores = scores[order]
    starts[1:] |= scores[1:] != scores[:-1]  # A difference of infinite ones would be none.
    tied = starts.cumsum(0) - 1

    weight = _wide(torch.ones_like(scores) if weights is None else weights)[order]
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
        """The area; NaN where a class has no example, or these have no weight."""
        if not len(self.weights):
            target = dim_zero_cat(self.target)
            if target.numel() and target.min() == target.max():
                return torch.full((), torch.nan, device=target.device)
            area: Tensor = super().compute()
            return area
        states = (dim_zero_cat(each) for each in (self.preds, self.target, self.weights))
        return weighted_auc(*states).float()


class GroupAUC(Metric):
    """GAUC: the mean of the areas under the ROC curves of the groups that have both classes.

    By the number of examples of each, or their weights (Zhou et al., 2018, "Deep Interest Network
    for Click-Through Rate Prediction"). Examples of the group -1, ``NO_GROUP``, have no part.

    Example:
        >>> metric = GroupAUC()
        >>> scores, target = torch.tensor([0.1, 0.5, 0.7, 0.9, 0.8]), torch.tensor([0, 1, 1, 0, 0])
        >>> metric.update(scores, target, torch.tensor([1, 1, 2, 2, 2]))
        >>> metric.compute()  # That of the first is 1, of the second 0.
        tensor(0.4000)
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    scores: Any
    target: Any
    groups: Any
    weights: Any

    def __init__(self) -> None:
        super().__init__()
        for name in ("scores", "target", "groups", "weights"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, scores: Tensor, target: Tensor, groups: Tensor, weights: Tensor | None = None
    ) -> None:
        """Take some examples."""
        self.scores.append(scores)
        self.target.append(target)
        self.groups.append(groups)
        self.weights.append(torch.ones_like(scores) if weights is None else weights)

    def compute(self) -> Tensor:
        """The mean; NaN if no group has both classes."""
        states = (self.groups, self.scores, self.target, self.weights)
        groups, scores, target, weights = _in_groups(*map(dim_zero_cat, states))
        areas, sums = auc_of_groups(scores, target, weights, groups)
        known = ~areas.isnan()
        return ((areas * sums)[known].sum() / sums[known].sum()).float()


class GroupMean(Metric):
    """The mean over groups of the mean over the examples of each, by weight, as of HR@k for users.

    Examples of the group -1, ``NO_GROUP``, have no part.

    Example:
        >>> metric = GroupMean()
        >>> metric.update(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([7, 8, 7]))
        >>> metric.compute()
        tensor(0.2500)
    """

    full_state_update = False

    values: Any
    groups: Any
    weights: Any

    def __init__(self) -> None:
        super().__init__()
        for name in ("values", "groups", "weights"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, values: Tensor, groups: Tensor, weights: Tensor | None = None) -> None:
        """Take some examples."""
        self.values.append(values)
        self.groups.append(groups)
        self.weights.append(torch.ones_like(values) if weights is None else weights)

    def compute(self) -> Tensor:
        """The mean; NaN if no example has a weight."""
        states = (self.groups, self.values, self.weights)
        groups, values, weights = _in_groups(*map(dim_zero_cat, states))
        names, index = torch.unique(groups, return_inverse=True)
        sums = _sums(_wide(weights), index, len(names))
        means = _sums(_wide(values * weights), index, len(names)) / sums
        return means[sums > 0].mean().float()


def _in_groups(groups: Tensor, *others: Tensor) -> list[Tensor]:
    """What there is of examples that belong to a group."""
    kept = groups != NO_GROUP
    return [each[kept] for each in (groups, *others)]


def _wide(values: Tensor) -> Tensor:
    """Values in 64 bits, in which sums over many are exact enough, where the device knows them."""
    return values.float() if values.device.type == "mps" else values.double()


def _sums(values: Tensor, index: Tensor, number: int) -> Tensor:
    return values.new_zeros(number).index_add_(0, index, values)
