"""The data sets of the quality benchmark, and how the reference model is trained on each."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna_nis.data import AmazonVideoGamesRetrieval, MovieLens1MRanking
from optuna_nis.lightning import DataConfig

DATA: dict[str, dict[str, Any]] = {
    "flights-ranking": {"dataset": "flights", "task": "ranking"},
    "flights-retrieval": {"dataset": "flights", "task": "retrieval"},
    "movielens-1m": {"dataset": "movielens-1m", "task": "ranking"},
    "movielens-1m-user-item": {
        "dataset": "movielens-1m",
        "task": "ranking",
        "features": ("user", "item"),
    },
    # With another model than the default.
    "movielens-1m-dcn": {"dataset": "movielens-1m", "task": "ranking"},
    "amazon-video-games-sasrec": {
        "dataset": "amazon-video-games",
        "task": "retrieval",
        "features": ("history",),
        "batch_size": 256,
    },
    "movielens-small": {"dataset": "movielens-small", "task": "retrieval"},
    # With the batches of the others, a training takes twice as long and validates worse.
    "amazon-video-games": {
        "dataset": "amazon-video-games",
        "task": "retrieval",
        "batch_size": 1024,
    },
    # Tables with a split of their own. The rating is the label, the basket no feature.
    "insteval": {
        "table": "insteval.parquet",
        "features": ("student", "lecturer", "studage", "lectage", "service", "dept"),
    },
    "complete_journey": {
        "table": "complete_journey.parquet",
        "features": (
            *("household", "product", "store", "manufacturer", "department", "brand"),
            *("product_category", "product_type", "package_size", "week", "hour", "quantity"),
        ),
    },
    "citeulike_a": {
        "table": "citeulike_a.parquet",
        "features": ("user", "item"),
        "bags": {"item_tags": None},
    },
    "seattle_pets": {
        "table": "seattle_pets.parquet",
        "features": ("pet_name", "zip_id", "issue_month"),
        "bags": {"name_trigrams": None},
    },
}
# Named data sets that are read from files.
FILES = {
    "movielens-1m": tuple(MovieLens1MRanking.files),
    "amazon-video-games": tuple(AmazonVideoGamesRetrieval.files),
}
# What is chosen - defaults, rules, formulas - is chosen on the others; these only judge it.
JUDGED = ("citeulike_a", "seattle_pets")
# Where items are many, a softmax over a part of them for all methods, or a training takes minutes.
# Learning rate and dropout of Amazon were chosen with the full and the uniform tables, by their
# validation.
MODEL_OPTIONS: dict[str, dict[str, Any]] = {
    "movielens-small": {"num_sampled": 1024},
    "amazon-video-games": {"num_sampled": 1024, "learning_rate": 3e-3, "dropout": 0.3},
    "movielens-1m-dcn": {"model": "dcn"},
    "amazon-video-games-sasrec": {
        "model": "sasrec",
        "every_position": True,
        "learning_rate": 2e-3,
        "dropout": 0.5,
    },
}
# Of data sets with this ending the table of the items is searched, too.
ITEMS = "-items"
# When a training stops. On flights a half of all are hits, elsewhere one in a hundred.
MONITOR = dict.fromkeys(
    ("movielens-small", "amazon-video-games", "amazon-video-games-sasrec"), "val_mrr"
)
EMBEDDING_DIM = {"ranking": 32, "retrieval": 64}


def add_data_arguments(parser: ArgumentParser, default: Sequence[str]) -> None:
    """Let a benchmark's command line say which data to use and where they are."""
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(default))
    parser.add_argument(
        "--data-dir", nargs="+", help="folders of the files of data that come with no package"
    )


def check_data(parser: ArgumentParser, names: Iterable[str], config: Mapping[str, Any]) -> None:
    """End a benchmark before it begins if some of its data are not there."""
    for name in names:
        try:
            data_config(name, config)
        except FileNotFoundError as error:
            parser.error(str(error))


def data_config(data: str, config: Mapping[str, Any]) -> DataConfig:
    """The configuration of a data set by its name in :data:`DATA`.

    Args:
        data: The name.
        config: Under ``"data_dir"`` a folder, or several, that are looked through for the files;
            by default the one that one is in.

    Raises:
        FileNotFoundError: If no folder has the files.
    """
    about = DATA[data.removesuffix(ITEMS)]
    if "table" in about:
        path = str(_folder(data, [about["table"]], config) / about["table"])
        return DataConfig(**about | {"table": path, "label": "label", "split_column": "split"})
    files = FILES.get(about["dataset"])
    extra = {} if files is None else {"data_dir": str(_folder(data, files, config))}
    return DataConfig(**about | extra)


def _folder(data: str, files: Iterable[str], config: Mapping[str, Any]) -> Path:
    told = config.get("data_dir") or "."
    folders = [told] if isinstance(told, str) else list(told)
    for folder in map(Path, folders):
        if all((folder / name).is_file() for name in files):
            return folder
    raise FileNotFoundError(
        f"`--data-dir` must name a folder with {', '.join(files)} for {data!r}, there are none "
        f"such in {', '.join(map(repr, folders))}."
    )


def half(data: str) -> str:
    """Whether something may be chosen for what it does on a data set, or is only judged by it."""
    return "judged" if data.removesuffix(ITEMS) in JUDGED else "chosen"


def model_options(data: str) -> dict[str, Any]:
    """The options of the reference model on a data set."""
    name = data.removesuffix(ITEMS)
    plain = DATA[name].get("task") == "retrieval" and name == data
    options = MODEL_OPTIONS.get(name, {})
    # The items of a sequence are a table of its own in any case.
    plain = plain and options.get("model") != "sasrec"
    return options | ({"search_items": False} if plain else {})
