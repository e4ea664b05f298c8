from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
import torch
from torchmetrics.classification import BinaryAUROC

from optuna_nis.models.metrics import AUROC, auc_of_groups, weighted_auc


@pytest.mark.parametrize("levels", [3, 40, 10_000])
def test_a_weighted_auc_is_that_of_sklearn(levels: int) -> None:
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, 200) / levels
    target, weights = rng.integers(0, 2, 200), rng.exponential(size=200)
    weights[:20] = 0.0
    found = weighted_auc(*map(torch.from_numpy, (scores, target, weights)))
    assert found.item() == pytest.approx(roc_auc_score(target, scores, sample_weight=weights))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_auc_of_each_group_is_that_of_its_rows(weighted: bool) -> None:
    rng = np.random.default_rng(1)
    groups = rng.integers(-3, 30, 300) * 10**12
    scores, target = rng.integers(0, 12, 300) / 12, rng.integers(0, 2, 300)
    weights = rng.exponential(size=300) if weighted else np.ones(300)
    areas, sums = auc_of_groups(
        torch.from_numpy(scores),
        torch.from_numpy(target),
        torch.from_numpy(weights) if weighted else None,
        torch.from_numpy(groups),
    )
    names = np.unique(groups)
    assert len(areas) == len(names)
    for name, area, total in zip(names, areas.tolist(), sums.tolist()):
        own = groups == name
        expected = (
            roc_auc_score(target[own], scores[own], sample_weight=weights[own])
            if 0 < target[own].sum() < own.sum()
            else np.nan
        )
        assert area == pytest.approx(expected, nan_ok=True)
        assert total == pytest.approx(weights[own].sum())


def test_without_examples_there_is_no_area() -> None:
    none = torch.empty(0)
    assert [len(each) for each in auc_of_groups(none, none, None, None)] == [0, 0]
    assert weighted_auc(none, none, none).isnan()
    one_class = weighted_auc(torch.rand(3), torch.ones(3), torch.ones(3))
    assert one_class.isnan()


def test_the_metric_is_that_of_torchmetrics_until_there_are_weights() -> None:
    torch.manual_seed(0)
    ours, theirs = AUROC(), BinaryAUROC()
    for _ in range(3):
        scores, target = torch.randn(50), torch.randint(0, 2, (50,))
        ours.update(scores, target)
        theirs.update(scores, target)
    assert torch.equal(ours.compute(), theirs.compute())
    ours.reset()
    weights = torch.rand(50)
    for rows in (slice(20), slice(20, None)):
        ours.update(scores[rows], target[rows], weights[rows])
    expected = roc_auc_score(target, scores.sigmoid(), sample_weight=weights)
    assert ours.compute().item() == pytest.approx(expected)
    ours.reset()
    ours.update(scores, target)
    assert ours.compute().item() == pytest.approx(roc_auc_score(target, scores))
