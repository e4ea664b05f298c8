"""Training a supernet in two processes: rows spread over both against rows that both have.

    python benchmarks/sharded_tables.py

A DeepFM-style supernet whose one large table has 5 million rows of width 16, in batches of 4,096
Zipf ids for each process, sparse gradients and row-wise Adagrad; TorchRec with gloo, one thread
for each process. Prints one JSON object as its last line and writes it to
``benchmarks/results/sharded_tables.json``:

- ``table_mib``: the table.
- ``whole_mib``, ``sharded_mib``: by how much the memory of the first process grew at most, from
  before the model was made.
- ``memory_ratio``: the latter in those of the former.
- ``step_ratio``: processor time of a training step, sharded against whole, the medians of all.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import re
import socket
from statistics import median
import time

import numpy as np
import torch
from torch import Tensor, distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.lightning import RankingModule
from optuna_nis.nn import set_choices
from optuna_nis.nn.sharding import sharded

RESULTS = Path(__file__).parent / "results"
DIM, BATCH = 16, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "sharded_tables.json")
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    found = {
        kind: measured(kind == "sharded", args.rows, args.steps) for kind in ("whole", "sharded")
    }
    result = {
        "table_mib": args.rows * DIM * 4 / 2**20,
        **{f"{kind}_mib": mib for kind, (mib, _) in found.items()},
        "memory_ratio": found["sharded"][0] / found["whole"][0],
        "step_ratio": found["sharded"][1] / found["whole"][1],
    }
    result = {name: round(value, 3) for name, value in result.items()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def measured(is_sharded: bool, rows: int, steps: int) -> tuple[float, float]:
    """MiB that the first process needed more, and seconds of a step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # All are forked from a process that has trained nothing.
    queue = multiprocessing.get_context("fork").SimpleQueue()
    multiprocessing.start_processes(
        _train, (port, is_sharded, rows, steps, queue), nprocs=2, start_method="fork"
    )
    found: tuple[float, float] = queue.get()
    return found


def _train(
    rank: int,
    port: int,
    is_sharded: bool,
    rows: int,
    steps: int,
    queue: multiprocessing.SimpleQueue,
) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    specs = [EmbeddingSpec("user", rows, DIM), EmbeddingSpec("city", 100, DIM)]
    space = SearchSpace(specs, budget=0.1)
    before = _mib("VmRSS")
    torch.manual_seed(0)
    build = sharded(RankingModule) if is_sharded else RankingModule
    model = build(space)
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    set_choices(model, space, [space.full()] * 4)
    parallel = DistributedDataParallel(model)
    rng = np.random.default_rng(rank)
    seconds = []
    for _ in range(steps):
        batch = _batch(rng, rows)
        start = time.process_time()
        loss: Tensor = parallel(batch).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds.append(time.process_time() - start)
    distributed.barrier()
    if rank == 0:
        queue.put((_mib("VmHWM") - before, median(seconds)))
    distributed.destroy_process_group()


def _batch(rng: np.random.Generator, rows: int) -> dict[str, Tensor]:
    users = torch.from_numpy(rng.zipf(1.2, BATCH) % rows)
    return {"user": users, "city": torch.from_numpy(rng.integers(0, 100, BATCH))}


def _mib(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"{field}:\s+(\d+) kB", status)[0]) / 2**10


if __name__ == "__main__":
    main()
