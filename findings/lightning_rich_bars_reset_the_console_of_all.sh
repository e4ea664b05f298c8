#!/usr/bin/env bash
# Lightning 2.6.6 with rich 15.0: RichProgressBar makes rich's console, the one that a whole program shares,
# anew for each fit, with nothing but its own `console_kwargs`. What a program has set there before (where
# it prints to, the width, whether it is recorded) is gone from its first training on, and stays so.
#
#     before: stderr True, width 120
#     after fit: stderr False, width 80
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 lightning==2.6.6 numpy==2.2.6 rich==15.0.0

cat > console.py <<'EOF'
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
import rich
import torch


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def console():
    shared = rich.get_console()
    return f"stderr {shared.stderr}, width {shared.width}"


rich.reconfigure(stderr=True, width=120)
lines = [f"before: {console()}"]
trainer = Trainer(
    max_epochs=1,
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_model_summary=False,
    callbacks=[RichProgressBar()],
)
trainer.fit(Model(), torch.utils.data.DataLoader(torch.ones(8, 2), batch_size=4))
lines.append(f"after fit: {console()}")
with open("lines", "w") as file:
    file.write("\n".join(lines))
assert lines == ["before: stderr True, width 120", "after fit: stderr False, width 80"], lines
EOF

COLUMNS=80 venv/bin/python -W ignore console.py > /dev/null 2>&1
cat lines; echo
