from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
import torch
from users_and_genres import SPACE, batch_of

from optuna_nis.models import RankingModule
from optuna_nis.nn import set_choices


def test_auc_of_choices_is_that_of_each_alone() -> None:
    model = RankingModule(SPACE, bags={"genres"}, init_std=1.0).eval()
    rng = np.random.default_rng(0)
    choices = [SPACE.sample(rng, cost) for cost in (500, 100, 30)]
    batch = batch_of()
    set_choices(model, SPACE, choices)
    found = model.choice_quality({k: torch.cat([v] * 3) for k, v in batch.items()}, 3)
    for choice, auc in zip(choices, found):
        set_choices(model, SPACE, [choice])
        assert auc.item() == pytest.approx(roc_auc_score(batch["label"], model(batch).detach()))


def test_auc_of_one_class_is_nan() -> None:
    model = RankingModule(SPACE, bags={"genres"})
    batch = batch_of() | {"label": torch.zeros(16)}
    assert model.choice_quality(batch, 1).isnan().all()


def test_counts_dense_parameters() -> None:
    model = RankingModule(SPACE.full(), bags={"genres"}, hidden=(4,))
    assert model.num_dense_parameters() == (16 * 4 + 4) + (4 + 1) + 16
