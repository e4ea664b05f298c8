#!/usr/bin/env bash
# torch 2.13.0, Lightning 2.6.6: the pickles of two equal tensors differ, since each holds the address of
# its storage in memory. So do those of whatever holds a tensor, such as Lightning's EarlyStopping (its
# best value so far) and ModelCheckpoint. Whoever takes a digest of a pickle to know a job again, as caches
# of results do, does not know the same callback again, not even within one process.
#
#     two equal tensors: other pickles
#     its address is in the pickle of a tensor: True
#     two EarlyStopping("loss"): other pickles
#     two ModelCheckpoint("folder"): other pickles
#     two equal arrays of NumPy: the same pickles
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 lightning==2.6.6 numpy==2.2.6

cat > pickles.py <<'EOF'
import pickle

from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
import numpy as np
import torch


def compared(make):
    one, other = make(), make()
    return "the same pickles" if pickle.dumps(one) == pickle.dumps(other) else "other pickles"


tensor = torch.ones(2)
address = str(tensor.untyped_storage()._cdata).encode()
lines = [
    f"two equal tensors: {compared(lambda: torch.ones(2))}",
    f"its address is in the pickle of a tensor: {address in pickle.dumps(tensor)}",
    f'two EarlyStopping("loss"): {compared(lambda: EarlyStopping("loss"))}',
    f'two ModelCheckpoint("folder"): {compared(lambda: ModelCheckpoint("folder"))}',
    f"two equal arrays of NumPy: {compared(lambda: np.ones(2))}",
]
print("\n".join(lines))
assert lines == [
    "two equal tensors: other pickles",
    "its address is in the pickle of a tensor: True",
    'two EarlyStopping("loss"): other pickles',
    'two ModelCheckpoint("folder"): other pickles',
    "two equal arrays of NumPy: the same pickles",
], lines
EOF

venv/bin/python -W ignore pickles.py 2>/dev/null
