"""Searches and trainings of reference models whose examples have weights, numbers, groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.data import TableDataModule, read_table
from optuna_nis.data.parts import MemoryPart
from optuna_nis.lightning import search_sizes
from optuna_nis.lightning.convergence import error_on_validation
from optuna_nis.lightning.prices import _of_part
from optuna_nis.lightning.rewards import Rewards
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.models import RankingModule, RetrievalModule, reference_model
from optuna_nis.strategy.block_values import Gradients, random_path
from optuna_nis.study.results import summary_of
from optuna_nis.study.uncertainty import auc_standard_error, effective_rows

SPACE = SearchSpace([EmbeddingSpec("user", 40, 8), EmbeddingSpec("city", 9, 8)], budget="50%")


def _rows(retrieval: bool) -> dict[str, Tensor]:
    rows = torch.arange(40)
    return {
        "user": rows,
        "city": rows % 10,
        "label": rows % 7 if retrieval else (rows % 3 == 0).float(),
        # The second half counts much more.
        "weight": torch.rand(40) + 4.0 * (rows >= 20),
    }


def _batches(rows: dict[str, Tensor], size: int) -> list[dict[str, Tensor]]:
    starts = range(0, len(rows["label"]), size)
    return [{name: each[s : s + size] for name, each in rows.items()} for s in starts]


class _Asks(Callback):
    """Asks for qualities and gradients on the same rows, as one batch and as two."""

    def __init__(self, rows: dict[str, Tensor]) -> None:
        rng = np.random.default_rng(0)
        self.rows = rows
        self.choices = [SPACE.sample(rng, cost) for cost in (300, 100, 30)]
        self.path = random_path(SPACE, rng)
        self.qualities: list[Tensor] = []
        self.gradients: list[Gradients] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        for size in (40, 20):
            batches = _batches(self.rows, size)
            rewards = Rewards(SPACE)
            self.qualities.append(rewards.score(trainer, pl_module, self.choices, batches))
            part = [(batch, None) for batch in batches]
            self.gradients += _of_part(trainer, pl_module, [self.path], part)


@pytest.mark.parametrize("retrieval", [False, True])
def test_means_over_batches_are_by_their_weights(retrieval: bool) -> None:
    rows = _rows(retrieval)
    model: Any = (
        RetrievalModule(SPACE, num_classes=7, init_std=1.0)
        if retrieval
        else RankingModule(SPACE, init_std=1.0)
    )
    asks = _Asks(rows)
    loader: Any = DataLoader(_batches(rows, 40), batch_size=None)  # type: ignore[arg-type]
    quiet_trainer(max_steps=1, limit_val_batches=0, callbacks=[asks]).fit(model, loader, loader)
    whole, halves = asks.gradients
    for name, gradients in whole.items():
        np.testing.assert_allclose(halves[name], gradients, rtol=1e-4, atol=1e-7)
        assert np.abs(gradients).max() > 1e-4
    # The area under a curve is no mean over examples.
    if retrieval:
        torch.testing.assert_close(asks.qualities[1], asks.qualities[0])


def test_the_standard_error_is_of_rows_of_equal_weight(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    model = reference_model(datamodule.features)(space.full())
    part = next(iter(datamodule.val_dataloader()))
    datamodule._parts["validation"] = MemoryPart(part)
    plain = error_on_validation(model, datamodule)
    part["weight"] = torch.full_like(part["label"], 3.0)
    equal = error_on_validation(model, datamodule)
    part["weight"] = torch.rand(len(part["label"])) ** 3
    unequal = error_on_validation(model, datamodule)
    assert plain is not None
    assert equal is not None
    assert unequal is not None
    assert equal(0.7) == pytest.approx(plain(0.7))
    rows = [effective_rows(part["weight"][part["label"] == each].numpy()) for each in (1, 0)]
    assert unequal(0.7) == pytest.approx(auc_standard_error(0.7, *rows))
    assert unequal(0.7) > 1.3 * plain(0.7)


@pytest.mark.parametrize("model", ["deepfm", "dcn"])
def test_a_search_and_a_retraining(model: str, clicks: Path, tmp_path: Path) -> None:
    rows = read_table(clicks)
    rng = np.random.default_rng(0)
    # One of the numbers decides.
    rows["price"] = rng.normal(size=len(rows)) + 2 * rows["clicked"].astype(float)
    rows["age"] = rng.normal(size=len(rows))
    rows["trust"] = rng.random(len(rows)) + 0.5
    rows["day"] = np.arange(len(rows)) % 20
    rows.to_csv(tmp_path / "rows.csv", index=False)
    data = TableDataModule(
        tmp_path / "rows.csv", label="clicked", features=["user", "city"], bags={"genres": "|"},
        numeric=["price", "age"], weight="trust", group="day", batch_size=512,
    )  # fmt: skip
    data.setup("test")
    build = reference_model(data.features, model=model, hidden=(8,))
    space = SearchSpace(build.specs(4), budget="50%")
    found = search_sizes(build, data, space=space, epochs=1, num_updates=2, group_size=2)
    results = found.retrain(seeds=[0], max_epochs=3)
    for result in results:
        # What the ids say alone is much less.
        assert result.mean > 0.9
        assert result.metrics.keys() == {"LogLoss", "GAUC"}
        assert 0.85 < result.metrics["GAUC"][0] < 1
        assert 0 < result.metrics["LogLoss"][0] < 0.6
    summary = summary_of(found.study)
    assert summary["nis"]["metrics"] == {n: list(v) for n, v in results[0].metrics.items()}
