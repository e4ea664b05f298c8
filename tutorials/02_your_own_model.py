"""Your own Lightning model
========================

How to search the embedding sizes of a model that you have already, without changing it, and how to
train the sizes found.
"""

# %%
# Will somebody like a film? This is an ordinary Lightning module with two ``nn.Embedding`` and one
# ``nn.EmbeddingBag`` (a film has several genres). It knows nothing of optuna-nis.
import os

from lightning import LightningModule
import torch
from torch import nn
from torch.nn import functional
from torchmetrics.classification import BinaryAUROC

from optuna_nis.data import load_dataset
from optuna_nis.lightning import search_sizes

SHORT = bool(os.environ.get("OPTUNA_NIS_SHORT"))
quick = {"epochs": 1, "num_updates": 5} if SHORT else {}


class Liked(LightningModule):
    """User, film and genres, and a network over them."""

    def __init__(self, users: int, items: int, genres: int, dim: int = 32) -> None:
        super().__init__()
        self.user = nn.Embedding(users + 1, dim)  # The last id stands for unknown ones.
        self.item = nn.Embedding(items + 1, dim)
        self.genres = nn.EmbeddingBag(genres + 1, dim, padding_idx=genres)
        for table in (self.user, self.item, self.genres):
            nn.init.normal_(table.weight, std=0.03)
        self.mlp = nn.Sequential(nn.Linear(3 * dim, 64), nn.ReLU(), nn.Linear(64, 1))
        self.auroc = BinaryAUROC()

    def forward(self, batch):
        """Logits."""
        user, item = self.user(batch["user"]), self.item(batch["item"])
        rows = torch.cat([user, item, self.genres(batch["genres"])], 1)
        return (user * item).sum(1) + self.mlp(rows).squeeze(1)

    def training_step(self, batch, batch_idx):
        """Cross-entropy."""
        return functional.binary_cross_entropy_with_logits(self(batch), batch["label"])

    def validation_step(self, batch, batch_idx):
        """ROC-AUC."""
        self.auroc.update(self(batch), batch["label"].int())
        self.log("auroc", self.auroc)

    test_step = validation_step

    def configure_optimizers(self):
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


data = load_dataset("movielens-small", max_rows=2_000 if SHORT else None)
known = [len(data.vocabularies[name]) for name in ("user", "item", "genres")]

# %%
# Search
# ------
#
# One call with a function that makes the model, the data, and the name of what the model logs. It
# counts how frequent ids are in the training data, since tables are cut by that, turns the
# embedding layers of one model into supernet layers, and trains it beside a controller.
found = search_sizes(lambda: Liked(*known), data, "10%", monitor="auroc", progress=print, **quick)
for spec in found.space.specs:
    print(f"{spec.name}: blocks of {spec.row_blocks} rows, each {spec.widths} wide")

# %%
# A supernet compares choices of different cost badly. So some candidates, for the budget, for half
# of it, and so on, were trained for real, from the supernet's weights, and validation decided.
for candidate in found.candidates:
    print(f"{candidate.allocation.nbytes():>7,} bytes: {candidate.val_metric:.4f}")
print(found.allocation)

# %%
# Train the sizes found
# ---------------------
#
# From scratch, until validation stops improving, and beside the full tables, uniform widths and
# mixed dimensions of the same budget. Validation decides which sizes to take, which the last line
# says; only then is the test part looked at.
print(found.retrain(seeds=[0], max_epochs=1 if SHORT else None))

# %%
# ``found.build()`` is an ordinary module of these sizes: train it, save it, load it as usual.
# :doc:`/your_model` tells which layers are handled, which are refused, where the reward may come
# from, and how to search in a training of your own, with a callback. The shortest form is two
# lines in an existing script: ``plain_training.py`` and ``searched_training.py``, beside this.
#
# Next: finding one of many items.
