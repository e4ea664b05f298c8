from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score
import torch
from torch.utils.data import DataLoader, Dataset
from users_and_genres import SPACE, SPECS, batch_of

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace
from optuna_nis.data.keys import UNSEEN_TARGET
from optuna_nis.lightning import warm_start
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.models import RetrievalModule
from optuna_nis.nn import MultiSizeLinear, SupernetLinear, set_choices, supernet_layers
from optuna_nis.strategy import baselines


def test_unseen_targets_are_misses() -> None:
    model = RetrievalModule(SPACE.full(), num_classes=4, bags={"genres"}).eval()
    batch = batch_of(4)
    batch["label"] = model(batch).argmax(1)
    assert model.choice_quality(batch, 1).tolist() == [1.0]
    batch["label"][:2] = UNSEEN_TARGET
    assert model.choice_quality(batch, 1).tolist() == [0.5]
    assert torch.isfinite(model.training_step(batch, 0))


def test_retrieval_quality_is_the_mean_reciprocal_rank_of_each_choice() -> None:
    rng = np.random.default_rng(0)
    model = RetrievalModule(SPACE, num_classes=9, bags={"genres"}, init_std=1.0).eval()
    choices = [SPACE.sample(rng, cost) for cost in (500, 100, 30)]
    batch = batch_of() | {"label": torch.arange(16) % 9}
    batch["label"][3] = UNSEEN_TARGET
    set_choices(model, SPACE, choices)
    found = model.choice_quality({k: torch.cat([v] * 3) for k, v in batch.items()}, 3)
    known = (batch["label"] >= 0).numpy()
    for choice, quality in zip(choices, found):
        set_choices(model, SPACE, [choice])
        relevant = torch.nn.functional.one_hot(batch["label"].clamp(min=0), 9)
        # With one relevant item, the ranking precision is the reciprocal rank.
        expected = label_ranking_average_precision_score(
            relevant[known], model(batch).detach()[known]
        )
        assert quality.item() == pytest.approx(expected * known.mean())


@pytest.mark.parametrize("num_classes", [7, 40])
def test_the_scores_of_the_test_are_those_of_their_names(num_classes: int) -> None:
    torch.manual_seed(0)
    model = RetrievalModule(SPACE.full(), num_classes=num_classes, bags={"genres"}, init_std=1.0)
    batch = batch_of(64) | {"label": torch.arange(64) % num_classes}
    batch["label"][:8] = UNSEEN_TARGET
    loader = DataLoader([batch], batch_size=None)
    (logged,) = quiet_trainer().test(model, loader, verbose=False)
    (also,) = quiet_trainer().validate(model, loader, verbose=False)
    logits, label = model(batch)[8:].detach(), batch["label"][8:]
    relevant = torch.nn.functional.one_hot(label, num_classes)
    places = (logits.argsort(1, descending=True) == label.unsqueeze(1)).nonzero()[:, 1]
    expected = {
        "metric": (places == 0).float().mean().item(),
        "ndcg@10": ndcg_score(relevant, logits, k=10),
        "mrr": label_ranking_average_precision_score(relevant, logits),
    }
    if num_classes > 10:
        expected["recall@10"] = (places < 10).float().mean().item()
    for name, score in expected.items():
        for part, found in (("test", logged), ("val", also)):
            assert found[f"{part}_{name}"] == pytest.approx(score * 56 / 64, rel=1e-5)


@pytest.mark.parametrize("num_sampled", [None, 3])
def test_retrieval_learns_and_reports_every_recall(num_sampled: int | None) -> None:
    torch.manual_seed(0)
    model = RetrievalModule(
        SPACE.full(), num_classes=9, bags={"genres"}, top_k=(1, 3), num_sampled=num_sampled
    )
    user = torch.arange(720) % 60
    rows = {"user": user, "genres": torch.full((720, 1), 9), "label": user % 9}
    rows["label"][:72] = UNSEEN_TARGET
    loader = DataLoader(Rows(rows), sampler=torch.arange(720).split(72), batch_size=None)  # type: ignore[arg-type]
    trainer = quiet_trainer(max_epochs=30)
    trainer.fit(model, loader)
    (metrics,) = trainer.validate(model, loader, verbose=False)
    assert metrics["val_metric"] == pytest.approx(0.9, abs=0.01)
    assert metrics["val_recall@3"] == pytest.approx(0.9, abs=0.01)


