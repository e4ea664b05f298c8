"""A small model whose choices are scored in the middle of a training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from optuna_nis import Allocation
from optuna_nis.lightning.rewards import Rewards
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import make_searchable, set_choices

IDS = torch.arange(60).repeat(2)
LABEL = (IDS % 3 == 0).float()


def loader(batch_size: int = 50) -> DataLoader[Any]:
    return DataLoader(TensorDataset(IDS, LABEL), batch_size)


class Small(LightningModule):
    """Scores ids by one number each, which the loss of a batch is of."""

    learning_rate = 0.05

    def __init__(self) -> None:
        super().__init__()
        self.user, self.out = nn.Embedding(60, 8), nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.out(self.user(ids)).squeeze(1)
        return logits

    def loss(self, batch: Any) -> Tensor:
        return functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class Probe(Callback):
    """Scores choices after the first training step."""

    trainer: Trainer

    def __init__(self, rewards: Rewards, choices: list[Allocation], batches: Any) -> None:
        self.rewards, self.choices, self.batches = rewards, choices, batches
        self.quality: list[float] = []
        self.options: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if not self.quality:
            quality = self.rewards.score(
                trainer, pl_module, self.choices, self.batches, **self.options
            )
            self.quality = quality.tolist()


def scored(
    model: Any,
    batches: Any = None,
    trainer: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    probe: type[Probe] = Probe,
    **how: Any,
) -> Probe:
    """The probe that has scored the full tables and two smaller choices."""
    space = make_searchable(model)
    rng = np.random.default_rng(0)
    choices = [space.full(), space.sample(rng, 200), space.sample(rng, 50)]
    made = probe(Rewards(space, **how), choices, loader() if batches is None else batches)
    made.options = options or {}
    settings = {"max_steps": 1, "limit_val_batches": 0} | (trainer or {})
    settings["callbacks"] = [made, *settings.get("callbacks", [])]
    made.trainer = quiet_trainer(**settings)
    made.trainer.fit(model, loader(), loader())
    return made


def true_losses(model: Small, probe: Probe) -> list[float]:
    """What the choices are worth, each by itself."""
    losses = []
    model.eval()
    for choice in probe.choices:
        set_choices(model, probe.rewards.space, [choice])
        with torch.no_grad():
            losses.append(float(model.loss((IDS, LABEL))))
    return losses
