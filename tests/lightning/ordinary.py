"""An ordinary Lightning model and its data, which know nothing of searches."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import BinaryAUROC

USERS, ITEMS, TAGS = 200, 60, 80


class Ordinary(LightningModule):
    def __init__(self, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.user = nn.Embedding(USERS, 8)
        self.item = nn.Embedding(ITEMS, 8, padding_idx=0)
        self.tags = nn.EmbeddingBag(TAGS, 8, mode="mean")
        self.norm = nn.BatchNorm1d(24)
        self.head = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 1))
        self.val_auroc = BinaryAUROC()
        self.seen: list[int] = []

    def forward(self, batch: Any) -> Tensor:
        user, item, tags = batch[:3]
        rows = torch.cat([self.user(user), self.item(item), self.tags(tags)], 1)
        logits: Tensor = self.head(self.norm(rows)).squeeze(1)
        return logits

    def loss(self, batch: Any) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self(batch), batch[3].float())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        logits = self(batch)
        loss = functional.binary_cross_entropy_with_logits(logits, batch[3].float())
        self.seen.append(batch_idx)
        self.val_auroc.update(logits, batch[3])
        self.log_dict({"val_loss": loss, "val_auroc": self.val_auroc}, batch_size=len(logits))
        self.log("val_metric", self.val_auroc, batch_size=len(logits))
        return {"preds": logits, "target": batch[3]}

    def on_validation_epoch_end(self) -> None:
        self.seen.clear()

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.StepLR(optimiser, 10, 0.9)
        return {
            "optimizer": optimiser,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


class Data(LightningDataModule):
    """Clicks that depend on the item and the tags, not on the user."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size
        generator = torch.Generator().manual_seed(0)

        def ids(high: int, *shape: int) -> Tensor:
            return (torch.rand(shape, generator=generator).square() * high).long()

        def part(rows: int) -> TensorDataset:
            user, item, tags = ids(USERS, rows), ids(ITEMS, rows), ids(TAGS, rows, 3)
            score = torch.sin(3.0 * item) + torch.cos(2.0 * tags).mean(1)
            label = torch.rand(rows, generator=generator) < torch.sigmoid(3 * score)
            return TensorDataset(user, item, tags, label.long())

        self.parts = {"train": part(1280), "val": part(512)}

    def train_dataloader(self) -> Any:
        return DataLoader(self.parts["train"], batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return DataLoader(self.parts["val"], batch_size=128)
