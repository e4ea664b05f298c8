from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from optuna_nis import SearchSpace
from optuna_nis.data import Features, Task
from optuna_nis.models import RetrievalModule, reference_model
from optuna_nis.serve.predictor import Predictor


def _features(**columns: list[int]) -> Features:
    frame = pd.DataFrame(columns or {"user": [1, 2, 2, 3]})
    return Features.fit(frame, task="retrieval", targets=pd.Series(["a", "b", "b", "c"]))


def test_the_items_are_a_table_as_wide_as_the_last_layer() -> None:
    *inputs, items = reference_model(_features()).specs(8)
    assert inputs == _features().embedding_specs(8)
    assert (items.name, items.num_embeddings, items.embedding_dim) == ("items", 3, 64)
    build = reference_model(_features(), hidden=(16, 12))
    assert build.specs(8)[-1].embedding_dim == 12
    model = build(SearchSpace(build.specs(8)))
    assert model.output_features == ("items",)
    assert model.options == {"hidden": (16, 12)}


def test_the_items_are_cut_where_their_frequency_changes() -> None:
    targets = [t for t in range(100) for _ in range(100 if t < 15 else 1)]
    frame = pd.DataFrame({"user": [i % 7 for i in range(len(targets))]})
    features = Features.fit(frame, task="retrieval", targets=pd.Series(targets))
    assert reference_model(features).specs(8)[-1].row_blocks == (15, 85)


def test_the_items_are_left_out_if_that_is_asked() -> None:
    build = reference_model(_features(), search_items=False)
    assert build.specs(8) == _features().embedding_specs(8)
    assert build(SearchSpace(build.specs(8))).output_features == ()


def test_items_among_the_features_keep_their_name() -> None:
    build = reference_model(_features(items=[1, 2, 2, 3], user=[1, 1, 2, 2]))
    specs = build.specs(8)
    assert [spec.name for spec in specs] == ["items", "user", "output items"]
    model = build(SearchSpace(specs))
    assert isinstance(model, RetrievalModule)
    assert model.embeddings.names == ["items", "user"]
    assert model.output_features == ("output items",)
    # A space of before, which knows no table of the items.
    model = build(SearchSpace(specs[:2]))
    assert model.embeddings.names == ["items", "user"]
    assert model.output_features == ()


def test_bad_arguments() -> None:
    ranking = Features.fit(pd.DataFrame({"user": [1, 2]}), task="ranking")
    for search_items in (True, False):
        with pytest.raises(ValueError, match='`search_items` is for the task "retrieval"'):
            reference_model(ranking, search_items=search_items)
    with pytest.raises(ValueError, match="`hidden` must hold the width of at least one layer"):
        reference_model(_features(), hidden=()).specs(8)


@pytest.mark.parametrize("tables", ["multi-size", "dense", "float16"])
def test_models_with_items_are_kept_and_served(tables: Any, tmp_path: Path) -> None:
    features = _features()
    build = reference_model(features, hidden=(4,))
    space = SearchSpace(build.specs(4), budget=20)
    sizes = space.sample(np.random.default_rng(0), 20)
    predictor = Predictor(build(sizes), sizes, features)
    rows = pd.DataFrame({"user": [3, 1, 2, 9]})
    predictor.with_tables(tables).save(tmp_path)
    assert (Predictor.load(tmp_path).predict(rows) == predictor.predict(rows)).all()


@pytest.mark.parametrize(
    ("task", "rate", "epochs"),
    [
        ("ranking", None, 4),
        ("ranking", 1e-3, 8),
        ("retrieval", None, 6),
        ("retrieval", 3e-3, 12),
        ("retrieval", 1e-2, 6),
        ("retrieval", 1e-9, 24),
    ],
)
def test_a_supernet_that_learns_more_slowly_gets_more_epochs(
    task: Task, rate: float | None, epochs: int
) -> None:
    users = pd.DataFrame({"user": [1, 2, 2, 3]})
    features = _features() if task == "retrieval" else Features.fit(users, task=task)
    options = {} if rate is None else {"learning_rate": rate}
    assert reference_model(features, **options).epochs == epochs
