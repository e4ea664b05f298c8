"""Features that are looked up in one table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.data import Features
from optuna_nis.models import (
    CrossRankingModule,
    RankingModule,
    RetrievalModule,
    SequenceModule,
    reference_model,
)
from optuna_nis.models.embeddings import FeatureEmbeddings
from optuna_nis.nn import set_choices, supernet_layers, warm_start

SPACE = SearchSpace([EmbeddingSpec("item", 60, 8), EmbeddingSpec("user", 20, 8)], budget="50%")
SHARE = {"history": "item", "last": "item"}
OPTIONS: dict[str, Any] = {"bags": {"history"}, "share": SHARE, "init_std": 1.0}


def _batch(size: int = 12) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "item": torch.randint(0, 61, (size,)),
        "user": torch.randint(0, 21, (size,)),
        "history": torch.randint(0, 61, (size, 4)),
        "last": torch.randint(0, 61, (size,)),
        "label": (torch.arange(size) % 3 == 0).float(),
    }


@pytest.mark.parametrize("searched", [False, True])
def test_they_are_looked_up_in_one_layer(searched: bool) -> None:
    layer = FeatureEmbeddings(SPACE if searched else SPACE.full(), **OPTIONS)
    assert layer.names == ["item", "user", "history", "last"]
    item, user = layer.layers
    batch = _batch()
    batch["history"][0] = 60
    batch["history"][1] = torch.tensor([60, 3, 60, 60])
    rows = item(batch["history"])
    known = (batch["history"] != 60).sum(1, keepdim=True).clamp(min=1)
    expected = [item(batch["item"]), user(batch["user"]), rows.sum(1) / known, item(batch["last"])]
    torch.testing.assert_close(layer(batch), torch.stack(expected, 1))
    torch.testing.assert_close(layer(batch)[1, 2], item(torch.tensor(3).expand(2))[0])
    assert (layer(batch)[0, 2] == 0).all()


def test_a_bag_may_have_the_table() -> None:
    space = SearchSpace([EmbeddingSpec("history", 60, 8)])
    layer = FeatureEmbeddings(
        space.full(), bags={"history"}, share={"item": "history"}, init_std=1.0
    )
    alone = FeatureEmbeddings(space.full(), bags={"history"}, init_std=1.0)
    alone.load_state_dict(layer.state_dict())
    batch = _batch()
    torch.testing.assert_close(layer(batch)[:, :1], alone(batch))
    torch.testing.assert_close(layer(batch)[:, 1], layer.layers[0](batch["item"]))


@pytest.mark.parametrize("kind", [RankingModule, CrossRankingModule, RetrievalModule])
def test_choices_share_a_batch_and_give_their_weights(kind: Any) -> None:
    options = OPTIONS | ({"num_classes": 5} if kind is RetrievalModule else {})
    batch = _batch()
    if kind is RetrievalModule:
        batch["label"] = torch.arange(12) % 5
    supernet = kind(SPACE, **options).eval()
    assert supernet_layers(supernet).keys() == {"item", "user"}
    rng = np.random.default_rng(0)
    choices = [SPACE.sample(rng, cost) for cost in (500, 200, 60)]
    set_choices(supernet, SPACE, choices)
    together = supernet.choice_quality({k: torch.cat([v] * 3) for k, v in batch.items()}, 3)
    for choice, quality in zip(choices, together):
        model = kind(choice, **options).eval()
        warm_start(model, supernet)
        torch.testing.assert_close(model.choice_quality(batch, 1), quality.unsqueeze(0))
        assert choice.keys() == {"item", "user"}


def test_gradients_of_all_features_meet_in_the_table() -> None:
    model, batch = RankingModule(SPACE.full(), l2=0.1, **OPTIONS), _batch()
    model.training_step(batch, 0).backward()
    (weight,) = model.embeddings.layers[0].parameters()
    seen = torch.cat([batch[name].flatten() for name in ("item", "history", "last")]).unique()
    assert weight.grad is not None
    assert (weight.grad != 0).any(1).nonzero().squeeze(1).tolist() == seen[seen < 60].tolist()
    assert (
        model.num_dense_parameters()
        == RankingModule(
            SearchSpace([*SPACE.specs, EmbeddingSpec("a", 9, 8), EmbeddingSpec("b", 9, 8)]).full()
        ).num_dense_parameters()
    )


def test_other_features_of_a_sequence_share_a_table() -> None:
    space = SearchSpace([*SPACE.specs, EmbeddingSpec("items", 60, 8)])
    model = SequenceModule(
        space, sequence="history", num_classes=60, share={"last": "item"}, num_sampled=60
    )
    assert model(_batch()).shape == (12, 60)
    with pytest.raises(ValueError, match="`share` must leave the sequence out, 'history'"):
        SequenceModule(space, sequence="history", num_classes=60, share=SHARE)


@pytest.mark.parametrize(
    "share", [{"user": "item"}, {"last": "city"}, {"last": "first", "first": "item"}]
)
def test_what_cannot_be_shared(share: dict[str, str]) -> None:
    message = r"`share` must be from features without a table .*\['item', 'user'\], got"
    with pytest.raises(ValueError, match=message):
        RankingModule(SPACE, share=share)


def test_the_table_of_the_outputs_cannot_be_shared() -> None:
    space = SearchSpace([EmbeddingSpec("user", 20, 8), EmbeddingSpec("items", 60, 8)])
    with pytest.raises(ValueError, match=r"looked up, \['user'\], got 'last': 'items'"):
        RetrievalModule(space, num_classes=60, hidden=(8,), share={"last": "items"})


def _features(frame: pd.DataFrame) -> Features:
    return Features.fit(frame, task="ranking")


def test_a_reference_model_has_one_table() -> None:
    frame = pd.DataFrame({"item": [1, 2, 2], "last": [1, 2, 2], "user": [1, 2, 3]})
    build = reference_model(_features(frame), share={"last": "item"}, hidden=(4,))
    assert [spec.name for spec in build.specs(4)] == ["item", "user"]
    model = build(SearchSpace(build.specs(4)))
    rows = model.embeddings(_features(frame).encode(frame))
    assert torch.equal(rows[:, 0], rows[:, 2])
    assert model.options["share"] == {"last": "item"}


def test_features_of_other_ids_cannot_share() -> None:
    features = _features(pd.DataFrame({"item": [1, 2, 2], "last": [1, 2, 1]}))
    with pytest.raises(ValueError, match="with the same vocabulary, 'last' has 2 values and"):
        reference_model(features, share={"last": "item"})
    with pytest.raises(ValueError, match=r"of the features \['item', 'last'\], got 'city'"):
        reference_model(features, share={"city": "item"})


def test_pooled_rows_are_those_of_a_bag() -> None:
    model = FeatureEmbeddings(SPACE.full(), **OPTIONS)
    ids = _batch()["history"]
    table = functional.pad(model.layers[0].dense_weight(), (0, 0, 0, 1))
    expected = functional.embedding_bag(ids, table, mode="mean", padding_idx=60)
    torch.testing.assert_close(model(_batch())[:, 2], expected)
