"""The reference model on a data set: made, trained until validation stops improving, tested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
import time
from typing import Any

from data_sets import EMBEDDING_DIM, ITEMS, MONITOR, model_options
from lightning.pytorch import LightningModule

from optuna_nis import Allocation, EmbeddingSpec
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning import reference_model
from optuna_nis.lightning.training import Training, quiet_lightning, quiet_trainer, train
from optuna_nis.models.reference import ReferenceModel

Job = dict[str, Any]
Result = dict[str, Any]


def build_model(
    data: str, datamodule: EmbeddingDataModule, options: Mapping[str, float] | None = None
) -> ReferenceModel:
    return reference_model(datamodule.features, **model_options(data) | dict(options or {}))


def specs_of(data: str, datamodule: EmbeddingDataModule) -> list[EmbeddingSpec]:
    return build_model(data, datamodule).specs(EMBEDDING_DIM[datamodule.task])


def trained(
    data: str,
    datamodule: EmbeddingDataModule,
    allocation: Allocation,
    seed: int,
    options: Mapping[str, float] | None = None,
    make: Callable[[Allocation], LightningModule] | None = None,
) -> Training:
    """Train the reference model from scratch.

    Args:
        data: Name of the data.
        datamodule: The data.
        allocation: Sizes of its tables.
        seed: Of the initial weights and the order of the examples.
        options: Options of the model that are not the defaults.
        make: Makes another model than that.
    """
    datamodule.shuffle_seed = seed
    make = make or build_model(data, datamodule, options)
    start = time.process_time()
    training = train(make, allocation, datamodule, seed=seed, monitor=monitor(data))
    return replace(training, seconds=time.process_time() - start)


def monitor(data: str) -> str:
    """By what trainings are compared on a data set."""
    return MONITOR.get(data.removesuffix(ITEMS), "val_metric")


def validated(data: str, model: LightningModule, datamodule: EmbeddingDataModule) -> float:
    """What a training is compared by, of the model as it is now."""
    with quiet_lightning():
        trainer = quiet_trainer(model)
        (metrics,) = trainer.validate(model, datamodule=datamodule, verbose=False)
    return float(metrics[monitor(data)])


def metrics_on_test(model: LightningModule, datamodule: EmbeddingDataModule) -> Result:
    """The metrics on test, the one that counts as ``"test"``."""
    with quiet_lightning():
        trainer = quiet_trainer(model)
        (metrics,) = trainer.test(model, datamodule=datamodule, verbose=False)
    others = ("test_recall", "test_ndcg")
    return {
        "test": metrics["test_metric"],
        **{name: value for name, value in metrics.items() if name.startswith(others)},
    }


def tested(training: Training, datamodule: EmbeddingDataModule) -> Result:
    """What a training is worth, and what it took."""
    return {
        "val": training.val_metric,
        "val_error": training.val_error,
        **metrics_on_test(training.model, datamodule),
        "epochs": training.epochs,
        "steps": training.steps,
        "best_steps": round(training.steps * training.best_epoch / training.epochs),
        "decays": training.decays,
        "ended": training.ended,
        "seconds": training.seconds,
        "num_dense_parameters": training.model.num_dense_parameters(),  # type: ignore[operator]
    }