class Rows(Dataset[dict[str, torch.Tensor]]):
    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: tensor[rows] for name, tensor in self.tensors.items()}


def test_validation_of_retrieval_tells_the_reciprocal_rank_too() -> None:
    torch.manual_seed(0)
    model = RetrievalModule(SPACE.full(), num_classes=9, bags={"genres"}, init_std=1.0).eval()
    batch = batch_of() | {"label": torch.arange(16) % 9}
    batch["label"][3] = UNSEEN_TARGET
    trainer = quiet_trainer()
    loader = DataLoader([batch], batch_size=None)
    (logged,) = trainer.validate(model, loader, verbose=False)
    assert logged[model.monitor] == pytest.approx(model.choice_quality(batch, 1).item())
    assert 0 < logged["val_metric"] < logged[model.monitor] < logged["val_recall@9"] < 1


def test_many_items_are_sampled() -> None:
    few, many, own = (
        RetrievalModule(SPACE.full(), num_classes=classes, hidden=(2,), num_sampled=sampled)
        for classes, sampled in ((50_000, None), (50_001, None), (50_000, 100))
    )
    assert few.num_sampled == few.items.out_features
    assert many.num_sampled == 8192
    assert own.num_sampled == 100


def test_top_k_is_at_most_the_number_of_items() -> None:
    model = RetrievalModule(SPACE.full(), num_classes=4, bags={"genres"}, top_k=(1, 10, 50))
    assert model.top_k == (1, 4)
    assert model.metric_name == "Recall@1"
    assert model.predict_step(batch_of(5)).shape == (5, 4)


@pytest.mark.parametrize(
    ("top_k", "message"),
    [
        ((), r"`top_k` must hold at least one k, got \(\)"),
        ((1, 0), "`top_k` must be an integer of at least 1, got 0"),
    ],
)
def test_a_bad_k_is_told(top_k: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetrievalModule(SPACE, num_classes=2, top_k=top_k)


ITEMS = EmbeddingSpec("items", 60, 4, row_blocks=[10, 50])
WITH_ITEMS = SearchSpace([*SPECS, ITEMS], budget=0.5)
OPTIONS: dict[str, Any] = {"num_classes": 60, "bags": {"genres"}, "hidden": (16, 4)}


def test_items_of_the_space_are_searched_and_looked_up_nowhere() -> None:
    model = RetrievalModule(WITH_ITEMS, **OPTIONS)
    assert isinstance(model.items, SupernetLinear)
    assert model.embeddings.names == ["user", "genres"]
    assert model.output_features == ("items",)
    assert list(supernet_layers(model)) == ["user", "genres", "items"]
    assert model(batch_of(4)).shape == (4, 60)


@pytest.mark.parametrize("tables", [SPACE, SPACE.full()])
def test_items_outside_the_tables_are_a_plain_layer(tables: SearchSpace | Allocation) -> None:
    model = RetrievalModule(tables, **OPTIONS)
    assert type(model.items) is torch.nn.Linear
    assert model.items.weight.shape == (60, 4)
    assert model.output_features == ()
    dense = (16 * 16 + 16) + (16 * 4 + 4) + (4 * 60 + 60)
    assert model.num_dense_parameters() == dense


def test_a_feature_called_items_is_told_from_the_table_of_the_items() -> None:
    specs = [EmbeddingSpec("items", 60, 8), SPECS[1]]
    space = SearchSpace(specs)
    with pytest.raises(ValueError, match=r"'items' of `tables`, must .* 61, .* `items` another"):
        RetrievalModule(space, num_classes=61, bags={"genres"})
    for name in (None, "goods"):
        model = RetrievalModule(space, num_classes=60, bags={"genres"}, items=name)
        assert model.embeddings.names == ["items", "genres"]
    space = SearchSpace([*specs, EmbeddingSpec("goods", 60, 4)])
    model = RetrievalModule(space, num_classes=60, bags={"genres"}, hidden=(4,), items="goods")
    assert model.output_features == ("goods",)


def test_a_table_of_items_that_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match=r"as wide as the last of `hidden`, 3, got 60x4"):
        RetrievalModule(WITH_ITEMS, num_classes=60, hidden=(16, 3))
    with pytest.raises(ValueError, match="`hidden` must hold the width of at least one layer"):
        RetrievalModule(WITH_ITEMS, num_classes=60, hidden=())
    with pytest.raises(ValueError, match=r"must have a feature besides .*items"):
        RetrievalModule(SearchSpace([ITEMS]), num_classes=60, hidden=(16, 4))


