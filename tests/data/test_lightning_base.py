"""Data modules under the trainers of both packages that Lightning comes in."""

from __future__ import annotations

import runpy
import sys
from typing import Any

import lightning.pytorch
import pytest
import torch
from torch import Tensor, nn

from optuna_nis.data import EmbeddingDataModule, lightning_base, load_dataset

pl = pytest.importorskip("pytorch_lightning")


def _seen(package: Any, data: EmbeddingDataModule) -> list[Tensor]:
    """Labels of the batches that a model of a package is given in training, then in the test."""
    seen: list[Tensor] = []

    class Model(package.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1))

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch["label"]

        def training_step(self, label: Tensor, batch_idx: int) -> Tensor:
            seen.append(label)
            return ((self.bias - label) ** 2).mean()

        def test_step(self, label: Tensor, batch_idx: int) -> None:
            seen.append(label)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = package.Trainer(
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Model()
    trainer.fit(model, data)
    # Code of the other package would pass for the data module's own, where versions differ.
    hook = data.on_after_batch_transfer.__func__  # type: ignore[attr-defined]
    assert hook is package.LightningDataModule.on_after_batch_transfer
    trainer.test(model, datamodule=data, verbose=False)
    return seen


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
def test_trainers_of_both_packages_take_the_same_batches() -> None:
    first, second = (
        _seen(package, load_dataset("movielens-small", max_rows=500, batch_size=100))
        for package in (lightning.pytorch, pl)
    )

    assert len(first) == len(second) == 2 * 4 + 1
    assert all(torch.equal(one, other) for one, other in zip(first, second))


def test_with_one_package_data_modules_are_of_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_lightning", None)

    names = runpy.run_path(str(lightning_base.__file__))

    assert names["LightningDataModule"] is lightning.pytorch.LightningDataModule
