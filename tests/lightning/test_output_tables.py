"""A search over output tables, tied and not, with the callback and the shortlist."""

from __future__ import annotations

from typing import Any

import optuna
from pairs import ITEMS, WIDTH, NextItem, Pairs
import pytest
import torch

from optuna_nis import NISSampler
from optuna_nis.lightning import NISCallback, train_shortlist
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import apply_allocation, make_searchable, output_features


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_search_shortlist_and_retrain(tied: bool) -> None:
    torch.manual_seed(0)
    data, model = Pairs(), NextItem(tied)
    last, following = (
        sum(torch.bincount(batch[index], minlength=ITEMS) for batch in data.train_dataloader())
        for index in range(2)
    )
    counts: Any = {"last": last + following} if tied else {"last": last, "head": following}
    outputs = [] if tied else ["head"]
    space = make_searchable(model, budget="60%", counts=counts, outputs=outputs)
    assert [spec.name for spec in space.specs] == list(counts)
    assert output_features(model) == set(outputs)
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=space, seed=0))
    callback = NISCallback(
        space,
        study,
        monitor="val_loss",
        num_updates=4,
        group_size=3,
        warmup=0.5,
        choices_per_step=2,
    )
    quiet_trainer(max_epochs=4, callbacks=[callback]).fit(model, data)
    found = train_shortlist(
        callback.candidates[:2],
        model,
        lambda sizes: apply_allocation(NextItem(tied), sizes, counts=counts),
        data,
        shortlist_epochs=(1,),
        monitor="val_loss",
        mode="min",
    )
    best = found[0].allocation
    assert best.num_parameters <= space.budget
    final = apply_allocation(NextItem(tied), best, counts=counts)
    biases = ITEMS + WIDTH + WIDTH**2
    assert sum(p.numel() for p in final.parameters()) == best.num_parameters + biases
    trainer = quiet_trainer(max_epochs=8)
    trainer.fit(final, data)
    # Guessing evenly among the items.
    assert trainer.callback_metrics["val_loss"] < 0.7 * torch.tensor(float(ITEMS)).log()
