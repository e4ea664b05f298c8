#!/usr/bin/env bash
# Lightning 2.6.6: a data module and every callback keep the model of their last `Trainer.fit` in
# memory, also once model and trainer are deleted and collected: `datamodule.trainer` stays set, and
# `callback.log` and `callback.log_dict` are methods of the model. Who trains models one after the
# other on one data module, or with one callback, has the last one in memory while the next is made.
#
#     with a loader: freed
#     with a data module: kept
#     with a data module, its trainer set to None: freed
#     with a callback: kept
#     with a callback, its log and log_dict deleted: freed
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 lightning==2.6.6 numpy==2.2.6

venv/bin/python -W ignore - <<'EOF'
import gc
import logging
import weakref

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
import torch
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
LOADER = DataLoader(TensorDataset(torch.ones(2, 1)))


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Data(LightningDataModule):
    def train_dataloader(self):
        return LOADER


def fit(data, *callbacks):
    """A weak reference to a model that was trained, and to which nothing here refers."""
    model = Model()
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    return weakref.ref(model)


def state(model):
    gc.collect()
    return "freed" if model() is None else "kept"


found = {"with a loader": state(fit(LOADER))}
data, callback = Data(), Callback()
model = fit(data)
found["with a data module"] = state(model)
data.trainer = None
found["with a data module, its trainer set to None"] = state(model)
model = fit(LOADER, callback)
found["with a callback"] = state(model)
del callback.log, callback.log_dict
found["with a callback, its log and log_dict deleted"] = state(model)
for name, text in found.items():
    print(f"{name}: {text}")
assert list(found.values()) == ["freed", "kept", "freed", "kept", "freed"], found
EOF
