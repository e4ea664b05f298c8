from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hypothesis import settings
import numpy as np
import optuna
from optuna import Study
from optuna.trial import TrialState
import pandas as pd
import pytest
from servers import GrpcProxy, PostgreSQL, Redis

from optuna_nis import EmbeddingSpec, SearchSpace, penalised_reward
from optuna_nis.study.moments import Moment, save_moment
from optuna_nis.study.results import (
    METRIC_ATTR,
    RetrainResult,
    best_allocation,
    save_results,
    save_space,
)

if TYPE_CHECKING:
    from optuna_nis.data import EmbeddingDataModule
    from optuna_nis.data.config import DataConfig

MakeStudy = Callable[..., Study]

# A busy machine is no fault of a test.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


# Folders whose tests run whole programs.
_WHOLE = ("tests/browser/", "tests/tutorials/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole programs run untraced, and so do not count as covering what they run.

    Before Python 3.12 tracing slows all code down, that of torch and Lightning too, by two thirds.
    """
    for item in items:
        if item.nodeid.startswith(_WHOLE) or item.get_closest_marker("slow"):
            item.add_marker("no_cover")


@pytest.fixture(autouse=True)
def _verbosity() -> Iterator[None]:
    """What a test sets does not hold for the next."""
    before = optuna.logging.get_verbosity()
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], str]]:
    """Addresses of servers, each started when it is first asked for."""
    with ExitStack() as stack:
        started: dict[str, str] = {}

        def start(kind: str) -> str:
            if kind not in started:
                try:
                    if kind == "postgresql":
                        started[kind] = stack.enter_context(PostgreSQL()).url
                    elif kind == "redis":
                        started[kind] = stack.enter_context(Redis()).url
                    else:
                        proxy = stack.enter_context(GrpcProxy(start("postgresql")))
                        started[kind] = f"grpc://{proxy.url}"
                except FileNotFoundError as error:
                    if os.environ.get("CI"):
                        raise
                    pytest.skip(str(error))
            return started[kind]

        yield start


@pytest.fixture
def make_study() -> MakeStudy:
    """Studies as a search leaves them, with random choices and made-up qualities.

    Where they are ``old``, trials do not tell their bytes, as in earlier releases.
    """
    return _make_study


def _make_study(
    features: int | Sequence[str] = 3,
    *,
    supernet: int = 12,
    validated: int = 0,
    dropped: int = 0,
    trained: int = 0,
    mode: Any = "multi",
    precisions: Sequence[int] = (32,),
    old: bool = False,
    excess: float = 1.0,
    results: bool = False,
    name: str = "flights",
    seed: int = 0,
) -> Study:
    rng = np.random.default_rng(seed)
    names = [f"f{i}" for i in range(features)] if isinstance(features, int) else features
    sizes = np.where(rng.random(len(names)) < 0.5, 20, rng.integers(60, 2_000, len(names)))
    space = SearchSpace(
        [EmbeddingSpec(n, int(size), 8, precisions=precisions) for n, size in zip(names, sizes)],
        budget=0.25,
        mode=mode,
    )
    study = optuna.create_study(direction="maximize", study_name=name)
    save_space(study, space)
    study.set_user_attr(METRIC_ATTR, "ROC-AUC")
    distributions = space.distributions()
    kinds = ["supernet"] * supernet + ["validated"] * validated
    kinds += ["dropped"] * dropped + ["trained"] * trained
    trials = []
    for step, fidelity in enumerate(kinds):
        allocation = space.sample(rng, space.budget * rng.uniform(0.1, excess), removal=0.1)
        nbytes = allocation.nbytes()
        reward = penalised_reward(
            rng.uniform(0.7, 0.8), nbytes, space.budget_nbytes, penalty_weight=0.05
        )
        trials.append(
            optuna.create_trial(
                state=TrialState.COMPLETE if fidelity == "trained" else TrialState.PRUNED,
                params=space.params(allocation),
                distributions=distributions,
                value=reward.value,
                user_attrs={
                    "quality": reward.quality,
                    "penalty": reward.penalty,
                    "num_parameters": allocation.num_parameters,
                    **({} if old else {"nbytes": nbytes}),
                    "fidelity": fidelity,
                    "step": step,
                },
            )
        )
    study.add_trials(trials)
    if trials:
        save_moment(study, Moment(len(trials), 2.5, 0.1, 0.9, len(trials)))
    if results:
        best = best_allocation(study)
        full = space.full_parameters
        save_results(
            study,
            [
                RetrainResult(
                    "nis", "NIS", "ROC-AUC", (0.77, 0.78), (0, 1), best.num_parameters, 90, best, 3
                ),
                RetrainResult(
                    "uniform",
                    "Uniform",
                    "ROC-AUC",
                    (0.74, 0.76),
                    (0, 1),
                    space.budget,
                    90,
                    None,
                    4,
                ),
                RetrainResult("full", "Full", "ROC-AUC", (0.76,), (0,), full, 90, space.full(), 5),
            ],
        )
    return study


@pytest.fixture(scope="session")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clicks that depend on the city and on the genres; user ids are noise."""
    rng = np.random.default_rng(0)
    n = 3_000
    city = rng.zipf(1.6, n) % 12
    genres = [rng.choice(["war", "drama", "noir", "love"], rng.integers(0, 3)) for _ in range(n)]
    score = np.sin(3.0 * city) + np.array([("war" in g) * 1.5 for g in genres])
    frame = pd.DataFrame(
        {
            "user": [f"u{i}" for i in rng.integers(0, 600, n)],
            "city": city,
            "genres": ["|".join(g) for g in genres],
            "clicked": rng.random(n) < 1 / (1 + np.exp(-2 * score)),
        }
    )
    path = tmp_path_factory.mktemp("data") / "clicks.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture
def data(clicks: Path) -> DataConfig:
    from optuna_nis.data.config import DataConfig

    return DataConfig(
        table=str(clicks), label="clicked", features=("user", "city"), bags={"genres": "|"}
    )


@pytest.fixture
def datamodule(data: DataConfig) -> EmbeddingDataModule:
    return data.datamodule(withhold_test=True)


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")
