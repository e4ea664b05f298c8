from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
import pytest

from optuna_nis.lightning.progress import EpochLines


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
