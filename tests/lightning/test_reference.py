"""The one call and the command go by the same widths and epochs."""

from __future__ import annotations

from typing import Any

import pytest

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.data import load_dataset
from optuna_nis.lightning import RankingModule, RetrievalModule, reference_model, search_sizes
from optuna_nis.lightning.reference import default_epochs
from optuna_nis.lightning.training import Data
from optuna_nis.study.results import space_of

FULL = SearchSpace([EmbeddingSpec("user", 100, 8)]).full()


@pytest.mark.parametrize(
    ("task", "options", "epochs"),
    [
        ("ranking", {}, 4),
        ("ranking", {"learning_rate": 1e-3}, 8),
        ("retrieval", {}, 6),
        ("retrieval", {"learning_rate": 3e-3}, 12),
        ("retrieval", {"learning_rate": 1e-2}, 6),
        ("retrieval", {"learning_rate": 1e-9}, 24),
    ],
)
def test_a_supernet_that_learns_more_slowly_gets_more_epochs(
    task: str, options: dict[str, float], epochs: int
) -> None:
    model: RankingModule | RetrievalModule
    if task == "ranking":
        model = RankingModule(FULL, **options)
    else:
        model = RetrievalModule(FULL, num_classes=5, **options)
    assert default_epochs(model) == epochs


@pytest.mark.parametrize(
    ("options", "plan", "epochs"),
    [({}, {}, 6), ({"learning_rate": 3e-3}, {}, 12), ({}, {"epochs": 1}, 1)],
)
def test_the_one_call_goes_by_the_task(
    options: dict[str, float], plan: dict[str, Any], epochs: int
) -> None:
    data = load_dataset("flights", "retrieval", max_rows=1_000, batch_size=256)
    build = reference_model(data.features, hidden=(8,), **options)
    lines: list[str] = []
    found = search_sizes(build, data, 0.5, num_updates=1, progress=lines.append, **plan)
    assert len([line for line in lines if line.startswith("Supernet: epoch")]) == epochs
    assert found.study.user_attrs["nis:plan"]["epochs"] == epochs
    widths = {spec.embedding_dim for spec in space_of(found.study).specs if spec.name != "items"}
    assert widths == {64}
    assert found.build().embeddings.embedding_dim == 64


def test_models_that_take_sizes_need_a_space_or_our_data() -> None:
    data = load_dataset("movielens-small", max_rows=1_000)
    loaders: Data = (data.train_dataloader(), data.val_dataloader())
    with pytest.raises(ValueError, match="`space` must be given"):
        search_sizes(reference_model(data.features), loaders, "25%")
