from __future__ import annotations

from collections.abc import Callable
import math
import re
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score, roc_auc_score
import torch
from torch.utils.data import DataLoader, Dataset

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace
from optuna_nis.data import TableDataModule
from optuna_nis.data.features import UNSEEN_TARGET
from optuna_nis.lightning import (
    Candidate,
    RankingModule,
    RetrievalModule,
    evaluate,
    reference_model,
    train,
    train_shortlist,
    warm_start,
)
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import set_choices

SPECS = [EmbeddingSpec("user", 60, 8), EmbeddingSpec("genres", 9, 8)]
SPACE = SearchSpace(SPECS, budget=0.5)


def _batch(size: int = 16) -> dict[str, torch.Tensor]:
    return {
        "user": torch.randint(0, 61, (size,)),
        "genres": torch.randint(0, 10, (size, 3)),
        "label": (torch.arange(size) % 3 == 0).float(),
    }


def test_auc_of_choices_is_that_of_each_alone() -> None:
    model = RankingModule(SPACE, bags={"genres"}, init_std=1.0).eval()
    rng = np.random.default_rng(0)
    choices = [SPACE.sample(rng, cost) for cost in (500, 100, 30)]
    batch = _batch()
    set_choices(model, SPACE, choices)
    found = model.choice_quality({k: torch.cat([v] * 3) for k, v in batch.items()}, 3)
    for choice, auc in zip(choices, found):
        set_choices(model, SPACE, [choice])
        assert auc.item() == pytest.approx(roc_auc_score(batch["label"], model(batch).detach()))


def test_auc_of_one_class_is_nan() -> None:
    model = RankingModule(SPACE, bags={"genres"})
    batch = _batch() | {"label": torch.zeros(16)}
    assert model.choice_quality(batch, 1).isnan().all()


def test_unseen_targets_are_misses() -> None:
    model = RetrievalModule(SPACE.full(), num_classes=4, bags={"genres"}).eval()
    batch = _batch(4)
    batch["label"] = model(batch).argmax(1)
    assert model.choice_quality(batch, 1).tolist() == [1.0]
    batch["label"][:2] = UNSEEN_TARGET
    assert model.choice_quality(batch, 1).tolist() == [0.5]
    assert torch.isfinite(model.training_step(batch, 0))


def test_retrieval_quality_is_the_mean_reciprocal_rank_of_each_choice() -> None:
    rng = np.random.default_rng(0)
    model = RetrievalModule(SPACE, num_classes=9, bags={"genres"}, init_std=1.0).eval()
    choices = [SPACE.sample(rng, cost) for cost in (500, 100, 30)]
    batch = _batch() | {"label": torch.arange(16) % 9}
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
    model = RetrievalModule(SPACE.full(), num_classes=9, bags={"genres"}, init_std=1.0).eval()
    batch = _batch() | {"label": torch.arange(16) % 9}
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
    assert model.predict_step(_batch(5)).shape == (5, 4)


def test_counts_dense_parameters() -> None:
    model = RankingModule(SPACE.full(), bags={"genres"}, hidden=(4,))
    assert model.num_dense_parameters() == (16 * 4 + 4) + (4 + 1) + 16


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match="`tables` must be a SearchSpace or an Allocation"):
        RankingModule(SPECS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"`bags` names unknown features \['tags'\]"):
        RankingModule(SPACE, bags={"tags"})
    mixed = SearchSpace([SPECS[0], EmbeddingSpec("city", 9, 4)])
    with pytest.raises(ValueError, match="must have the same `embedding_dim`"):
        RankingModule(mixed)
    with pytest.raises(ValueError, match="`num_classes` must be at least 2, got 1"):
        RetrievalModule(SPACE, num_classes=1)
    with pytest.raises(ValueError, match="`num_sampled` must be an integer of at least 1, got 0"):
        RetrievalModule(SPACE, num_classes=2, num_sampled=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0}, r"`learning_rate` must be a number in \(0, inf\), got 0"),
        ({"learning_rate": None}, r"`learning_rate` must be a number in \(0, inf\), got None"),
        ({"l2": -1e-3}, r"`l2` must be a number in \[0, inf\), got -0.001"),
        ({"init_std": float("inf")}, r"`init_std` must be a number in \[0, inf\), got inf"),
        ({"dropout": 1}, r"`dropout` must be a number in \[0, 1\), got 1"),
        ({"hidden": ()}, r"`hidden` must hold the width of at least one layer, got \(\)"),
        ({"hidden": (8, 0)}, "`hidden` must be an integer of at least 1, got 0"),
    ],
)
def test_a_bad_option_is_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankingModule(SPACE, **options)
    with pytest.raises(ValueError, match=message):
        RetrievalModule(SPACE, num_classes=2, **options)


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


