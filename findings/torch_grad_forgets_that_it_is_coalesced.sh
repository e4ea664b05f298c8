#!/usr/bin/env bash
# torch 2.13.0: a sparse gradient that a torch.autograd.Function returns coalesced is not coalesced
# any more in `.grad`: what is handed over without a copy loses the mark, so that the optimizer
# sorts its indices and copies its values once more. torch.autograd.grad gives it as it was
# returned, and `.grad` has the mark where the gradient had to be copied, as it is used elsewhere.
#
#     torch.autograd.grad: coalesced
#     .grad: not coalesced
#     .grad, of a gradient also kept elsewhere: coalesced
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.2.6

venv/bin/python -W ignore - <<'EOF'
import torch


class FirstRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, kept):
        ctx.shape, ctx.kept = weight.shape, kept
        return weight[:2].clone()

    @staticmethod
    def backward(ctx, grad):
        indices, values = torch.tensor([[0, 1]]), grad.clone()
        found = torch.sparse_coo_tensor(indices, values, ctx.shape, is_coalesced=True)
        if ctx.kept is not None:
            ctx.kept.append(found)
        return found, None


def accumulated(kept):
    weight = torch.zeros(5, 3, requires_grad=True)
    FirstRows.apply(weight, kept).sum().backward()
    return weight.grad


weight = torch.zeros(5, 3, requires_grad=True)
(returned,) = torch.autograd.grad(FirstRows.apply(weight, None).sum(), weight)
found = {
    "torch.autograd.grad": returned,
    ".grad": accumulated(None),
    ".grad, of a gradient also kept elsewhere": accumulated([]),
}
for name, grad in found.items():
    print(f"{name}: {'coalesced' if grad.is_coalesced() else 'not coalesced'}")
    assert torch.equal(grad.to_dense(), returned.to_dense()), grad
assert [grad.is_coalesced() for grad in found.values()] == [True, False, True], found
EOF
