"""Names that examples in docstrings may use without making them, and what is left out."""

from __future__ import annotations

from collections.abc import Generator
import gc
from importlib.util import find_spec

import optuna
import pytest

from optuna_nis import EmbeddingSpec, NISSampler, SearchSpace
from optuna_nis.study.results import save_space

# Collecting makes much that stays: what follows freezes it, once.
gc.disable()

# Their docstrings are run where torchrec, which is optional, is installed.
_WITH_TORCHREC = ("serve/torchrec.py", "nn/sharding.py", "nn/_sharded_table.py")
collect_ignore = [] if find_spec("torchrec") else [f"optuna_nis/{p}" for p in _WITH_TORCHREC]

# Packages whose examples use `data`.
_WITH_DATA = tuple(f"optuna_nis.{name}." for name in ("data", "lightning", "models", "serve"))


def pytest_collection_finish() -> None:
    """What was imported by now stays: it is not looked through again and again in the tests.

    Full collections go over it otherwise, and so does a swap that looks for optimisers.
    """
    _keep()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    """Nor is what the tests of a file have left: what they imported, and reports of them."""
    result = yield
    if nextitem is not None and nextitem.path != item.path:
        _keep()
    return result


def _keep() -> None:
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _names_of_examples(request: pytest.FixtureRequest, doctest_namespace: dict) -> None:
    if not isinstance(request.node, pytest.DoctestItem):
        return
    used = "".join(example.source for example in request.node.dtest.examples)
    if "study" in used:
        doctest_namespace["study"] = searched_study()
    if "data" in used and request.node.name.startswith(_WITH_DATA):
        doctest_namespace["data"] = small_data()


def searched_study() -> optuna.Study:
    """A study of an embedding search, as `study` in the examples."""
    space = SearchSpace([EmbeddingSpec("user", 1000, 8), EmbeddingSpec("city", 40, 8)], budget=0.5)
    study = optuna.create_study(
        direction="maximize", sampler=NISSampler(budget=space, seed=0), study_name="clicks"
    )
    save_space(study, space)

    def objective(trial: optuna.Trial) -> float:
        allocation = space.suggest(trial)
        trial.set_user_attr("num_parameters", allocation.num_parameters)
        return allocation["city"].num_parameters - 0.1 * allocation["user"].num_parameters

    study.optimize(objective, n_trials=20)
    return study


def small_data() -> object:
    """Clicks of 20 users, as `data` in the examples."""
    import pandas as pd

    from optuna_nis.data import EmbeddingDataModule, Source

    class Clicks(EmbeddingDataModule):
        def load(self) -> Source:
            rows = pd.Series(range(1_000))
            users = (rows * rows) % 20
            frame = pd.DataFrame({"user": users, "item": (7 * rows) % 50})
            return Source(frame, (users + rows) % 3 == 0)

    data = Clicks("ranking", batch_size=100)
    data.setup("fit")
    return data