@pytest.mark.parametrize("bags", [(), ("user", "genres")])
def test_ids_of_a_wrong_shape_are_named(bags: tuple[str, ...]) -> None:
    model = RankingModule(SPACE.full(), bags=bags)
    with pytest.raises(ValueError, match=r"The ids of '(genres|user)' must have the shape .*bags"):
        model(_batch())


def test_training_returns_to_its_best_epoch(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    build = reference_model(datamodule.features, learning_rate=0.02)
    run = train(build, space.full(), datamodule, seed=0, max_epochs=12, patience=1)
    assert run.epochs < 12
    assert 0.6 < run.val_metric < 1.0
    (metrics,) = quiet_trainer().validate(run.model, datamodule=datamodule, verbose=False)
    assert metrics["val_metric"] == pytest.approx(run.val_metric)
    with pytest.raises(RuntimeError, match="withholds its test part"):
        evaluate(run.model, datamodule)


def test_warm_start_gives_the_output_of_the_supernet(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    build = reference_model(datamodule.features)
    supernet, model = build(space), build(space.full())
    warm_start(model, supernet)
    batch = next(iter(datamodule.train_dataloader()))
    torch.testing.assert_close(model(batch), supernet(batch))
    with pytest.raises(ValueError, match="must have the parameters of the supernet"):
        warm_start(reference_model(datamodule.features, hidden=(4,))(space.full()), supernet)


def _build_told(
    datamodule: TableDataModule, told: dict[Allocation, list[float]]
) -> Callable[[Allocation], RankingModule]:
    """Models that log given values, epoch by epoch."""
    build = reference_model(datamodule.features)

    class Told(RankingModule):
        def on_validation_epoch_end(self) -> None:
            self.log("told", told[self.allocation][self.current_epoch])

    def build_told(allocation: Allocation) -> RankingModule:
        model = build(allocation)
        model.__class__ = Told
        model.allocation = allocation
        return model

    return build_told


def test_shortlist_trains_all_and_the_better_half_longer(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    build = reference_model(datamodule.features)
    rng = np.random.default_rng(0)
    choices = [space.sample(rng, space.full_parameters * share) for share in (0.2, 0.5, 1.0)]
    lines: list[str] = []
    found = train_shortlist(
        choices,
        build(space),
        build,
        datamodule,
        shortlist_epochs=(1, 2),
        metric="ROC-AUC",
        progress=lines.append,
    )
    assert {candidate.allocation for candidate in found} == set(choices)
    values = [candidate.val_metric for candidate in found]
    assert values == sorted(values, reverse=True)
    assert len(lines) == 3 + 2
    pattern = r"round 1 of 2: 2 of 3, [\d,]+ parameters: ROC-AUC 0\.\d{4}, about \d+ s left in it"
    assert re.fullmatch(pattern, lines[1])
    assert "left" not in lines[2] + lines[4]
    last = {line.split(", ")[1].split(":")[0]: line.split()[-1] for line in (lines[2], lines[4])}
    for candidate in found:
        name = f"{candidate.allocation.num_parameters:,} parameters"
        assert last.get(name, f"{candidate.val_metric:.4f}") == f"{candidate.val_metric:.4f}"


def test_of_choices_of_one_cost_the_shortlist_keeps_the_best(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    build = reference_model(datamodule.features)
    rng = np.random.default_rng(0)
    shares = (0.80, 0.82, 0.84, 0.2)
    choices = [space.sample(rng, space.full_parameters * share) for share in shares]
    lines: list[str] = []
    train_shortlist(
        choices, build(space), build, datamodule, shortlist_epochs=(1, 1), progress=lines.append
    )
    assert lines[-1].startswith("round 2 of 2: 1 of 1, ")


def test_no_more_than_three_stay_in_the_shortlist(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    build = reference_model(datamodule.features)
    rng = np.random.default_rng(0)
    choices = [space.sample(rng, space.full_parameters * 0.7**n) for n in range(8)]
    lines: list[str] = []
    train_shortlist(
        choices, build(space), build, datamodule, shortlist_epochs=(1, 1), progress=lines.append
    )
    assert [line.split(",")[0] for line in lines[8:]] == [
        f"round 2 of 2: {n} of 3" for n in (1, 2, 3)
    ]


def test_a_choice_that_gets_worse_in_training_leaves_the_shortlist(
    datamodule: TableDataModule,
) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    large, small = space.full(), space.allocation(dict.fromkeys(space.choices, 1))
    build = _build_told(datamodule, {large: [0.9, 0.5], small: [0.6, 0.7, 0.8]})
    supernet = reference_model(datamodule.features)(space)
    found = train_shortlist(
        [large, small], supernet, build, datamodule, shortlist_epochs=(2, 1), monitor="told"
    )
    assert found == [Candidate(small, pytest.approx(0.8)), Candidate(large, pytest.approx(0.5))]


def test_choices_whose_trainings_diverge_are_left_out(
    datamodule: TableDataModule, caplog: pytest.LogCaptureFixture
) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    large, small = space.full(), space.allocation(dict.fromkeys(space.choices, 1))
    supernet = reference_model(datamodule.features)(space)

    def found(values: list[float]) -> list[Candidate]:
        build = _build_told(datamodule, {large: values, small: [0.6]})
        run = ([large, small], supernet, build, datamodule)
        return train_shortlist(*run, shortlist_epochs=(1,), limit_train_batches=1, monitor="told")

    assert found([math.nan]) == [Candidate(small, pytest.approx(0.6))]
    assert "'told' was not a finite number for 1 of the 2 choices" in caplog.text
    build = _build_told(datamodule, {large: [math.nan]})
    with pytest.raises(FloatingPointError, match="'told' was not a finite number for any of"):
        train_shortlist(
            [large], supernet, build, datamodule, shortlist_epochs=(1,), monitor="told"
        )
    with pytest.raises(ValueError, match="`monitor` must be a value that the model logs in val"):
        train_shortlist([large], supernet, build, datamodule, shortlist_epochs=(1,), monitor="auc")


def test_what_is_to_be_kept_stays_in_the_shortlist(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    full = space.full_parameters
    rng = np.random.default_rng(0)
    # The last one costs about as much as the first.
    choices = [space.sample(rng, full * share) for share in (0.8, 0.4, 0.2, 0.82)]
    values = [[0.7, 0.7], [0.6, 0.6], [0.5, 0.5], [0.1, 0.9]]
    build = _build_told(datamodule, dict(zip(choices, values)))
    supernet = reference_model(datamodule.features)(space)
    run = (choices, supernet, build, datamodule)
    found = train_shortlist(*run, shortlist_epochs=(1, 1), monitor="told")
    assert found[0] == Candidate(choices[0], pytest.approx(0.7))
    lines: list[str] = []
    found = train_shortlist(
        *run,
        shortlist_epochs=(1, 1),
        monitor="told",
        keep=[choices[3], space.full()],
        progress=lines.append,
    )
    assert found[0] == Candidate(choices[3], pytest.approx(0.9))
    assert lines[-1].startswith("round 2 of 2: 2 of 2, ")
