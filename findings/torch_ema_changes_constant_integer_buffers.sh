#!/usr/bin/env bash
# torch 2.13.0: AveragedModel with `use_buffers=True` and `get_ema_avg_fn` averages integer buffers
# too. `decay * average + (1 - decay) * current` is computed in floats and copied back into the
# integers, which cuts it off: a buffer that never changes, such as position ids or the order of ids
# in an embedding, drifts away from the model's. `get_ema_multi_avg_fn` does the same; without
# buffers, the default of AveragedModel, nothing happens. Lightning's WeightAveraging passes
# `use_buffers=True` by default.
#
#     entries of a constant buffer of 0 to 99 that changed: 28 with get_ema_avg_fn
#     entries of a constant buffer of 0 to 99 that changed: 28 with get_ema_multi_avg_fn
#     entries of a constant buffer of 0 to 99 that changed: 0 without buffers
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6

venv/bin/python - <<'EOF'
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(100, 4)
        self.register_buffer("position_ids", torch.arange(100))


def changed(**options):
    """How many entries of the average's buffer are not the model's, after ten updates."""
    model = Model()
    average = AveragedModel(model, **options)
    for _ in range(10):
        average.update_parameters(model)
    return int((average.module.position_ids != model.position_ids).sum())


found = {
    "with get_ema_avg_fn": changed(avg_fn=get_ema_avg_fn(0.9), use_buffers=True),
    "with get_ema_multi_avg_fn": changed(multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True),
    "without buffers": changed(avg_fn=get_ema_avg_fn(0.9)),
}
for name, count in found.items():
    print(f"entries of a constant buffer of 0 to 99 that changed: {count} {name}")
assert found.pop("without buffers") == 0
assert all(count > 0 for count in found.values()), found
EOF
