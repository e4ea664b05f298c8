#!/usr/bin/env bash
# TorchRec 1.8.0 with fbgemm-gpu-cpu 1.8.0, on CPUs: rows that are spread with `row_wise` and the
# fused kernel go to processes in equal blocks, rounded up, so that the last may get none. 4 rows in
# 3 processes are 2, 2 and 0. Its lookup then asks for a GPU, and the others lose their connection.
# The message is about devices, and the cause the number of rows. With the dense kernel it works.
#
#     5 rows, fused: (5, 8) in each process
#     4 rows, dense: (4, 8) in each process
#     4 rows, fused: weights[0] must be a GPU or MTIA tensor; it is currently on device CPU
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
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise
from torchrec.distributed.types import ShardingEnv

PROCESSES = 3


def look_up(rank, rows, kernel):
    """Write the shape of what is found, or the error."""
    store = dist.FileStore(f"store-{rows}-{kernel}", PROCESSES)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    table = EmbeddingBagConfig(
        name="table", num_embeddings=rows, embedding_dim=8, feature_names=["id"]
    )
    tables = EmbeddingBagCollection(tables=[table], device=torch.device("meta"))
    plan = construct_module_sharding_plan(
        tables,
        {"table": row_wise(compute_kernel=kernel)},
        local_size=PROCESSES,
        world_size=PROCESSES,
        device_type="cpu",
    )
    env = ShardingEnv.from_process_group(dist.group.WORLD)
    sharded = EmbeddingBagCollectionSharder().shard(tables, plan, env, torch.device("cpu"))
    ids = KeyedJaggedTensor(
        keys=["id"], values=torch.arange(rows), lengths=torch.ones(rows, dtype=torch.int64)
    )
    try:
        text = str(tuple(sharded(ids)["id"].shape))
    except RuntimeError as error:
        text = str(error).splitlines()[0]
    Path(f"found-{rows}-{kernel}-{rank}").write_text(text)
    os._exit(0)  # The group cannot be left in order once a process has failed.


def found(rows, kernel):
    start_processes(look_up, (rows, kernel), nprocs=PROCESSES, start_method="fork")
    return [Path(f"found-{rows}-{kernel}-{rank}").read_text() for rank in range(PROCESSES)]


for rows, kernel in ((5, "fused"), (4, "dense")):
    texts = found(rows, kernel)
    print(f"{rows} rows, {kernel}: {texts[0]} in each process")
    assert texts == [f"({rows}, 8)"] * PROCESSES, texts
texts = found(4, "fused")
print(f"4 rows, fused: {texts[-1]}")
assert texts[-1].startswith("weights[0] must be a GPU or MTIA tensor"), texts
assert not any(text.startswith("(") for text in texts), texts
EOF
OMP_NUM_THREADS=1 venv/bin/python -W ignore look_up.py 2>/dev/null
