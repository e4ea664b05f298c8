#!/usr/bin/env bash
# torch 2.13.0 does not export to ONNX a clamp of floats between a whole number and a float,
# `x.clamp(-128, 127.5)`, as code that rounds to levels has it: "Cannot find a compatible
# OpOverload for aten.clamp". torch itself computes it, and torch.export takes it; with both bounds
# floats it is exported. Seen with onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0.
#
#     clamp(-128, 127.5): torch.export True, ONNX False
#     clamp(-128.0, 127.5): torch.export True, ONNX True
#     clamp(-128, 127): torch.export True, ONNX True
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet \
    torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0

venv/bin/python -W ignore - <<'EOF'
import logging

import numpy as np
import onnxruntime
import torch
from torch import nn

logging.disable(logging.WARNING)
x = torch.linspace(-300, 300, 13)


class Clamp(nn.Module):
    def __init__(self, low, high):
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x):
        return x.clamp(self.low, self.high)


def exported(model):
    return torch.equal(torch.export.export(model, (x,)).module()(x), model(x))


def in_onnx(model):
    try:
        torch.onnx.export(model, (x,), "clamp.onnx", dynamo=True, verbose=False)
    except Exception as error:
        causes = []
        while error is not None:
            causes.append(str(error))
            error = error.__cause__ or error.__context__
        assert any("Cannot find a compatible OpOverload for aten.clamp" in text for text in causes)
        return False
    session = onnxruntime.InferenceSession("clamp.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, model(x).numpy())
    return True


for low, high, works in ((-128, 127.5, False), (-128.0, 127.5, True), (-128, 127, True)):
    model = Clamp(low, high)
    found = exported(model), in_onnx(model)
    print(f"clamp({low}, {high}): torch.export {found[0]}, ONNX {found[1]}")
    assert found == (True, works)
EOF
