#!/usr/bin/env bash
# Lightning 2.6.6: Trainer.save_checkpoint writes the whole checkpoint into memory first and then to
# the file, a local one too. A model whose embedding tables take N bytes needs N bytes more for
# as long as it writes; torch.save to a path needs none.
#
#     more tables in memory with torch.save: 0.0
#     more tables in memory with save_checkpoint: 1.0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 lightning==2.6.6 numpy==2.2.6

cat > measure.py <<'EOF'
import resource
import sys

from lightning.pytorch import LightningModule, Trainer
import torch
from torch.utils.data import DataLoader, TensorDataset

ROWS, WIDTH = 4_000_000, 64


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(ROWS, WIDTH, sparse=True)

    def training_step(self, batch, batch_idx):
        return self.table(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


model = Model()
trainer = Trainer(
    max_steps=1,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(model, DataLoader(TensorDataset(torch.arange(4))))
if sys.argv[1] == "torch.save":
    torch.save(model.state_dict(), "weights.pt")
if sys.argv[1] == "save_checkpoint":
    trainer.save_checkpoint("model.ckpt")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / (ROWS * WIDTH * 4))
EOF

run() { venv/bin/python -W ignore measure.py "$1" 2>/dev/null; }
plain=$(run nothing)
saved=$(run torch.save)
checkpoint=$(run save_checkpoint)
venv/bin/python - "$plain" "$saved" "$checkpoint" <<'EOF'
import sys

plain, saved, checkpoint = map(float, sys.argv[1:])
print(f"more tables in memory with torch.save: {saved - plain:.1f}")
print(f"more tables in memory with save_checkpoint: {checkpoint - plain:.1f}")
assert saved - plain < 0.3 < 0.7 < checkpoint - plain, sys.argv
EOF
