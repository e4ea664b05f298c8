"""A search in two processes: run by ``test_any_model.py``, writes what each of them saw.

They are forked when everything is imported; Lightning, which would start the second anew, goes by
their ranks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
import socket
import sys

from lightning.pytorch import Callback, LightningModule, Trainer
import optuna
from ordinary import Data, Ordinary
from tiny import TRAIN, Net, batches_of
import torch
from torch import Tensor, multiprocessing, nn
from torchmetrics.classification import BinaryAUROC

from optuna_nis import NISSampler
from optuna_nis.lightning import NISCallback
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import make_searchable, set_choices, supernet_layers


class Seen(Callback):
    """The widths in each step."""

    def __init__(self) -> None:
        self.widths: list[list[list[float]]] = []

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        layers = supernet_layers(pl_module).values()
        self.widths.append([layer._mask.sum(-1)[0].tolist() for layer in layers])


def rare_positives() -> dict[str, int]:
    """On how many examples choices are scored, where only one process has any of one class."""
    torch.manual_seed(0)
    model = Net()
    space = make_searchable(model, budget=0.5)
    search = NISCallback(
        space, num_updates=2, group_size=2, score_examples=4, metric=BinaryAUROC(), warmup=0.5
    )
    trainer = quiet_trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", callbacks=[search]
    )
    # Every other row is of the other process.
    trainer.fit(model, batches_of(TRAIN, 8), batches_of([0] * 26 + [1] + [0] * 13, 20))
    return search._scores.state_dict()


def main(rank: int, output: Path, port: int) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
    torch.manual_seed(0)
    model = Ordinary()
    # Its statistics would differ between the processes.
    model.norm = nn.Identity()  # type: ignore[assignment]
    space = make_searchable(model, budget=0.5)
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=space, seed=0))
    callback = NISCallback(space, study, num_updates=4, group_size=4, warmup=0.5)
    seen = Seen()
    trainer = quiet_trainer(
        max_epochs=2, accelerator="cpu", devices=2, strategy="ddp", callbacks=[callback, seen]
    )
    trainer.fit(model, Data())
    best = callback.search.candidates[0]
    set_choices(model, space, [best])
    model.eval()
    with torch.no_grad():
        losses = [model.loss(batch).item() for batch in Data().val_dataloader()]
    report = {
        "widths": seen.widths,
        "candidates": [choice.to_json() for choice in callback.candidates],
        "trials": {
            fidelity: [t.value for t in study.trials if t.user_attrs["fidelity"] == fidelity]
            for fidelity in ("supernet", "validated")
        },
        "loss_of_the_best": sum(losses) / len(losses),
        "rare_positives": rare_positives(),
    }
    (output / f"{trainer.global_rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(main, (Path(sys.argv[1]), port), nprocs=2, start_method="fork")
