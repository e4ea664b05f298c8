#!/usr/bin/env bash
# Lightning 2.6.6: loaders may be any iterables, and one that has a `sampler` is told the epoch by its
# `set_epoch`, so that loaders of one's own (rows that stay on disk, say) shuffle anew in each epoch.
# Trainer.fit takes such a loader for training. Trainer.test, validate and predict take iterables without
# a `sampler`, but of one that has it they want a `batch_sampler` too, which nothing says: once a
# model has been trained, its test ends with an error.
#
#     epochs told to the loader in fit: [0, 1]
#     test without a sampler: fine
#     test with the sampler: AttributeError: 'Windows' object has no attribute 'batch_sampler'
#     test with batch_sampler = None beside it: fine
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 lightning==2.6.6 numpy==2.2.6

cat > loaders.py <<'EOF'
from lightning.pytorch import LightningModule, Trainer
import torch


class Batches:
    def __init__(self):
        self.epochs = []

    def __len__(self):
        return 4

    def __iter__(self):
        return iter([torch.ones(8, 2)] * 4)


class Windows(Batches):
    @property
    def sampler(self):
        return self

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).mean()

    def test_step(self, batch, batch_idx):
        self.log("loss", self.layer(batch).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer():
    return Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def tested(loader):
    try:
        trainer().test(model, loader, verbose=False)
    except AttributeError as error:
        return f"AttributeError: {error}"
    return "fine"


model, loader = Model(), Windows()
trainer().fit(model, loader)
with_it = Windows()
with_it.batch_sampler = None
lines = [
    f"epochs told to the loader in fit: {sorted(set(loader.epochs))}",
    f"test without a sampler: {tested(Batches())}",
    f"test with the sampler: {tested(loader)}",
    f"test with batch_sampler = None beside it: {tested(with_it)}",
]
print("\n".join(lines))
assert lines == [
    "epochs told to the loader in fit: [0, 1]",
    "test without a sampler: fine",
    "test with the sampler: AttributeError: 'Windows' object has no attribute 'batch_sampler'",
    "test with batch_sampler = None beside it: fine",
], lines
EOF

venv/bin/python -W ignore loaders.py 2>/dev/null
