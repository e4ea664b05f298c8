#!/usr/bin/env bash
# Lightning 2.6.6 is published twice, as lightning.pytorch and as pytorch_lightning, with classes
# that are not the same. Each trainer refuses the other's modules by their class, but takes the
# other's callbacks and calls their hooks.
#
#     Trainer of lightning.pytorch, module of pytorch_lightning: TypeError
#     Trainer of lightning.pytorch, callback of pytorch_lightning: 4 batches seen
#     Trainer of pytorch_lightning, module of lightning.pytorch: TypeError
#     Trainer of pytorch_lightning, callback of lightning.pytorch: 4 batches seen
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet \
    torch==2.13.0 lightning==2.6.6 pytorch-lightning==2.6.6 numpy==2.2.6

venv/bin/python -W ignore - <<'EOF'
import logging

import lightning.pytorch
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

for package in ("lightning.pytorch", "pytorch_lightning"):
    logging.getLogger(package).setLevel(logging.ERROR)
data = DataLoader(TensorDataset(torch.ones(4, 2)))


def module_of(package):
    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(batch[0]).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def callback_of(package, seen):
    class Callback(package.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(batch_idx)

    return Callback()


def fit(package, module, *callbacks):
    trainer = package.Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)


for own, other in [
    (lightning.pytorch, pytorch_lightning),
    (pytorch_lightning, lightning.pytorch),
]:
    try:
        fit(own, module_of(other))
    except TypeError as error:
        refused = type(error).__name__
    else:
        refused = "trained"
    seen = []
    fit(own, module_of(own), callback_of(other, seen))
    trainer = f"Trainer of {own.__name__}"
    print(f"{trainer}, module of {other.__name__}: {refused}")
    print(f"{trainer}, callback of {other.__name__}: {len(seen)} batches seen")
    assert refused == "TypeError", refused
    assert seen == [0, 1, 2, 3], seen
EOF
