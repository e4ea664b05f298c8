#!/usr/bin/env bash
# The quantised embedding bags of torch 2.13.0 take `per_sample_weights`, as the plain ones do, but
# give them no gradient: the sums of codes of 8, 4 and 2 bits say that they need one, `backward`
# ends without an error, and the weights have none. A warning of `backward` says that an autograd
# kernel is missing; a model with other paths to the loss trains on, its weights by these alone.
# Seen on a CPU:
#
#     plain rows: needs a gradient: True, gradient: [1.5, 7.5]
#     8bit: needs a gradient: True, gradient: None
#     4bit: needs a gradient: True, gradient: None
#     2bit: needs a gradient: True, gradient: None
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.2.6

venv/bin/python -W ignore - <<'EOF'
import torch
from torch.nn.functional import embedding_bag

rows = torch.tensor([[0.0, 0.5, 1.0, 0.0], [1.0, 1.5, 2.0, 3.0]])
ids, offsets = torch.tensor([0, 1]), torch.tensor([0])
quantized = torch.ops.quantized


def told(name, sums):
    """What is known of the gradient of weights, by the sums of a bag."""
    weights = torch.ones(2, requires_grad=True)
    output = sums(weights)
    if output.requires_grad:
        output.sum().backward()
    grad = None if weights.grad is None else weights.grad.tolist()
    print(f"{name}: needs a gradient: {output.requires_grad}, gradient: {grad}")
    return output.requires_grad, grad


def of_codes(name):
    bits = name.replace("8bit", "byte")
    packed = getattr(quantized, f"embedding_bag_{bits}_prepack")(rows)
    sums = getattr(quantized, f"embedding_bag_{bits}_rowwise_offsets")
    return lambda weights: sums(packed, ids, offsets, per_sample_weights=weights)


plain = told(
    "plain rows", lambda w: embedding_bag(ids, rows, offsets, mode="sum", per_sample_weights=w)
)
assert plain == (True, [1.5, 7.5]), plain
for name in ("8bit", "4bit", "2bit"):
    found = told(name, of_codes(name))
    assert found == (True, None), found
EOF
