from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.data import Features, Task
from optuna_nis.models import RetrievalModule, SequenceModule, reference_model
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
    assert [spec.precisions for spec in build.specs(8, (4, 32))] == [(32, 4)] * 2
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


SEQUENCES = pd.DataFrame(
    {
        "history": [["b"], ["b", "a"], ["c", "old"], ["a", "b", "c"]],
        "text": ["b", "b|a", "c|old", "a|b|c"],
        "sex": ["f", "m", "f", "m"],
    }
)
TARGETS = pd.Series(["b", "b", "a", "c"])


def _sequences(*columns: str, **options: Any) -> Features:
    separators = {"history": None, "text": "|"}
    return Features.fit(
        SEQUENCES[list(columns)],
        task="retrieval",
        targets=TARGETS,
        separators={name: separators[name] for name in columns if name in separators},
        **options,
    )


@pytest.mark.parametrize("column", ["history", "text"])
@pytest.mark.parametrize("bag_keep", ["first", "last"])
def test_a_sequence_is_one_of_the_items(column: str, bag_keep: Any) -> None:
    features = _sequences(column, "sex", bag_keep=bag_keep, max_bag_length=7)
    build = reference_model(features, model="sasrec", dropout=0.5)
    specs = build.specs(8)
    assert [(spec.name, spec.num_embeddings) for spec in specs] == [("sex", 2), ("items", 3)]
    model = build(SearchSpace(specs))
    assert isinstance(model, SequenceModule)
    assert model.options == {"model": "sasrec", "dropout": 0.5}
    assert (model.latest_first, len(model.places)) == (bag_keep == "first", 7)
    items = model._items_of(features.encode(SEQUENCES[2:]))
    found = [[(*features.targets.values, None)[i] for i in row] for row in items.tolist()]  # type: ignore[union-attr]
    latest_first = [["c", None, None], ["a", "b", "c"]]
    assert found == (latest_first if bag_keep == "first" else [["c", None, None], ["c", "b", "a"]])


def test_a_sequence_is_one_of_whole_numbers_too() -> None:
    frame = pd.DataFrame({"history": ["7", "7|8", "9|8"]})
    targets = pd.Series([7, 7, 9])
    features = Features.fit(frame, task="retrieval", targets=targets, separators={"history": "|"})
    model = reference_model(features, model="sasrec")(SearchSpace([EmbeddingSpec("items", 2, 8)]))
    assert isinstance(model, SequenceModule)
    assert model._items_of(features.encode(frame)).tolist() == [[0, 2], [0, 2], [1, 2]]


@pytest.mark.parametrize("columns", [("sex",), ("history", "text", "sex")])
def test_a_sequence_that_is_not_plain_is_asked_for(columns: tuple[str, ...]) -> None:
    features = _sequences(*columns)
    with pytest.raises(ValueError, match=r"`sequence` must name a bag .* targets.* got None"):
        reference_model(features, model="sasrec")
    with pytest.raises(ValueError, match=r"`sequence` must name a bag .*got 'sex'"):
        reference_model(features, model="sasrec", sequence="sex")
    if "text" in columns:
        build = reference_model(features, model="sasrec", sequence="text")
        assert [spec.name for spec in build.specs()] == ["history", "sex", "items"]


@pytest.mark.parametrize(("task", "known"), [("ranking", "dcn"), ("retrieval", "sasrec")])
def test_a_model_of_another_task_is_refused(task: Task, known: str) -> None:
    targets = TARGETS if task == "retrieval" else None
    features = Features.fit(SEQUENCES[["sex"]], task=task, targets=targets)
    for model in ("nothing", "dcn" if task == "retrieval" else "sasrec"):
        with pytest.raises(ValueError, match=f"`model` must be .* or '{known}' .*'{task}', got"):
            reference_model(features, model=model)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="`search_items` must be True for 'sasrec'"):
        reference_model(_sequences("history"), model="sasrec", search_items=False)
    ranking = Features.fit(pd.DataFrame({"user": [1, 2]}), task="ranking")
    for search_items in (True, False):
        with pytest.raises(ValueError, match='`search_items` is for the task "retrieval"'):
            reference_model(ranking, search_items=search_items)
    with pytest.raises(ValueError, match="`hidden` must hold the width of at least one layer"):
        reference_model(_features(), hidden=()).specs(8)
    with pytest.raises(TypeError, match="`embedding_dim` is no argument of `RankingModule`"):
        reference_model(ranking, embedding_dim=9)


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


@pytest.mark.parametrize("tables", ["multi-size", "dense", "float16"])
def test_sequences_and_crosses_are_kept_and_served(tables: Any, tmp_path: Path) -> None:
    for name, features in (
        ("sasrec", _sequences("history", "sex")),
        ("dcn", Features.fit(SEQUENCES[["sex"]], task="ranking")),
    ):
        build = reference_model(features, model=name, init_std=0.5)
        space = SearchSpace(build.specs(4), budget=0.8)
        sizes = space.sample(np.random.default_rng(0), space.budget)
        predictor = Predictor(build(sizes), sizes, features)
        rows = SEQUENCES.assign(history=[["a", "new"], [], ["b", "c", "a"], ["c", "b"]])
        expected = predictor.model(features.encode(rows)).detach()
        served = predictor.with_tables(tables)
        served.save(tmp_path)
        again = Predictor.load(tmp_path)
        found = again.model(features.encode(rows)).detach()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-2)
        assert (again.predict(rows) == served.predict(rows)).all()


@pytest.mark.parametrize(
    ("task", "rate", "epochs"),
    [
        ("ranking", None, 4),
        ("ranking", 2.5e-3, 8),
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
