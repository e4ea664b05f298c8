"""A model with an output table, and its data: which item comes after which."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

ITEMS, WIDTH = 80, 8


class NextItem(LightningModule):
    """Predicts the next item from the last one."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.last = nn.Embedding(ITEMS, WIDTH, padding_idx=0)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, ITEMS)
        if tied:
            self.head.weight = self.last.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mix(self.last(ids)))
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.03)


class Pairs(LightningDataModule):
    def _loader(self, rows: int, seed: int) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(seed)
        last = 1 + (torch.rand(rows, generator=generator).square() * (ITEMS - 1)).long()
        return DataLoader(TensorDataset(last, 1 + (last * 7) % (ITEMS - 1)), batch_size=64)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(1280, 0)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(320, 1)
