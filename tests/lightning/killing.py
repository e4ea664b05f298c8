"""Trainings that are killed at a step."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer


class KilledError(Exception):
    """What ends a training that is killed."""


class KilledAt(Callback):
    """Kills a training before a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step >= self.step:
            raise KilledError
