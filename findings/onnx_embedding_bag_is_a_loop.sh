#!/usr/bin/env bash
# torch 2.13.0 exports nn.EmbeddingBag to ONNX as a Loop over the bags, of about twenty kinds of
# nodes. The result is right, but ONNX Runtime takes many times as long for it as for the same
# pooling written as a look-up and a mean, which becomes a gather and a reduction. Seen with onnx
# 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0, 512 bags of 20 ids: 66 times as long on one machine.
#
#     nn.EmbeddingBag: 11.2 ms, a Loop: True
#     weight[ids].mean(1): 0.2 ms, a Loop: False
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet \
    torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0

venv/bin/python -W ignore - <<'EOF'
import logging
from statistics import median
from time import perf_counter

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

logging.disable(logging.WARNING)
torch.manual_seed(0)
bag = nn.EmbeddingBag(1000, 16, mode="mean")
ids = torch.randint(1000, (512, 20))


class LookUpAndMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = bag.weight

    def forward(self, ids):
        return self.weight[ids].mean(dim=1)


def measure(model, name):
    """Whether the exported model has a Loop, and seconds for a run."""
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model, (ids,), name, dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    session = onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: ids.numpy()}
    (found,) = session.run(None, feed)
    np.testing.assert_allclose(found, bag(ids).detach().numpy(), atol=1e-5)
    seconds = []
    for _ in range(15):
        start = perf_counter()
        session.run(None, feed)
        seconds.append(perf_counter() - start)
    return any(node.op_type == "Loop" for node in onnx.load(name).graph.node), median(seconds)


loop, slow = measure(bag, "bag.onnx")
other, fast = measure(LookUpAndMean(), "mean.onnx")
print(f"nn.EmbeddingBag: {1e3 * slow:.1f} ms, a Loop: {loop}")
print(f"weight[ids].mean(1): {1e3 * fast:.1f} ms, a Loop: {other}")
assert loop and not other
assert slow > 3 * fast, (slow, fast)
EOF
