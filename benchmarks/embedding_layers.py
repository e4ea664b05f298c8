"""Multi-size layers and the supernet against the layers of torch, in time and memory.

    python benchmarks/embedding_layers.py

Forward and backward passes in turns, medians of many, 2 threads, ids with a Zipf distribution in
batches of 8,192. Prints one JSON object as its last line and writes it to
``benchmarks/results/embedding_layers.json``:

- ``multisize_vs_sparse``: tiers of 100,000 x 64 + 300,000 x 16 + 600,000 x 4, projected to 64 and
  with sparse gradients, against ``nn.Embedding(1_000_000, 64, sparse=True)``.
- ``multisize_vs_dense``: both with dense gradients.
- ``multisize_step_vs_sparse_step``: as the first, with the step of the optimiser
  (:class:`~optuna_nis.nn.RowwiseAdagrad`) that follows in training.
- ``bag_vs_bag``: bags of 20 ids, against ``nn.EmbeddingBag(1_000_000, 64, sparse=True)``.
- ``supernet_step_vs_plain``: a training step of the supernet on flights, shared among as many
  choices as in a search, the drawing of which counts, against one of the plain model with full
  tables.
- ``packed4_vs_float32``: a lookup, without gradients, from a frozen table of 1,000,000 x 64 in 4
  bits against ``nn.Embedding(1_000_000, 64)``; the median of the ratios of pairs, both in 1
  thread, as servers run that answer many requests at a time.
- ``memory_error``: resident memory of the multi-size layer against ``Allocation.nbytes``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import gc
import json
from pathlib import Path
from statistics import median
import subprocess
import sys

import numpy as np
import psutil
import torch
from torch import Tensor, nn
from turns import seconds_in_turns

from optuna_nis import Allocation, SearchPlan, SearchSpace, TableAllocation, Tier
from optuna_nis.lightning import DataConfig, reference_model
from optuna_nis.nn import (
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    RowwiseAdagrad,
    freeze,
    set_choices,
)

RESULTS = Path(__file__).parent / "results"
ROWS, DIM, BATCH, BAG = 1_000_000, 64, 8192, 20
TABLE = TableAllocation("id", ROWS, DIM, (Tier(100_000, 64), Tier(300_000, 16), Tier(600_000, 4)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "embedding_layers.json")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resident", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.resident:
        print(json.dumps(resident_bytes()))
        return
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rounds = args.rounds
    # First, as in a training of its own: the heap that the large tables below leave behind slows
    # whatever allocates much.
    supernet_step = supernet(rounds)
    result = {
        "multisize_vs_sparse": single(rounds, sparse=True),
        "multisize_vs_dense": single(rounds, sparse=False),
        "multisize_step_vs_sparse_step": single(rounds, sparse=True, optimizer=RowwiseAdagrad),
        "bag_vs_bag": bags(rounds),
        "supernet_step_vs_plain": supernet_step,
        "packed4_vs_float32": packed(rounds),
        "memory_error": memory_error(),
    }
    result = {name: round(value, 4) for name, value in result.items()}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def zipf(rng: np.random.Generator, *shape: int) -> Tensor:
    """Ids by rank, the first one the most frequent: probability proportional to 1 / rank."""
    weights = 1 / np.arange(1, ROWS + 1)
    cumulative = np.cumsum(weights)
    return torch.from_numpy(np.searchsorted(cumulative, rng.random(shape) * cumulative[-1]))


def in_turns(rounds: int, *steps: Callable[[int], object]) -> list[float]:
    """Median seconds of each step."""
    return [median(seconds) for seconds in seconds_in_turns(rounds, *steps)]


def layer_step(
    layer: nn.Module,
    batches: list[Tensor],
    grad: Tensor,
    optimizer: type[torch.optim.Optimizer] | None = None,
) -> Callable[[int], None]:
    """A forward and a backward pass, and a step of the optimiser if there is one."""
    update = None if optimizer is None else optimizer(layer.parameters())

    def step(index: int) -> None:
        for parameter in layer.parameters():
            parameter.grad = None
        layer(batches[index % len(batches)]).backward(grad)
        if update is not None:
            update.step()

    return step


def single(
    rounds: int, *, sparse: bool, optimizer: type[torch.optim.Optimizer] | None = None
) -> float:
    """One id for each example."""
    rng = np.random.default_rng(0)
    batches = [zipf(rng, BATCH) for _ in range(8)]
    grad = torch.randn(BATCH, DIM)
    ours, theirs = in_turns(
        rounds,
        layer_step(MultiSizeEmbedding(TABLE, sparse=sparse), batches, grad, optimizer),
        layer_step(nn.Embedding(ROWS, DIM, sparse=sparse), batches, grad, optimizer),
    )
    return ours / theirs


def bags(rounds: int) -> float:
    """A bag of ids for each example."""
    rng = np.random.default_rng(0)
    batches = [zipf(rng, BATCH, BAG) for _ in range(8)]
    grad = torch.randn(BATCH, DIM)
    ours, theirs = in_turns(
        rounds,
        layer_step(MultiSizeEmbeddingBag(TABLE, mode="sum", sparse=True), batches, grad),
        layer_step(nn.EmbeddingBag(ROWS, DIM, mode="sum", sparse=True), batches, grad),
    )
    return ours / theirs


def supernet(rounds: int) -> float:
    """A training step on flights."""
    datamodule = DataConfig(dataset="flights").datamodule(withhold_test=True)
    build = reference_model(datamodule.features)
    space = SearchSpace(datamodule.embedding_specs(32), budget=0.25)
    rng = np.random.default_rng(0)
    batch = next(iter(datamodule.train_dataloader()))

    def training(model: nn.Module, prepare: Callable[[], None]) -> Callable[[int], None]:
        optimizer = model.configure_optimizers()  # type: ignore[operator]
        model.log = lambda *args, **kwargs: None  # type: ignore[assignment]

        def step(index: int) -> None:
            prepare()
            optimizer.zero_grad()
            model.training_step(batch, index).backward()  # type: ignore[operator]
            optimizer.step()

        return step

    net, plain = build(space), build(space.full())

    num_random = SearchPlan().num_choices(side_by_side=True) - 1

    def share() -> None:
        choices = [space.sample(rng, space.budget) for _ in range(num_random)]
        set_choices(net, space, [space.full(), *choices])

    ours, theirs = in_turns(rounds, training(net, share), training(plain, lambda: None))
    return ours / theirs


def packed(rounds: int) -> float:
    """Lookups in a table of 4 bits."""
    rng = np.random.default_rng(0)
    batches = [zipf(rng, BATCH) for _ in range(8)]
    table = TableAllocation("id", ROWS, DIM, (Tier(ROWS, DIM, 4),))
    small, plain = freeze(MultiSizeEmbedding(table)).eval(), nn.Embedding(ROWS, DIM)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        ours, theirs = seconds_in_turns(
            rounds,
            lambda index: small(batches[index % len(batches)]),
            lambda index: plain(batches[index % len(batches)]),
        )
    torch.set_num_threads(threads)
    return median(a / b for a, b in zip(ours, theirs))


def memory_error() -> float:
    """Resident memory of a layer in a process of its own, against what the allocation says."""
    command = [sys.executable, __file__, "--resident"]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return abs(measured / Allocation([TABLE]).nbytes() - 1)


def resident_bytes() -> int:
    """By how much a process grows when it makes the layer."""
    process = psutil.Process()
    nn.init.normal_(torch.empty(1000, 64))
    MultiSizeEmbedding(TableAllocation("warm-up", 100, DIM, (Tier(10, 64), Tier(90, 4))))
    gc.collect()
    before = process.memory_info().rss
    layer = MultiSizeEmbedding(TABLE)
    gc.collect()
    after = process.memory_info().rss
    assert layer.num_embeddings == ROWS
    return after - before


if __name__ == "__main__":
    main()
