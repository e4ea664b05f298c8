from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
import pytest
import torch

from optuna_nis.lightning.progress import EpochLines, RowLines


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (
            4,
            [
                "Supernet: epoch 1 of 4, 5 s; at least 15 s of it left.",
                "Supernet: epoch 2 of 4, 10 s; at least 10 s of it left.",
                "Supernet: epoch 3 of 4, 30 s; at least 20 s of it left.",
                "Supernet: epoch 4 of 4, 55 s.",
            ],
        ),
        (
            None,
            [
                "Supernet: epoch 1, 5 s.",
                "Supernet: epoch 2, 10 s.",
                "Supernet: epoch 3, 30 s.",
                "Supernet: epoch 4, 55 s.",
            ],
        ),
    ],
)
def test_the_time_left_goes_by_the_last_epoch(
    epochs: int | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs in which choices are scored take longer than those of the warm-up."""
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    lines: list[str] = []
    told = EpochLines(lines.append, epochs)
    trainer, model = Trainer(max_epochs=4, logger=False, accelerator="cpu"), LightningModule()
    told.on_train_start(trainer, model)
    for epoch, seconds in enumerate((5, 5, 20, 25)):
        trainer.fit_loop.epoch_progress.current.completed = epoch
        told.on_train_epoch_start(trainer, model)
        now += seconds
        told.on_train_epoch_end(trainer, model)
    assert lines == expected


@pytest.mark.parametrize("total", [10, math.inf])
def test_a_long_epoch_says_how_far_it_is(total: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    lines: list[str] = []
    told = RowLines(lines.append, "NIS, seed 0")
    trainer, model = Trainer(max_epochs=4, logger=False, accelerator="cpu"), LightningModule()
    monkeypatch.setattr(Trainer, "num_training_batches", total)
    batches: list[Any] = [{"user": torch.zeros(100)}, "no tensors"]
    for epoch in (0, 1):
        trainer.fit_loop.epoch_progress.current.completed = epoch
        told.on_train_epoch_start(trainer, model)
        for index in range(4):
            now += 12
            told.on_train_batch_end(trainer, model, None, batches[0], index)
    told.on_train_batch_end(trainer, model, None, batches[1], 4)
    of, left = (" of 1,000", "; 84 s of it left") if total == 10 else ("", "")
    assert lines == [
        f"NIS, seed 0: epoch {epoch}, 300{of} rows, 8 rows a second{left}." for epoch in (1, 2)
    ]


def test_an_epoch_that_goes_on_counts_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 500_000.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    lines: list[str] = []
    told = RowLines(lines.append, "Supernet")
    trainer, model = Trainer(max_epochs=4, logger=False, accelerator="cpu"), LightningModule()
    monkeypatch.setattr(Trainer, "num_training_batches", 10)
    told.on_train_start(trainer, model)
    for index in range(6, 9):
        now += 12
        told.on_train_batch_end(trainer, model, None, {"user": torch.zeros(100)}, index)
    assert lines == ["Supernet: epoch 1, 300 of 400 rows, 8 rows a second; 12 s of it left."]
