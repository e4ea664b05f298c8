#!/usr/bin/env bash
# TorchRec 1.8.0 with fbgemm-gpu-cpu 1.8.0, on CPUs: `row_wise()`, as in the example of
# construct_module_sharding_plan, chooses the dense kernel. With it an EmbeddingCollection spread
# over two processes fails in every lookup, with an error about sizes. The fused kernel works, and
# so does the dense one with `table_wise`.
#
#     table_wise(rank=0): (6, 8)
#     row_wise(compute_kernel="fused"): (6, 8)
#     row_wise(): Split sizes doesn't match total dim 0 size
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.2.6 tensordict==0.15.3 torchmetrics==1.9.0 \
    tqdm==4.70.1 pyre-extensions==0.0.32
# Without what they ask for, a build of FBGEMM for CUDA.
venv/bin/pip install --quiet --no-deps torchrec==1.8.0 fbgemm-gpu-cpu==1.8.0

cat > look_up.py <<'EOF'
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing import start_processes
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.sharding_plan import (
    construct_module_sharding_plan,
    row_wise,
    table_wise,
)
from torchrec.distributed.types import ShardingEnv

PROCESSES = 2
CASES = {
    "table_wise(rank=0)": table_wise(rank=0),
    'row_wise(compute_kernel="fused")': row_wise(compute_kernel="fused"),
    "row_wise()": row_wise(),
}


def look_up(rank, case):
    """Write the shape of what is found, or the error."""
    store = dist.FileStore(f"store of {case}", PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    table = EmbeddingConfig(name="table", num_embeddings=6, embedding_dim=8, feature_names=["id"])
    tables = EmbeddingCollection(tables=[table], device=torch.device("meta"))
    plan = construct_module_sharding_plan(
        tables,
        {"table": CASES[case]},
        local_size=PROCESSES,
        world_size=PROCESSES,
        device_type="cpu",
    )
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    sharded = EmbeddingCollectionSharder().shard(tables, plan, env, torch.device("cpu"))
    ids = KeyedJaggedTensor(
        keys=["id"], values=torch.arange(6), lengths=torch.ones(6, dtype=torch.int64)
    )
    try:
        text = str(tuple(sharded(ids)["id"].values().shape))
    except RuntimeError as error:
        text = str(error).splitlines()[0]
    Path(f"{rank} of {case}").write_text(text)
    os._exit(0)  # The group cannot be left in order once a process has failed.


found = {}
for case in CASES:
    start_processes(look_up, (case,), nprocs=PROCESSES, start_method="fork")
    found[case] = {Path(f"{rank} of {case}").read_text() for rank in range(PROCESSES)}
    print(f"{case}: {' or '.join(sorted(found[case]))}")
failed = found.pop("row_wise()")
assert all(texts == {"(6, 8)"} for texts in found.values()), found
assert any(text.startswith("Split sizes doesn't match") for text in failed), failed
EOF
OMP_NUM_THREADS=1 venv/bin/python -W ignore look_up.py 2>/dev/null
