"""The search in a plain torch loop: no trainer, the reference model being a torch module.

What is drawn at random, and when, is what a Lightning trainer draws, so that both find the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from optuna_nis import Allocation, SearchPlan, SearchSpace, SizeSearch
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.data.keys import LABEL
from optuna_nis.lightning.convergence import error_on_validation
from optuna_nis.models import EmbeddingModule, RankingModule, reference_model
from optuna_nis.nn import set_choices, warm_start
from optuna_nis.strategy.scoring import Scoring
from optuna_nis.strategy.shortlist import Shortlist
from optuna_nis.strategy.shortlist import Training as ShortTraining

Batch = dict[str, Tensor]

# Rows of a batch that is scored under several choices at once.
_MAX_ROWS = 16_384


def plain_loop(
    data: EmbeddingDataModule, budget: str, seed: int, plan: SearchPlan | None = None
) -> SizeSearch:
    """A search of the sizes of the reference model, whose study has the best."""
    build = reference_model(data.features)
    space = SearchSpace(build.specs(), budget=budget)
    plan = plan or SearchPlan(epochs=build.epochs)
    train, validation = data.train_dataloader(), data.val_dataloader()
    torch.manual_seed(seed)
    supernet = build(space)
    search = SizeSearch(space, plan=plan, seed=seed)
    search.rewarding.error = error_on_validation(supernet, data)
    search.start(plan.epochs * len(train), choices_per_step=plan.num_choices(side_by_side=True))
    score = _scores(search, supernet, validation)
    optimizer = supernet.configure_optimizers()
    for _ in range(plan.epochs):
        for batch in train:
            set_choices(supernet, space, search.training_choices(len(batch[LABEL])))
            _step(supernet, optimizer, batch)
            search.answer(score)
    set_choices(supernet, space, [space.full()])
    _validated(supernet, validation)
    search.end_training()
    search.answer(score)

    shortlist = search.shortlist()
    runs = {
        sizes: _Run(lambda sizes=sizes: build(sizes), supernet, data, shortlist)
        for sizes in shortlist.allocations
    }
    while (training := shortlist.ask()) is not None:
        shortlist.tell(runs[training.allocation].train(training))
    search.record(shortlist.candidates())
    return search


class _Run:
    """A candidate that is trained for real, from the supernet's weights and from scratch."""

    def __init__(
        self,
        build: Callable[[], EmbeddingModule],
        supernet: EmbeddingModule,
        data: EmbeddingDataModule,
        shortlist: Shortlist,
    ) -> None:
        self._build, self._data = build, data
        self._begin()
        warm_start(self._model, supernet)
        self._validation = data.val_dataloader()
        self._num_batches = shortlist.epoch_batches(len(self._train))

    def _begin(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed())
            self._model = self._build()
        self._optimizer = self._model.configure_optimizers()
        # The order of its rows is that of its own epochs.
        self._train = self._data.train_dataloader()

    def train(self, training: ShortTraining) -> float:
        """Some epochs more; the metric at their end."""
        if training.from_scratch:
            self._begin()
        for _ in range(training.epochs):
            for batch in islice(self._train, self._num_batches):
                _step(self._model, self._optimizer, batch)
        return _validated(self._model, self._validation)


def _step(model: EmbeddingModule, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    optimizer.zero_grad()
    model.training_step(batch, 0).backward()
    optimizer.step()


@torch.no_grad()
def _validated(model: EmbeddingModule, validation: DataLoader[Batch]) -> float:
    """The metric that models are compared by, on all validation data."""
    metric = model.val_auroc if isinstance(model, RankingModule) else model.val_scores["mrr"]
    metric.reset()
    model.eval()
    for batch in validation:
        model.validation_step(batch, 0)
    model.train()
    return float(metric.compute())


def _scores(
    search: SizeSearch, model: EmbeddingModule, validation: DataLoader[Batch]
) -> Callable[[Scoring], list[float]]:
    """Scores choices: a group on the first examples of the next batch, finalists on all."""

    def without_end() -> Iterator[Batch]:
        while True:
            yield from validation

    batches = without_end()

    def quality(batch: Batch, choices: Sequence[Allocation]) -> Tensor:
        num_rows = len(batch[LABEL])
        at_once = max(1, _MAX_ROWS // num_rows)
        found = []
        for start in range(0, len(choices), at_once):
            group = choices[start : start + at_once]
            set_choices(model, search.space, group)
            runs = {name: torch.cat([values] * len(group)) for name, values in batch.items()}
            # The ranks among many items are estimated: all choices meet the same ones.
            with torch.random.fork_rng(devices=[]):
                found.append(model.choice_quality(runs, len(group)))
        return torch.cat(found).double()

    def on_all(choices: Sequence[Allocation]) -> Tensor:
        total, num_rows = torch.zeros(len(choices), dtype=torch.float64), 0
        # In mid-training, random numbers drawn later do not depend on it.
        with nullcontext() if search.ended else torch.random.fork_rng(devices=[]):
            for batch in validation:
                total += quality(batch, choices) * len(batch[LABEL])
                num_rows += len(batch[LABEL])
        return total / num_rows

    @torch.no_grad()
    def score(scoring: Scoring) -> list[float]:
        model.eval()
        if scoring.num_examples is None:
            found = on_all(scoring.choices)
        else:
            batch = {name: v[: scoring.num_examples] for name, v in next(batches).items()}
            found = quality(batch, scoring.choices)
        model.train()
        return found.tolist()

    return score
