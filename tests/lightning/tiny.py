"""A tiny model and its data, for searches that take a blink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import BinaryAUROC
from torchmetrics.functional.classification import binary_auroc

IDS = 40


class Net(LightningModule):
    """Notes the examples of each validation step where scoring does not put it back."""

    def __init__(self) -> None:
        super().__init__()
        self.ids = nn.Embedding(IDS, 4)
        self.head = nn.Linear(4, 1)
        self.auroc = BinaryAUROC()
        self.note: Callable[[Any], None] = lambda seen: None

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.ids(ids))[:, 0]
        return logits

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        ids, label = batch
        return functional.binary_cross_entropy_with_logits(self(ids), label.float())

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        ids, label = batch
        self.note((dataloader_idx, ids.tolist()))
        logits = self(ids)
        self.auroc.update(logits, label)
        self.log("auroc", self.auroc)
        if label.min() < label.max():
            self.log("batch_auroc", binary_auroc(logits, label))
        else:
            self.log("batch_auroc", torch.nan)
        self.log("val_loss", functional.binary_cross_entropy_with_logits(logits, label.float()))
        return logits, label

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SideBySide(Net):
    def choice_quality(self, batch: Any, num_choices: int) -> Tensor:
        ids, label = batch
        label = label.view(num_choices, -1)[0]
        if label.min() == label.max():
            return torch.full((num_choices,), torch.nan)
        logits = self(ids).view(num_choices, -1)
        return torch.stack([binary_auroc(each, label) for each in logits])


def rows(labels: Any, first: int = 0) -> TensorDataset:
    labels = torch.as_tensor(labels)
    return TensorDataset((torch.arange(len(labels)) + first) % IDS, labels)


def batches_of(labels: Any, batch_size: int = 10, **options: Any) -> Any:
    return DataLoader(rows(labels), batch_size=batch_size, **options)


TRAIN = torch.arange(64) % 2
MIXED = torch.arange(40) // 2 % 2
