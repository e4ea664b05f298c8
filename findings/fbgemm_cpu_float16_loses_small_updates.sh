#!/usr/bin/env bash
# The fused embedding tables of fbgemm-gpu-cpu 1.8.0 take `stochastic_rounding=True`, the default,
# for float16 weights on a CPU and round to nearest all the same: updates below half a step of
# float16 are lost, every one. A thousand steps of SGD of 1e-4 should take a weight from 1 to 0.9.
# Stochastic rounding would do that on average.
#
#     fp32: 0.900
#     fp16, stochastic_rounding=False: 1.000
#     fp16, stochastic_rounding=True: 1.000
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
# Without what it asks for, a build of torch for CUDA.
venv/bin/pip install --quiet torch==2.13.0 numpy==2.2.6
venv/bin/pip install --quiet --no-deps fbgemm-gpu-cpu==1.8.0

venv/bin/python -W ignore - <<'EOF'
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    EmbeddingLocation,
    SplitTableBatchedEmbeddingBagsCodegen,
)
import torch

IDS, OFFSETS = torch.arange(4), torch.arange(5)


def trained(precision, stochastic_rounding):
    """The mean weight, 1 at first, after a thousand steps of 1e-4 downwards."""
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(4, 8, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_SGD,
        learning_rate=1e-4,
        weights_precision=precision,
        output_dtype=SparseType.FP32,
        stochastic_rounding=stochastic_rounding,
    )
    (weight,) = tables.split_embedding_weights()
    weight.fill_(1.0)
    for _ in range(1000):
        tables(IDS, OFFSETS).backward(torch.ones(4, 8))
    return tables.split_embedding_weights()[0].float().mean().item()


full = trained(SparseType.FP32, stochastic_rounding=True)
print(f"fp32: {full:.3f}")
assert abs(full - 0.9) < 1e-3, full
for stochastic in (False, True):
    half = trained(SparseType.FP16, stochastic)
    print(f"fp16, stochastic_rounding={stochastic}: {half:.3f}")
    assert half == 1.0, half
EOF
