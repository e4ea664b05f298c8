"""The data sets of the quality benchmark, and how the reference model is trained on each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def data_config(data: str, config: Mapping[str, Any]) -> DataConfig:
    """The configuration of a data set by its name in :data:`DATA`."""
    about = DATA[data.removesuffix(ITEMS)]
    if "table" in about:
        path = str(Path(config.get("data_dir", ".")) / about["table"])
        return DataConfig(**about | {"table": path, "label": "label", "split_column": "split"})
    extra = config if about["dataset"] not in ("flights", "movielens-small") else {}
    return DataConfig(**about | extra)


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
