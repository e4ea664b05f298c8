"""Searches and trainings of models whose tables have sparse gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from killing import KilledAt, KilledError
from lightning.pytorch import Callback, Trainer
import optuna
import pytest

from optuna_nis import SearchPlan, SearchSpace
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning import (
    DataConfig,
    checkpoints,
    convergence,
    reference_model,
    retrain,
    search,
    train,
)
from optuna_nis.models import embeddings
from optuna_nis.nn import AdamAndRowwiseAdagrad


class _Rates(Callback):
    """The learning rates of both parts, each time that they are others."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, ...]] = []

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        (optimizer,) = trainer.optimizers
        assert isinstance(optimizer, AdamAndRowwiseAdagrad)
        rates = tuple(group["lr"] for group in optimizer.param_groups)
        if rates not in self.seen:
            self.seen.append(rates)


@pytest.fixture(autouse=True)
def _users_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "SPARSE_ABOVE", 20)
    monkeypatch.setattr(checkpoints, "_INTERVAL", 0.0)
    monkeypatch.setattr(checkpoints, "_MAX_SHARE", 1.0)


def test_the_rates_of_both_parts_are_lowered(
    datamodule: EmbeddingDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convergence, "_LEAST_STEPS", 20)
    space = SearchSpace(datamodule.embedding_specs(8))
    rates = _Rates()
    build = reference_model(datamodule.features, learning_rate=0.01)
    training = train(build, space.full(), datamodule, seed=0, callbacks=rates, max_epochs=30)
    assert (training.decays, training.ended) == (1, True)
    (dense, tables), lowered = rates.seen
    assert dense == 0.01
    assert tables > dense
    assert lowered == pytest.approx((dense / 5, tables / 5))
    # Back at its best weights, those of the tables too.
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False)
    (found,) = trainer.validate(training.model, datamodule, verbose=False)
    assert found["val_metric"] == pytest.approx(training.val_metric)


@pytest.mark.slow
def test_an_interrupted_search_of_precisions_ends_like_one_that_was_not(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convergence, "_LEAST_STEPS", 50)
    options: dict[str, Any] = {
        "budget": "20%",
        "precisions": (32, 8, 2),
        "embedding_dim": 8,
        "num_updates": 6,
        "plan": SearchPlan(shortlist_epochs=(1,)),
    }
    whole = optuna.create_study(direction="maximize")
    found = search(whole, data, **options, callbacks=[_Rates()])
    assert any(tier.bits < 32 for table in found.values() for tier in table.tiers)
    study = optuna.create_study(direction="maximize")
    for step in (30, 90):
        with pytest.raises(KilledError):
            search(study, data, **options, checkpoint_dir=tmp_path, callbacks=[KilledAt(step)])
    assert search(study, data, **options, checkpoint_dir=tmp_path) == found
    assert [(t.params, t.value) for t in study.trials] == [
        (t.params, t.value) for t in whole.trials
    ]
    results = retrain(study, seeds=[0], max_epochs=1, output=str(tmp_path / "model"))
    assert {"nis", "full"} <= {result.name for result in results}
