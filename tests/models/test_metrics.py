from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, ndcg_score, roc_auc_score
import torch
from torch import Tensor
from torchmetrics.classification import BinaryAUROC
from users_and_genres import SPACE, batch_of

from optuna_nis.models import RankingModule, RetrievalModule
from optuna_nis.models.metrics import AUROC, GroupAUC, GroupMean, auc_of_groups, weighted_auc


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


@pytest.mark.parametrize("weights", [None, torch.ones(3)])
def test_of_one_class_there_is_no_area(weights: Tensor | None) -> None:
    metric = AUROC()
    metric.update(torch.rand(3), torch.ones(3, dtype=torch.int64), weights)
    assert metric.compute().isnan()
    metric.update(torch.ones(3), torch.zeros(3, dtype=torch.int64), weights)
    assert metric.compute() == 0


def test_scores_without_bounds_are_tied_too() -> None:
    scores, target = (
        torch.tensor([torch.inf, torch.inf, -torch.inf, 0.0]),
        torch.tensor([1, 0, 0, 1]),
    )
    areas, _ = auc_of_groups(scores, target, None, None)
    assert areas.tolist() == [(0.5 + 1 + 0 + 1) / 4]


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


def _in_batches(metric: Any, *each: Tensor) -> float:
    for rows in (slice(70), slice(70, 71), slice(71, None)):
        metric.update(*(values[rows] for values in each))
    return float(metric.compute())


@pytest.mark.parametrize("weighted", [False, True])
def test_gauc_is_the_mean_over_groups_of_both_classes_by_their_rows(weighted: bool) -> None:
    rng = np.random.default_rng(2)
    groups, target = rng.integers(0, 40, 200), rng.integers(0, 2, 200)
    scores = rng.integers(0, 9, 200) / 9
    weights = rng.exponential(size=200) if weighted else np.ones(200)
    total = areas = 0.0
    for group in np.unique(groups):
        own = groups == group
        if 0 < target[own].sum() < own.sum():
            area = roc_auc_score(target[own], scores[own], sample_weight=weights[own])
            areas += area * weights[own].sum()
            total += weights[own].sum()
    assert 0 < total < weights.sum()
    given = map(torch.from_numpy, (scores, target, groups, weights)[: 3 + weighted])
    assert _in_batches(GroupAUC(), *given) == pytest.approx(areas / total)


def test_gauc_where_no_group_has_both_classes_is_nan() -> None:
    metric = GroupAUC()
    metric.update(torch.rand(4), torch.tensor([0, 1, 0, 1]), torch.tensor([3, 4, 3, 4]))
    assert metric.compute().isnan()


@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_over_groups_counts_each_once(weighted: bool) -> None:
    rng = np.random.default_rng(3)
    groups, values = rng.integers(0, 40, 200) * 10**15, rng.random(200)
    weights = rng.exponential(size=200) if weighted else np.ones(200)
    weights[groups == groups[0]] = 0.0 if weighted else 1.0
    means = [
        np.average(values[own], weights=weights[own])
        for own in (groups == group for group in np.unique(groups))
        if weights[own].sum()
    ]
    given = map(torch.from_numpy, (values, groups, weights)[: 2 + weighted])
    assert _in_batches(GroupMean(), *given) == pytest.approx(np.mean(means))


def _logged(model: Any, batch: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a test logs, of two batches."""
    logged: dict[str, Any] = {}
    monkeypatch.setattr(model, "log", lambda name, metric, **_: logged.update({name: metric}))
    for rows in (slice(10), slice(10, None)):
        model.test_step({name: values[rows] for name, values in batch.items()}, 0)
    return {name: float(metric.compute()) for name, metric in logged.items()}


def test_a_test_of_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    model = RankingModule(SPACE, bags={"genres"}, init_std=1.0).eval()
    batch = batch_of(32)
    plain = _logged(model, batch, monkeypatch)
    predicted = model.predict_step(batch).detach().double()
    assert plain.keys() == {"test_metric", "test_logloss"}
    assert plain["test_metric"] == pytest.approx(roc_auc_score(batch["label"], predicted))
    assert plain["test_logloss"] == pytest.approx(log_loss(batch["label"], predicted), rel=1e-5)
    model = RankingModule(SPACE, bags={"genres"}, init_std=1.0).eval()
    batch["group"] = torch.zeros(32, dtype=torch.long)
    one_group = _logged(model, batch, monkeypatch)
    assert one_group.keys() == set(model.more_metrics.values()) | {"test_metric"}
    assert one_group["test_gauc"] == pytest.approx(one_group["test_metric"])


def test_a_test_of_retrieval(monkeypatch: pytest.MonkeyPatch) -> None:
    model = RetrievalModule(SPACE, num_classes=30, bags={"genres"}, init_std=1.0).eval()
    label = torch.arange(32) % 30
    batch = batch_of(32) | {"label": label}
    plain = _logged(model, batch, monkeypatch)
    logits = model(batch).detach()
    gains = ndcg_score(torch.nn.functional.one_hot(label, 30), logits, k=10)
    assert plain["test_ndcg@10"] == pytest.approx(gains)
    hits = (logits.topk(10).indices == label[:, None]).any(1).float()
    assert plain["test_recall@10"] == pytest.approx(hits.mean().item())
    assert not any("group" in name for name in plain)

    for each in model.test_scores.values():
        each.reset()
    batch["group"] = torch.arange(32) ** 2 // 100
    found = _logged(model, batch, monkeypatch)
    assert {name: found[name] for name in plain} == plain
    users = [hits[batch["group"] == user].mean() for user in batch["group"].unique()]
    assert found["test_recall@10_by_group"] == pytest.approx(torch.stack(users).mean().item())
    names = model.more_metrics
    assert found.keys() == set(names.values()) | {"test_metric"}
    assert list(names)[:3] == ["Recall@10", "Recall@30", "NDCG@10"]
    assert names["Recall@1 by group"] == "test_metric_by_group"


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        (torch.zeros(3).long(), ValueError, r"must have the shape of the labels, \(16,\), got"),
        (torch.zeros(16), TypeError, "must be int64 or int32, got torch.float32"),
    ],
)
@pytest.mark.parametrize("retrieval", [False, True])
def test_bad_groups(retrieval: bool, groups: Tensor, error: type[Exception], message: str) -> None:
    kind: Callable[..., Any] = RetrievalModule if retrieval else RankingModule
    model = kind(SPACE, bags={"genres"}, **({"num_classes": 2} if retrieval else {}))
    batch = batch_of() | {"group": groups}
    batch["label"] = batch["label"].long() if retrieval else batch["label"]
    with pytest.raises(error, match=rf"`batch\['group'\]` {message}"):
        model.test_step(batch, 0)
