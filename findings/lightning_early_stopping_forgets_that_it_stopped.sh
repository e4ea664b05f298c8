#!/usr/bin/env bash
# Lightning 2.6.6: a training that EarlyStopping has ended goes on for another epoch each time that it is
# started again from its last checkpoint. The callback keeps how long it has waited, but neither it nor
# the trainer keeps that it was to stop, and validation asks it again only after an epoch. Whoever starts
# a job again that may have ended (a queue that was interrupted, say) gets other weights each time.
#
#     at first: 3 epochs, stopped in epoch 2
#     started again: 4 epochs, stopped in epoch 3
#     started again: 5 epochs, stopped in epoch 4
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 lightning==2.6.6 numpy==2.2.6

cat > stopping.py <<'EOF'
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
import torch


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        # Best in the first epoch, and never better again.
        self.log("score", -float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(checkpoint):
    stopping = EarlyStopping("score", mode="max", patience=2)
    trainer = Trainer(
        max_epochs=20,
        accelerator="cpu",
        logger=False,
        callbacks=[stopping, ModelCheckpoint("kept", save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batches = torch.utils.data.DataLoader(torch.ones(40, 2), batch_size=8)
    trainer.fit(Model(), batches, batches, ckpt_path=checkpoint)
    return trainer.current_epoch, stopping.stopped_epoch


lines = []
checkpoint = None
for start in ("at first", "started again", "started again"):
    epochs, stopped = fitted(checkpoint)
    checkpoint = "kept/last.ckpt"
    lines.append(f"{start}: {epochs} epochs, stopped in epoch {stopped}")
print("\n".join(lines))
assert lines == [
    "at first: 3 epochs, stopped in epoch 2",
    "started again: 4 epochs, stopped in epoch 3",
    "started again: 5 epochs, stopped in epoch 4",
], lines
EOF

venv/bin/python -W ignore stopping.py 2>/dev/null