@pytest.mark.parametrize("projected", [True, False])
def test_uniform_tables_narrow_the_items_too(projected: bool) -> None:
    sizes = baselines.uniform(WITH_ITEMS, width=2, projected=projected)
    model = RetrievalModule(sizes, **OPTIONS)
    assert isinstance(model.items, MultiSizeLinear)
    assert model.items.in_features == (4 if projected else 2)
    total = sum(p.numel() for p in model.parameters())
    assert model.num_dense_parameters() == total - sizes.num_parameters
    assert model(batch_of(4)).shape == (4, 60)


@pytest.mark.parametrize("num_sampled", [None, 20])
def test_choices_of_the_items_are_each_trained_alone(num_sampled: int | None) -> None:
    rng = np.random.default_rng(0)
    choices = [WITH_ITEMS.sample(rng, cost) for cost in (700, 400, 100, 50)]
    batch = batch_of(32) | {"label": torch.arange(32) % 60}
    model = RetrievalModule(WITH_ITEMS, **OPTIONS, l2=0.0, num_sampled=num_sampled).double()
    parameters = list(model.parameters())

    def gradients(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        loss = model.training_step(batch, 0)
        found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        return [loss.detach(), *found]

    set_choices(model, WITH_ITEMS, choices)
    together = gradients(batch)
    apart = []
    for index, choice in enumerate(choices):
        set_choices(model, WITH_ITEMS, [choice])
        apart.append(gradients({k: v[8 * index : 8 * (index + 1)] for k, v in batch.items()}))
    for found, *each in zip(together, *apart):
        torch.testing.assert_close(found, torch.stack(each).mean(0))


def test_quality_of_choices_is_that_of_each_alone_with_items() -> None:
    rng = np.random.default_rng(0)
    choices = [WITH_ITEMS.sample(rng, cost) for cost in (700, 200, 50)]
    batch = batch_of() | {"label": torch.arange(16) % 60}
    batch["label"][3] = UNSEEN_TARGET
    model = RetrievalModule(WITH_ITEMS, **OPTIONS, init_std=1.0).eval()
    set_choices(model, WITH_ITEMS, choices)
    found = model.choice_quality({k: torch.cat([v] * 3) for k, v in batch.items()}, 3)
    alone = []
    for choice in choices:
        set_choices(model, WITH_ITEMS, [choice])
        alone.append(model.choice_quality(batch, 1))
    torch.testing.assert_close(found, torch.cat(alone))
    assert len(set(found.tolist())) == 3


def test_a_model_of_sizes_gives_what_its_supernet_does() -> None:
    choice = WITH_ITEMS.sample(np.random.default_rng(0), 300)
    supernet = RetrievalModule(WITH_ITEMS, **OPTIONS).eval()
    model = RetrievalModule(choice, **OPTIONS).eval()
    warm_start(model, supernet)
    set_choices(supernet, WITH_ITEMS, [choice])
    batch = batch_of()
    torch.testing.assert_close(model(batch), supernet(batch))
    assert torch.equal(model.predict_step(batch), supernet.predict_step(batch))
