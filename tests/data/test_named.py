from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from optuna_nis.data import (
    AmazonVideoGamesRetrieval,
    FlightsRanking,
    FlightsRetrieval,
    MovieLens1MRanking,
    MovieLensSmallRanking,
    MovieLensSmallRetrieval,
    load_dataset,
)


@pytest.mark.parametrize(
    ("name", "task", "kind"),
    [
        ("flights", "ranking", FlightsRanking),
        ("flights", "retrieval", FlightsRetrieval),
        ("movielens-small", "ranking", MovieLensSmallRanking),
        ("movielens-small", "retrieval", MovieLensSmallRetrieval),
    ],
)
def test_data_sets_of_packages(name: str, task: Any, kind: Any) -> None:
    data = load_dataset(name, task, seed=3, withhold_test=True)

    assert type(data) is kind
    assert (data.task, data.seed, data.withhold_test) == (task, 3, True)


@pytest.mark.parametrize(
    ("name", "task", "kind"),
    [
        ("movielens-1m", "ranking", MovieLens1MRanking),
        ("amazon-video-games", "retrieval", AmazonVideoGamesRetrieval),
    ],
)
def test_data_sets_of_files(name: str, task: Any, kind: Any, tmp_path: Path) -> None:
    assert type(load_dataset(name, task, data_dir=tmp_path)) is kind


def test_features_are_those_asked_for() -> None:
    data = load_dataset("flights", "retrieval", features=("dest_of_no", "origin")[1:])
    other = load_dataset("flights", "retrieval", features=["history", "origin"], max_rows=500)
    other.setup("fit")

    assert not data.bags
    assert other.bags == {"history"}
    assert list(other.vocabularies) == ["history", "origin"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("trains", {}, "`name` must be one of 'flights', 'movielens-small', .* got 'trains'"),
        ("flights", {"task": "sorting"}, "`task` of 'flights' must be one of 'ranking', 'ret"),
        ("movielens-1m", {"task": "retrieval"}, "`task` of 'movielens-1m' must be one of 'rank"),
        ("flights", {"features": ["dest", "town"]}, "`features` of FlightsRanking .* got 'town'"),
        ("flights", {"features": []}, "`features` must name at least one column"),
        ("flights", {"split": "leave-one-out"}, '`split` of FlightsRanking must be one of "rand'),
        ("flights", {"data_dir": "."}, "`data_dir` is not for FlightsRanking"),
        ("movielens-1m", {}, r"`data_dir` .*_users\.parquet \(user, .*grouplens.* got None"),
        ("amazon-video-games", {"task": "retrieval"}, r"sequences\.parquet .*SASRec, got None"),
    ],
)
def test_arguments_are_checked(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(name, **options)


def test_missing_files_are_named(tmp_path: Path) -> None:
    pd.DataFrame({"user": [1], "item": [2], "rating": [3]}).to_parquet(
        tmp_path / "movielens_1m_ratings.parquet"
    )

    with pytest.raises(FileNotFoundError, match=r"_1m_users\.parquet' is not there") as error:
        MovieLens1MRanking(data_dir=tmp_path).setup("fit")
    assert "movielens_1m_movies.parquet (item, genres)" in str(error.value)
    assert "https://grouplens.org/datasets/movielens/1m" in str(error.value)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    pd.DataFrame({"user": [1], "item": [2]}).to_parquet(
        tmp_path / "amazon_video_games_sequences.parquet"
    )

    with pytest.raises(ValueError, match="has no column 'position'; it has 'user', 'item'"):
        AmazonVideoGamesRetrieval(data_dir=tmp_path).setup("fit")
