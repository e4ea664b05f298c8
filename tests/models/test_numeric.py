from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from users_and_genres import SPACE, batch_of

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.data import Features
from optuna_nis.models import (
    CrossRankingModule,
    EmbeddingModule,
    RankingModule,
    RetrievalModule,
    SequenceModule,
    reference_model,
)
from optuna_nis.nn import mask_gradients, set_choices
from optuna_nis.strategy.block_values import Path

MODELS: list[Any] = [RankingModule, CrossRankingModule, RetrievalModule]


def _model(kind: Any, tables: Any = SPACE, num_numeric: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    if kind is RetrievalModule:
        options["num_classes"] = 9
    return kind(tables, bags={"genres"}, num_numeric=num_numeric, init_std=1.0, **options)


def _batch(size: int = 16) -> dict[str, Tensor]:
    return batch_of(size) | {"numeric": torch.randn(size, 3), "label": torch.arange(size) % 2.0}


def test_numbers_are_a_field_of_the_factorisation_machine() -> None:
    model, batch = _model(RankingModule).eval(), _batch()
    first, _, last = model.numeric.layers
    field = last(first(batch["numeric"]).relu())
    fields = [*model.embeddings(batch).unbind(1), field]
    pairs = [(a * b).sum(1) for n, a in enumerate(fields) for b in fields[:n]]
    flat = torch.cat([*fields, batch["numeric"]], 1)
    logits = torch.stack(pairs).sum(0) + (model.head(model.mlp(flat)) + model.wide(flat))[:, 0]
    torch.testing.assert_close(model(batch), logits)


def test_numbers_are_crossed() -> None:
    model, batch = _model(CrossRankingModule, num_crosses=1).eval(), _batch()
    field = model.numeric(batch["numeric"])
    flat = torch.cat([model.embeddings(batch).flatten(1), field, batch["numeric"]], 1)
    crossed = flat * model.crosses[0](flat) + flat
    expected = (model.head(model.mlp(flat)) + model.wide(crossed)).squeeze(1)
    torch.testing.assert_close(model(batch), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_every_number_counts_and_gets_gradients(kind: Any) -> None:
    model, batch = _model(kind), _batch()
    batch["label"] = batch["label"].long() if kind is RetrievalModule else batch["label"]
    batch["numeric"].requires_grad_()
    model.training_step(batch, 0).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    found = batch["numeric"].grad
    assert found is not None
    assert (found != 0).any(0).all()


@pytest.mark.parametrize("kind", MODELS)
def test_the_penalty_is_of_the_rows_looked_up_alone(kind: Any) -> None:
    plain, model = _model(kind, l2=0.0).eval(), _model(kind, l2=0.5).eval()
    batch = _batch()
    batch["label"] = batch["label"].long() if kind is RetrievalModule else batch["label"]
    penalty = model.training_step(batch, 0) - plain.training_step(batch, 0)
    rows = model.embeddings(batch)
    torch.testing.assert_close(penalty, 0.5 * rows.square().sum((1, 2)).mean())


@pytest.mark.parametrize("kind", MODELS)
def test_without_numbers_a_model_is_as_before(kind: Any) -> None:
    with_none, model = _model(kind, num_numeric=0), _model(kind)
    assert not hasattr(with_none, "numeric")
    assert with_none.state_dict().keys() == {
        name for name in model.state_dict() if not name.startswith("numeric.")
    }
    more = model.num_dense_parameters() - with_none.num_dense_parameters()
    assert more > (3 + 1) * 64 + (64 + 1) * 8


@pytest.mark.parametrize("kind", MODELS)
def test_choices_share_a_batch(kind: Any) -> None:
    model, batch = _model(kind).eval(), _batch()
    batch["label"] = batch["label"].long() if kind is RetrievalModule else batch["label"]
    rng = np.random.default_rng(0)
    choices = [SPACE.sample(rng, cost) for cost in (500, 100, 30)]
    set_choices(model, SPACE, choices)
    together = model.choice_quality({k: torch.cat([v] * 3) for k, v in batch.items()}, 3)
    for choice, quality in zip(choices, together):
        set_choices(model, SPACE, [choice])
        torch.testing.assert_close(model.choice_quality(batch, 1), quality.unsqueeze(0))


def test_gradients_of_masks() -> None:
    model, batch = _model(RankingModule), _batch()
    low, high = ({s.name: (w,) * len(s.row_blocks) for s in SPACE.specs} for w in (0, 8))
    paths = [Path(low, high, share) for share in (0.2, 0.8)]
    runs = {name: torch.cat([values] * 2) for name, values in batch.items()}
    together = mask_gradients(model, paths, lambda: model.choice_loss(runs))
    for path, found in zip(paths, together):
        (alone,) = mask_gradients(model, [path], lambda: model.choice_loss(batch))
        for name, gradient in alone.items():
            np.testing.assert_allclose(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_an_unknown_number_of_numbers_is_told() -> None:
    with pytest.raises(ValueError, match="`num_numeric` must be an integer of at least 0, got -1"):
        _model(RankingModule, num_numeric=-1)
    space = SearchSpace([EmbeddingSpec("numeric", 60, 8)])
    with pytest.raises(ValueError, match="`tables` must not have a feature 'numeric'"):
        RankingModule(space, num_numeric=1)
    assert RankingModule(space)({"numeric": torch.tensor([3, 4])}).shape == (2,)


@pytest.mark.parametrize("kind", MODELS)
def test_numbers_of_another_shape_are_told(kind: Any) -> None:
    model, batch = _model(kind), _batch()
    with pytest.raises(TypeError, match=r"`batch\['numeric'\]` must be floating.*torch.int64"):
        model(batch | {"numeric": torch.zeros(16, 3, dtype=torch.long)})
    for wrong in (torch.randn(16), torch.randn(16, 2)):
        message = r"`batch\['numeric'\]` must have the shape \(batch, 3\), .*got \(16"
        with pytest.raises(ValueError, match=message):
            model(batch | {"numeric": wrong})
    del batch["numeric"]
    with pytest.raises(ValueError, match=r"`batch` must hold 'numeric', .*it holds \['genres'"):
        model(batch)


def test_sequences_take_no_numbers() -> None:
    with pytest.raises(ValueError, match=r"`num_numeric` must be 0 for .*\"sasrec\".*got 2"):
        SequenceModule(SPACE, sequence="genres", num_classes=60, items="user", num_numeric=2)


class _WithNumbers(Features):
    num_numeric = 2


def test_a_reference_model_takes_as_many_numbers_as_the_features_have() -> None:
    frame = pd.DataFrame({"user": [1, 2, 3], "item": [4, 4, 5]})
    plain = Features.fit(frame, task="ranking")
    features = _WithNumbers("ranking", plain.vocabularies)
    for name in ("deepfm", "dcn"):
        build = reference_model(features, model=name)
        model: EmbeddingModule = build(SearchSpace(build.specs(8)))
        batch = features.encode(frame) | {"numeric": torch.randn(3, 2)}
        assert model.num_numeric == 2
        assert model(batch).shape == (3,)
        assert reference_model(plain, model=name)(SearchSpace(build.specs(8))).num_numeric == 0
