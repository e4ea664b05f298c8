#!/usr/bin/env bash
# torch 2.13.0 with onnxscript 0.7.2 and onnx 1.23.2: torch.export takes a mask times a free
# dimension, and the program gives what the module gives, but torch.onnx.export cannot turn it into
# ONNX: the dimension is given to int(). Making the mask integers first works, and so does a constant
# in place of the dimension.
#
#     mask.long() * length: exported, to ONNX: exported
#     mask * 1000: exported, to ONNX: exported
#     mask * length: exported, to ONNX: TypeError: int() argument must be a string, a bytes-like
#         object or a real number, not 'SymbolicTensor'
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 numpy==2.2.6

venv/bin/python -W ignore - <<'EOF'
import logging

import torch

logging.disable(logging.WARNING)


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, ids):
        return self.function(ids, ids.shape[1])


free = {0: torch.export.Dim("rows"), 1: torch.export.Dim("length", min=2)}
ids, longer = torch.arange(6).reshape(2, 3), torch.arange(20).reshape(4, 5)
found = {}
for name, function in {
    "mask.long() * length": lambda ids, length: (ids == 0).long() * length,
    "mask * 1000": lambda ids, length: (ids == 0) * 1000,
    "mask * length": lambda ids, length: (ids == 0) * length,
}.items():
    program = torch.export.export(Module(function), (ids,), dynamic_shapes=(free,))
    assert torch.equal(program.module()(longer), function(longer, 5))
    try:
        torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:
        while error.__cause__ is not None:
            error = error.__cause__
        found[name] = f"{type(error).__name__}: {error}"
    else:
        found[name] = "exported"
    print(f"{name}: exported, to ONNX: {found[name]}")
*work, fails = found.values()
assert work == ["exported"] * 2, found
assert "SymbolicTensor" in fails, found
EOF
