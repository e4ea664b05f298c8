"""Under which choices a supernet is trained, whatever its batches look like."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities.combined_loader import CombinedLoader
import numpy as np
import pytest
from tiny import MIXED, TRAIN, Net, batches_of
import torch
from torch import Tensor

from optuna_nis import SearchSpace
from optuna_nis.lightning import NISCallback
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import make_searchable, supernet_layers
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.training_choices import training_choices


def _space() -> SearchSpace:
    return make_searchable(Net(), budget=0.5)


def test_one_choice_in_turns_or_as_many_as_divide_the_batch() -> None:
    space, rng = _space(), np.random.default_rng(0)
    drawn: list[int] = []

    def draw(count: int) -> Any:
        drawn.append(count)
        return [space.sample(rng, space.budget) for _ in range(count)]

    def counts(num_examples: int | None, count: int, **options: Any) -> list[int]:
        runs = [
            training_choices(
                space,
                SearchPlan(),
                rng,
                count=count,
                num_examples=num_examples,
                full=index % 2 == 0,
                **options,
            )
            for index in range(4)
        ]
        assert all(choice.num_parameters <= space.budget for run in runs for choice in run[1:])
        return [len(run) for run in runs]

    assert counts(12, 4) == [4] * 4
    assert counts(10, 4) == [2] * 4
    assert drawn == []
    assert counts(12, 4, draw=draw) == [4] * 4
    assert drawn == [1] * 4
    assert counts(None, 4) == [1] * 4
    assert counts(12, 1) == [1] * 4


class _Pairs(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        parts = [part for part in batch.values() if part is not None]
        losses = [super(_Pairs, self).training_step(part, batch_idx) for part in parts]
        return torch.stack(losses).sum()


class _Counts(Callback):
    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        (layer,) = supernet_layers(pl_module).values()
        self.counts.append(layer.num_choices)


@pytest.mark.parametrize(
    ("mode", "num_batches"),
    [(None, 4), ("min_size", 2), ("max_size_cycle", 4), ("max_size", 4)],
)
@pytest.mark.parametrize("choices_per_step", [None, 2])
def test_several_training_dataloaders(
    mode: Any, num_batches: int, choices_per_step: int | None
) -> None:
    torch.manual_seed(0)
    loaders: Any = {"a": batches_of(TRAIN, 16), "b": batches_of(TRAIN[:32], 16)}
    model = _Pairs()
    search = NISCallback(
        make_searchable(model, budget=0.5),
        num_updates=3,
        group_size=2,
        warmup=0.5,
        choices_per_step=choices_per_step,
    )
    counts = _Counts()
    trainer = quiet_trainer(max_epochs=2, callbacks=[search, counts])
    train = loaders if mode is None else CombinedLoader(loaders, mode)
    trainer.fit(model, train, batches_of(MIXED))
    assert counts.counts == [choices_per_step or 1] * (2 * num_batches)
    steps = [t.user_attrs["step"] for t in search.study.trials][:6]
    assert steps[0] > num_batches
    assert search.candidates
