from __future__ import annotations

from typing import Any

import pytest
import torch
from users_and_genres import SPACE, SPECS, batch_of

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.models import (
    CrossRankingModule,
    EmbeddingModule,
    RankingModule,
    RetrievalModule,
    SequenceModule,
)


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
        CrossRankingModule(SPACE, **options)
    with pytest.raises(ValueError, match=message):
        RetrievalModule(SPACE, num_classes=2, **options)
    if "hidden" not in options:
        with pytest.raises(ValueError, match=message):
            SequenceModule(SPACE, sequence="genres", num_classes=60, items="user", **options)


@pytest.mark.parametrize("bags", [(), ("user", "genres")])
def test_ids_of_a_wrong_shape_are_named(bags: tuple[str, ...]) -> None:
    model = RankingModule(SPACE.full(), bags=bags)
    with pytest.raises(ValueError, match=r"The ids of '(genres|user)' must have the shape .*bags"):
        model(batch_of())


@pytest.mark.parametrize("num_sampled", [None, 3, 9])
def test_the_loss_of_a_choice_is_that_of_training_without_the_penalty(
    num_sampled: int | None,
) -> None:
    models: list[tuple[EmbeddingModule, dict[str, torch.Tensor]]] = []
    for l2 in (0.0, 0.1):
        torch.manual_seed(0)
        if num_sampled is None:
            label = (torch.arange(16) % 2).float()
            models.append((RankingModule(SPACE, bags={"genres"}, l2=l2), {"label": label}))
        else:
            retrieval = RetrievalModule(
                SPACE, num_classes=9, bags={"genres"}, l2=l2, num_sampled=num_sampled
            )
            models.append((retrieval, {"label": torch.arange(16) % 9}))
    losses, ids = [], batch_of()
    for model, label in models:
        for loss in (model.choice_loss, lambda batch: model.training_step(batch, 0)):  # noqa: B023
            torch.manual_seed(1)
            losses.append(loss(ids | label).item())
    without, step, with_penalty, penalised = losses
    assert without == step == with_penalty < penalised
