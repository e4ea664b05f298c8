"""Training batches are shared among choices, whatever they look like."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities.combined_loader import CombinedLoader
import pytest
from tiny import MIXED, TRAIN, Net, batches_of
import torch
from torch import Tensor

from optuna_nis.lightning import NISCallback
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import make_searchable, supernet_layers


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
