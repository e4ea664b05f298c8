from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from users_and_genres import SPACE, batch_of

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.models import (
    CrossRankingModule,
    EmbeddingModule,
    RankingModule,
    RetrievalModule,
    SequenceModule,
)
from optuna_nis.nn import set_choices

ITEMS = SearchSpace([SPACE.specs[0], EmbeddingSpec("items", 9, 8)])
MODELS = ["deepfm", "dcn", "mlp", "sampled", "sasrec", "every position"]


def _model(name: str) -> EmbeddingModule:
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_std": 1.0, "l2": 0.1, "bags": {"genres"}}
    if name in ("deepfm", "dcn"):
        kind: Any = RankingModule if name == "deepfm" else CrossRankingModule
        return kind(SPACE, **options).eval()
    if name in ("mlp", "sampled"):
        sampled = 4 if name == "sampled" else None
        return RetrievalModule(SPACE, num_classes=9, num_sampled=sampled, **options).eval()
    every, number = name == "every position", 5 if name == "sasrec" else 9
    return SequenceModule(
        ITEMS,
        sequence="genres",
        num_classes=9,
        every_position=every,
        num_sampled=number,
        **options,
    ).eval()


def _batch(name: str, size: int = 12) -> dict[str, Tensor]:
    torch.manual_seed(1)
    batch = batch_of(size) | {"group": torch.arange(size) // 4}
    if name not in ("deepfm", "dcn"):
        batch["label"] = torch.arange(size) % 10
        batch["label"][batch["label"] == 9] = -100
    return batch


def _repeated(batch: dict[str, Tensor], times: Tensor) -> dict[str, Tensor]:
    return {name: values.repeat_interleave(times, 0) for name, values in batch.items()}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("step", ["training_step", "choice_loss"])
def test_a_weight_is_as_so_many_examples(name: str, step: str) -> None:
    model, batch = _model(name), _batch(name)
    times = torch.arange(12) % 4
    found = []
    for examples in (batch | {"weight": 2.5 * times.float()}, _repeated(batch, times)):
        torch.manual_seed(2)  # Of the items that are sampled.
        model.zero_grad()
        loss = getattr(model, step)(*((examples, 0) if step == "training_step" else (examples,)))
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for weighted, repeated in zip(*found, strict=True):
        torch.testing.assert_close(weighted, repeated)


@pytest.mark.parametrize("name", MODELS)
def test_equal_weights_are_as_none(name: str) -> None:
    model, batch = _model(name), _batch(name)
    for function in (
        model.choice_loss,
        lambda examples: model.training_step(examples, 0),
        lambda examples: model.choice_quality(examples, 1),
    ):
        torch.manual_seed(2)
        expected = function(batch)
        torch.manual_seed(2)
        torch.testing.assert_close(function(batch | {"weight": torch.full((12,), 0.3)}), expected)


@pytest.mark.parametrize("name", MODELS)
def test_examples_without_weight_do_not_count(name: str) -> None:
    model, batch = _model(name), _batch(name)
    loss = model.training_step(batch | {"weight": torch.zeros(12)}, 0)
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)
    quality = model.choice_quality(batch | {"weight": torch.zeros(12)}, 1)
    assert quality.isnan().all()


@pytest.mark.parametrize("name", MODELS)
def test_metrics_are_those_of_so_many_examples(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = _model(name), _batch(name)
    times = torch.arange(12) % 4
    found: list[dict[str, float]] = []
    for examples in (batch | {"weight": 0.5 * times.float()}, _repeated(batch, times)):
        logged: dict[str, Any] = {}
        monkeypatch.setattr(
            model,
            "log",
            lambda name, metric, **_: logged.update({name: metric}),  # noqa: B023
        )
        for part, step in (("val", model.validation_step), ("test", model.test_step)):
            half = len(examples["label"]) // 2
            for rows in (slice(half), slice(half, None)):
                step({key: values[rows] for key, values in examples.items()}, 0)
            assert f"{part}_metric" in logged
        found.append({key: float(metric.compute()) for key, metric in logged.items()})
        for metric in logged.values():
            metric.reset()
    assert found[0] == pytest.approx(found[1])
    assert set(model.more_metrics.values()) < found[0].keys()
    if name in ("deepfm", "dcn"):
        assert 0 < found[0]["val_metric"] < 1


@pytest.mark.parametrize("name", MODELS)
def test_qualities_of_choices_are_by_weight(name: str) -> None:
    model, batch = _model(name), _batch(name)
    space = ITEMS if isinstance(model, SequenceModule) else SPACE
    times = torch.arange(12) % 4
    weighted = batch | {"weight": times.float()}
    set_choices(model, space, [space.full()] * 2)
    together = model.choice_quality({k: torch.cat([v] * 2) for k, v in weighted.items()}, 2)
    set_choices(model, space, [space.full()])
    expected = model.choice_quality(_repeated(batch, times), 1)
    torch.testing.assert_close(together, expected.expand(2))


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (
            torch.ones(12, 1),
            ValueError,
            r"must have the shape .*, \(12,\), got \(12, 1\)",
        ),
        (torch.ones(3), ValueError, r"must have the shape of the labels, \(12,\), got \(3,\)"),
        (torch.ones(12).long(), TypeError, "must be floating-point numbers, got torch.int64"),
        (-torch.ones(12), ValueError, "must be finite numbers of at least 0, got -1"),
        (torch.full((12,), torch.nan), ValueError, "must be finite .*of at least 0, got nan"),
    ],
)
def test_bad_weights(weights: Tensor, error: type[Exception], message: str) -> None:
    for name in ("deepfm", "mlp", "sasrec"):
        with pytest.raises(error, match=rf"`batch\['weight'\]` {message}"):
            _model(name).training_step(_batch(name) | {"weight": weights}, 0)


def test_a_feature_may_be_called_weight() -> None:
    model = RankingModule(SearchSpace([EmbeddingSpec("weight", 9, 8)]))
    batch = {"weight": torch.tensor([1, 2]), "label": torch.tensor([0.0, 1.0])}
    assert model.weights_of(batch) is None
    assert model.training_step(batch, 0).isfinite()
