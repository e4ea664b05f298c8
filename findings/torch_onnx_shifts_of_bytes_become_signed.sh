#!/usr/bin/env bash
# torch 2.13.0 with onnxscript 0.7.2, onnx 1.23.2 and onnxruntime 1.32.0: a shift of a uint8 tensor is
# exported to ONNX as one that gives int8, so numbers from 128 on become negative. Without a shift
# they stay what they are; codes packed into bytes cannot be taken apart by shifts in ONNX.
#
#     x >> 0: torch [1, 100, 200, 255] uint8, ONNX Runtime [1, 100, -56, -1] int8
#     x << 4: torch [16, 64, 128, 240] uint8, ONNX Runtime [16, 64, -128, -16] int8
#     x & 255: torch [1, 100, 200, 255] uint8, ONNX Runtime [1, 100, 200, 255] uint8
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 \
    numpy==2.2.6

venv/bin/python -W ignore - <<'EOF'
import logging

import onnxruntime
import torch

logging.disable(logging.WARNING)


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


x = torch.tensor([1, 100, 200, 255], dtype=torch.uint8)
found = {}
for name, function in {
    "x >> 0": lambda x: x >> 0,
    "x << 4": lambda x: x << 4,
    "x & 255": lambda x: x & 255,
}.items():
    program = torch.onnx.export(Module(function), (x,), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = function(x).numpy()
    found[name] = (output.dtype.name, output.tolist() == expected.tolist())
    print(
        f"{name}: torch {expected.tolist()} {expected.dtype.name}, ONNX Runtime "
        f"{output.tolist()} {output.dtype.name}"
    )
assert found["x >> 0"] == ("int8", False), found
assert found["x << 4"] == ("int8", False), found
assert found["x & 255"] == ("uint8", True), found
EOF
