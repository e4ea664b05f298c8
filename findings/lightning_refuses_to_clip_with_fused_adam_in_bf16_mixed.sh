#!/usr/bin/env bash
# Lightning 2.6.6: with `precision="bf16-mixed"` a Trainer refuses to clip gradients where the
# optimizer was made with `fused=True`, "because it performs unscaling of gradients internally". In
# bf16-mixed nothing is scaled: the plugin has no scaler. The same fused kernel is taken
# where the parameter groups ask for it, and clips as in 32 bits.
#
#     32-true, Adam(fused=True): trained
#     bf16-true, Adam(fused=True): trained
#     bf16-mixed, Adam(fused=False): trained
#     bf16-mixed, Adam(fused=True): The current optimizer, Adam, does not allow for gradient clipping
#     bf16-mixed, fused=True in the group: trained
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 lightning==2.6.6 numpy==2.2.6

venv/bin/python -W ignore - <<'EOF'
import logging

from lightning.pytorch import LightningModule, Trainer
import torch
from torch.utils.data import DataLoader, TensorDataset

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
DATA = DataLoader(TensorDataset(torch.ones(2, 4)))


class Model(LightningModule):
    def __init__(self, group, options):
        super().__init__()
        self.layer = torch.nn.Linear(4, 1)
        self.group, self.options = group, options

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.Adam([{"params": self.parameters(), **self.group}], **self.options)


def outcome(precision, group, options):
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        precision=precision,
        gradient_clip_val=0.1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    assert getattr(trainer.precision_plugin, "scaler", None) is None
    model = Model(group, options)
    try:
        trainer.fit(model, DATA)
    except RuntimeError as error:
        return str(error).partition(" because ")[0]
    norm = sum(parameter.grad.float().square().sum() for parameter in model.parameters()).sqrt()
    assert abs(norm - 0.1) < 1e-3, norm
    return "trained"


found = {
    "32-true, Adam(fused=True)": outcome("32-true", {}, {"fused": True}),
    "bf16-true, Adam(fused=True)": outcome("bf16-true", {}, {"fused": True}),
    "bf16-mixed, Adam(fused=False)": outcome("bf16-mixed", {}, {"fused": False}),
    "bf16-mixed, Adam(fused=True)": outcome("bf16-mixed", {}, {"fused": True}),
    "bf16-mixed, fused=True in the group": outcome("bf16-mixed", {"fused": True}, {}),
}
for name, text in found.items():
    print(f"{name}: {text}")
refused = found.pop("bf16-mixed, Adam(fused=True)")
assert refused == "The current optimizer, Adam, does not allow for gradient clipping", refused
assert set(found.values()) == {"trained"}, found
EOF
