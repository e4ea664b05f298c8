"""Your own Lightning model
========================

How to search the embedding sizes of a model that you have already, without changing it, and how to
train the sizes found.
"""

# %%
# Will somebody like a film? This is an ordinary Lightning module with two ``nn.Embedding`` and one
# ``nn.EmbeddingBag`` (a film has several genres). It knows nothing of optuna-nis.
import logging
import os

from lightning import LightningModule, Trainer
import torch
from torch import nn
from torch.nn import functional
from torchmetrics.classification import BinaryAUROC

from optuna_nis.data import load_dataset
from optuna_nis.lightning import NISCallback, evaluate, train, train_shortlist
from optuna_nis.nn import apply_allocation, count_ids, make_searchable
from optuna_nis.strategy import baselines

SHORT = bool(os.environ.get("OPTUNA_NIS_SHORT"))
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


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


data = load_dataset("movielens-small", batch_size=512, max_rows=2_000 if SHORT else None)
data.setup("fit")
known = [len(data.vocabularies[name]) for name in ("user", "item", "genres")]

# %%
# Search
# ------
#
# ``count_ids`` looks through the training data: tables are cut by how frequent their ids are.
# ``make_searchable`` turns the embedding layers into supernet layers, in place, and gives the
# search space. From then on it is ``Trainer.fit`` with one more callback, which is told what the
# model logs.
model = Liked(*known)
counts = count_ids(data.train_dataloader(), model)
space = make_searchable(model, counts=counts, budget="10%")
print(space)
for spec in space.specs:
    print(f"{spec.name}: blocks of {spec.row_blocks} rows, each {spec.widths} wide")

# %%
search = NISCallback(space, monitor="auroc", num_updates=5 if SHORT else 50)
trainer = Trainer(
    max_epochs=1 if SHORT else 4,
    callbacks=[search],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, datamodule=data)

# %%
# A supernet compares choices of different cost badly, so the callback leaves several candidates,
# one for the budget, one for half of it, and so on. A short training of each, which starts from
# the supernet's weights, decides on validation data.


def build(sizes):
    """A new model of given sizes."""
    return apply_allocation(Liked(*known), sizes, counts=counts)


shortlist = train_shortlist(
    search.candidates, model, build, data, rounds=(1,) if SHORT else (1, 1, 2), monitor="auroc"
)
for candidate in shortlist:
    print(f"{candidate.allocation.num_parameters:>7,} parameters: {candidate.val_metric:.4f}")
best = shortlist[0].allocation
print(best)

# %%
# Train the sizes found
# ---------------------
#
# From scratch, until validation stops improving, and beside the full tables and uniform widths of
# the same budget. Only now is the test part looked at.
uniform = baselines.uniform(space, projected=True)
for name, sizes in {"found": best, "uniform": uniform, "full": space.full()}.items():
    run = train(build, sizes, data, seed=0, monitor="auroc", max_epochs=1 if SHORT else 30)
    tested = evaluate(run.model, data, monitor="auroc")
    print(f"{name:8} ROC-AUC {tested:.4f}, {sizes.num_parameters:>7,} parameters")

# %%
# ``build(best)`` is an ordinary module again: save it, load it, go on training as you are used to.
# :doc:`/your_model` tells which layers are handled, which are refused, and where the reward may
# come from. The shortest form is five lines in an existing script: ``plain_training.py`` and
# ``searched_training.py``, beside this file.
#
# Next: finding one of many items.
