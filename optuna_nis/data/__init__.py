"""Data sets ready to use as Lightning data modules, and tables of one's own."""

from __future__ import annotations

from typing import Any

try:
    import lightning  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"`optuna_nis.data` needs the package `{error.name}`, which is not installed: "
        'pip install "optuna-nis[lightning,datasets]"',
        name=error.name,
    ) from error

from optuna_nis.data.amazon import AmazonVideoGamesRetrieval
from optuna_nis.data.base import EmbeddingDataModule
from optuna_nis.data.features import Features
from optuna_nis.data.flights import FlightsRanking, FlightsRetrieval
from optuna_nis.data.keys import UNSEEN_TARGET, Task
from optuna_nis.data.movielens import (
    MovieLens1MRanking,
    MovieLensSmallRanking,
    MovieLensSmallRetrieval,
)
from optuna_nis.data.named import NamedDataModule
from optuna_nis.data.reading import column_names, read_table
from optuna_nis.data.source import Source
from optuna_nis.data.splits import split_rows
from optuna_nis.data.table import TableDataModule
from optuna_nis.data.vocabulary import Vocabulary

_DATASETS: dict[str, dict[str, type[NamedDataModule]]] = {
    "flights": {"ranking": FlightsRanking, "retrieval": FlightsRetrieval},
    "movielens-small": {"ranking": MovieLensSmallRanking, "retrieval": MovieLensSmallRetrieval},
    "movielens-1m": {"ranking": MovieLens1MRanking},
    "amazon-video-games": {"retrieval": AmazonVideoGamesRetrieval},
}


def load_dataset(name: str, task: Task = "ranking", **options: Any) -> NamedDataModule:
    """Make the data module of a data set by name.

    Args:
        name: ``"flights"`` or ``"movielens-small"``, which come with packages, ``"movielens-1m"``
            or ``"amazon-video-games"``, which are read from files in ``data_dir``.
        task: ``"ranking"`` or ``"retrieval"``.
        **options: Arguments of :class:`NamedDataModule`, such as ``data_dir``, ``features`` and
            ``seed``.

    Raises:
        ValueError: If there is no such data set, or not for this task, or an option is out of
            range.

    Example:
        >>> load_dataset("flights", "retrieval", seed=1).task
        'retrieval'
    """
    if name not in _DATASETS:
        raise ValueError(
            f"`name` must be one of {', '.join(map(repr, _DATASETS))}, got {name!r}. "
            "Tables of your own go by their paths, to `TableDataModule` or `--table`."
        )
    tasks = _DATASETS[name]
    if task not in tasks:
        raise ValueError(
            f"`task` of {name!r} must be one of {', '.join(map(repr, tasks))}, got {task!r}."
        )
    return tasks[task](**options)


__all__ = [
    "UNSEEN_TARGET",
    "AmazonVideoGamesRetrieval",
    "EmbeddingDataModule",
    "Features",
    "FlightsRanking",
    "FlightsRetrieval",
    "MovieLens1MRanking",
    "MovieLensSmallRanking",
    "MovieLensSmallRetrieval",
    "NamedDataModule",
    "Source",
    "TableDataModule",
    "Task",
    "Vocabulary",
    "column_names",
    "load_dataset",
    "read_table",
    "split_rows",
]
