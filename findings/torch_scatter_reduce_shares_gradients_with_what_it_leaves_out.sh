#!/usr/bin/env bash
# With include_self=False, torch.scatter_reduce of torch 2.13.0 leaves out of a maximum or minimum
# what was there before, but not out of its gradient: where that equals the result, it counts as one
# of the equal values among which the gradient is shared, and what was pooled gets too little. The
# usual start is zeros, so it meets bags of embeddings pooled by their maximum wherever the maximum
# is exactly zero, as after a ReLU or with rows of zeros. torch.nn.EmbeddingBag(mode="max") gives
# all of it. Seen, for one value that is pooled alone and has the gradient 1:
#
#     amax, zeros before: 0.0, gradient 0.5
#     amax, fives before: 0.0, gradient 1.0
#     amin, zeros before: 0.0, gradient 0.5
#     EmbeddingBag: 0.0, gradient 1.0
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.2.6

venv/bin/python -W ignore - <<'EOF'
import torch
from torch import nn


def pooled(before, how):
    """The result of one value of zero, and its gradient."""
    row = torch.zeros(1, 1, requires_grad=True)
    index = torch.zeros(1, 1, dtype=torch.long)
    start = torch.full((1, 1), before)
    output = start.scatter_reduce(0, index, row, how, include_self=False)
    output.sum().backward()
    return output.item(), row.grad.item()


bag = nn.EmbeddingBag(1, 1, mode="max")
nn.init.zeros_(bag.weight)
output = bag(torch.tensor([[0]]))
output.sum().backward()
found = {
    "amax, zeros before": pooled(0.0, "amax"),
    "amax, fives before": pooled(5.0, "amax"),
    "amin, zeros before": pooled(0.0, "amin"),
    "EmbeddingBag": (output.item(), bag.weight.grad.item()),
}
for name, (value, gradient) in found.items():
    print(f"{name}: {value}, gradient {gradient}")
assert [gradient for _, gradient in found.values()] == [0.5, 1.0, 0.5, 1.0], found
EOF
