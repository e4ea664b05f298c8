"""What a model has logged in a validation, by its name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optuna_nis.lightning.logged import logged


def _trainer(**metrics: float) -> Any:
    named = {name.replace("__", "/"): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(callback_metrics=named)


def test_of_several_dataloaders_it_is_the_mean() -> None:
    trainer = _trainer(loss__dataloader_idx_0=1.0, loss__dataloader_idx_1=4.0, loss_other=9.0)
    assert logged(trainer, "loss") == 2.5
    assert logged(trainer, "loss/dataloader_idx_1") == 4.0


def test_what_is_logged_under_the_name_itself_counts() -> None:
    assert logged(_trainer(loss=3.0, loss__dataloader_idx_0=1.0), "loss") == 3.0


def test_a_name_that_is_not_logged_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of \['loss/dataloader_idx_0'\], got 'los'"):
        logged(_trainer(loss__dataloader_idx_0=1.0), "los")
