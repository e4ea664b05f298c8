from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from users_and_genres import SPACE, batch_of

from optuna_nis.models import CrossRankingModule
from optuna_nis.nn import set_choices, warm_start


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("stacked", [False, True])
def test_logits_are_those_of_the_paper(rank: int | None, stacked: bool) -> None:
    options: dict[str, Any] = {"rank": rank, "stacked": stacked, "hidden": (5, 4)}
    model = CrossRankingModule(SPACE.full(), bags={"genres"}, init_std=1.0, **options).eval()
    batch = batch_of()

    found = model(batch)

    x0 = crossed = model.embeddings(batch).flatten(1)
    for layer in model.crosses:
        first, last = (layer, layer) if rank is None else layer
        weight = last.weight if rank is None else last.weight @ first.weight
        crossed = x0 * (crossed @ weight.T + last.bias) + crossed
    deep = model.mlp(crossed if stacked else x0)
    logits = functional.linear(deep, model.head.weight, model.head.bias)
    if not stacked:
        logits = logits + crossed @ model.wide.weight.T
    torch.testing.assert_close(found, logits.squeeze(1))
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("stacked", [False, True])
def test_choices_share_a_batch_and_give_their_weights(stacked: bool) -> None:
    options: dict[str, Any] = {"bags": {"genres"}, "stacked": stacked, "init_std": 1.0}
    supernet = CrossRankingModule(SPACE, **options).eval()
    rng = np.random.default_rng(0)
    choices = [SPACE.sample(rng, cost) for cost in (500, 100, 30)]
    batch = batch_of()
    set_choices(supernet, SPACE, choices)
    together = supernet.choice_quality({k: torch.cat([v] * 3) for k, v in batch.items()}, 3)
    for choice, quality in zip(choices, together):
        model = CrossRankingModule(choice, **options).eval()
        warm_start(model, supernet)
        torch.testing.assert_close(model.choice_quality(batch, 1), quality.unsqueeze(0))


def test_counts_dense_parameters() -> None:
    options: dict[str, Any] = {"bags": {"genres"}, "hidden": (4,), "num_crosses": 3}
    mlp = (16 * 4 + 4) + (4 + 1)
    model = CrossRankingModule(SPACE.full(), **options)
    assert model.num_dense_parameters() == mlp + 16 + 3 * (16 * 16 + 16)
    model = CrossRankingModule(SPACE.full(), rank=2, stacked=True, **options)
    assert model.num_dense_parameters() == mlp + 3 * (2 * 16 * 2 + 16)


@pytest.mark.parametrize("name", ["num_crosses", "rank"])
def test_bad_arguments(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"`{name}` must be an integer of at least 1, got 0"):
        CrossRankingModule(SPACE, bags={"genres"}, **options)
