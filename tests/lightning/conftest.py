from __future__ import annotations

from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import torch

from optuna_nis.data import TableDataModule
from optuna_nis.lightning import DataConfig


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


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
    return DataConfig(
        table=str(clicks), label="clicked", features=("user", "city"), bags={"genres": "|"}
    )


@pytest.fixture
def datamodule(data: DataConfig) -> TableDataModule:
    module = data.datamodule(withhold_test=True)
    assert isinstance(module, TableDataModule)
    return module


@pytest.fixture
def study() -> optuna.Study:
    return optuna.create_study(direction="maximize")
