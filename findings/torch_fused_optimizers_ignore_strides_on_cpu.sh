#!/usr/bin/env bash
# torch 2.13.0: SGD, Adagrad, Adam and AdamW with `fused=True` update parameters on a CPU that are
# not contiguous as if they were, without a word. A weight that is the first columns of a larger
# tensor keeps half its rows as they are, and the columns beside it are moved instead. Without
# `fused` it is right. Each is the same:
#
#     fused=False: 24 of 24 weights moved, 0 numbers beside them
#     fused=True: 12 of 24 weights moved, 12 numbers beside them
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.2.6

venv/bin/python -W ignore - <<'EOF'
import torch
from torch import nn


def moved(optimizer, fused):
    """How many numbers a step changes, of the weight and beside it."""
    vectors = torch.ones(6, 8)
    table = nn.Embedding.from_pretrained(vectors[:, :4], freeze=False)
    steps = optimizer(table.parameters(), lr=0.1, fused=fused)
    table(torch.arange(6)).sum().backward()
    steps.step()
    changed = vectors != 1
    return int(changed[:, :4].sum()), int(changed[:, 4:].sum())


for optimizer in (torch.optim.SGD, torch.optim.Adagrad, torch.optim.Adam, torch.optim.AdamW):
    for fused, expected in ((False, (24, 0)), (True, (12, 12))):
        weights, beside = moved(optimizer, fused)
        print(
            f"{optimizer.__name__}, fused={fused}:",
            f"{weights} of 24 weights moved, {beside} numbers beside them",
        )
        assert (weights, beside) == expected, (optimizer, fused, weights, beside)
EOF
