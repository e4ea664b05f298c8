"""Whole training steps and serving of a click model: found sizes against full tables.

    python benchmarks/whole_step.py

A click model of the usual shape: 26 features of Zipf ids, 1 to 500,000 values each, 5 million in
all, 13 numbers, and DeepFM (:class:`~optuna_nis.models.RankingModule`); rows of 16 and of 64
numbers. Sizes are those of an eighth of the bytes that a search would find if a column of a row
block were worth the share of the ids that it serves, over its place among the columns. Training is
in batches of 4,096, 2 threads. Steps of both are taken in turns; a ratio is the median of those of
pairs, found sizes against full tables. Prints one JSON object as its last line and writes it, with
all that it was made of, to ``benchmarks/results/whole_step.json``. Of the widths, and in serving
of the runtimes, each number is the worst:

- ``train_vs_dense``: a training step, against ``nn.Embedding`` and Adam for everything.
- ``train_vs_sparse``: against ``nn.Embedding(sparse=True)`` and row-wise Adagrad for all tables
  (:class:`~optuna_nis.nn.AdamAndRowwiseAdagrad`).
- ``train_vs_fused``: against all tables in one call of fbgemm, which updates them in the backward
  pass (``pip install fbgemm-gpu-cpu``); left out where that is not installed.
- ``serve_1``, ``serve_512``: predictions for 1 and 512 examples at a time, by ONNX Runtime and by
  ``torch.compile``, which needs a C++ compiler, after :func:`~optuna_nis.serve.fused`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
import gc
import json
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from quiet import quiet
import torch
from torch import Tensor, nn
from turns import seconds_in_turns

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis.models import RankingModule
from optuna_nis.nn import AdamAndRowwiseAdagrad
from optuna_nis.serve import fused, to_onnx

RESULTS = Path(__file__).parent / "results"
VALUES = [500_000] * 9 + [200_000, 120_000, 80_000, 50_000, 25_258, 14_000, 6_000, 2_500]
VALUES += [1_200, 600, 300, 100, 24, 10, 4, 3, 1]
NUMBERS, BATCH, SHARE = 13, 4096, 0.125
# How often the most frequent id of a feature comes.
MOST_FREQUENT = 1_000_000

Batch = dict[str, Tensor]
Step = Callable[[int], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS / "whole_step.json")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(args.threads)
    rows = []
    for width in args.widths:
        found = found_sizes(VALUES, width)
        rows += training(found, args.rounds) + serving(found, args.calls, args.threads)
    result: dict[str, Any] = {
        key: max(row["ratio"] for row in rows if row["key"] == key)
        for key in dict.fromkeys(row["key"] for row in rows)
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(
        json.dumps(result | {"threads": args.threads, "rows": rows}, indent=1) + "\n"
    )
    print(json.dumps(result))


def found_sizes(values: Sequence[int], width: int) -> Allocation:
    """Sizes of an eighth of the bytes, such as a search finds."""
    counts = [MOST_FREQUENT // np.arange(1, number + 1) for number in values]
    specs = [EmbeddingSpec.from_counts(f"C{i}", own, width) for i, own in enumerate(counts, 1)]
    worth = {}
    for spec in specs:
        served = np.multiply(spec.mean_counts or (), spec.row_blocks)
        worth[spec.name] = np.outer(served / served.sum(), 1 / np.arange(1, width + 1))
    return SearchSpace(specs, budget=SHARE).most_valuable(worth)


def batches_of(tables: Allocation, size: int, number: int, seed: int = 0) -> list[Batch]:
    """Batches whose ids are probable as one over their rank."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(number):
        batch = {"numeric": torch.randn(size, NUMBERS, generator=generator)}
        for name, table in tables.items():
            uniform = torch.rand(size, generator=generator, dtype=torch.float64)
            # The sum of 1 / rank up to r is close to log(r).
            ranks = (float(table.num_embeddings + 1) ** uniform).long() - 1
            batch[name] = ranks.clamp(max=table.num_embeddings - 1)
        batch["label"] = (torch.rand(size, generator=generator) < 0.25).float()
        batches.append(batch)
    return batches


class PlainFields(nn.Module):
    """The full tables of all features, each a plain layer."""

    def __init__(self, sizes: Mapping[str, int], width: int, sparse: bool) -> None:
        super().__init__()
        self.names, self.embedding_dim = [*sizes], width
        self.layers = nn.ModuleList(
            nn.Embedding(
                rows + 1, width, sparse=sparse, _weight=0.03 * torch.randn(rows + 1, width)
            )
            for rows in sizes.values()
        )

    def forward(self, batch: Batch) -> Tensor:
        """The rows of every feature."""
        pairs = zip(self.names, self.layers)
        return torch.stack([layer(batch[name]) for name, layer in pairs], 1)


class FusedFields(nn.Module):
    """The full tables of all features in one call of fbgemm."""

    def __init__(self, sizes: Mapping[str, int], width: int, lr: float) -> None:
        # Registers the operators that it needs.
        from fbgemm_gpu import split_table_batched_embeddings_ops_training as ops
        from fbgemm_gpu.split_embedding_configs import EmbOptimType

        super().__init__()
        self.names, self.embedding_dim = [*sizes], width
        place = (ops.EmbeddingLocation.HOST, ops.ComputeDevice.CPU)
        self.tables = ops.SplitTableBatchedEmbeddingBagsCodegen(
            [(rows + 1, width, *place) for rows in sizes.values()],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=lr,
            eps=1e-10,
        )
        self.tables.init_embedding_weights_uniform(-0.05, 0.05)

    def forward(self, batch: Batch) -> Tensor:
        """The rows of every feature."""
        ids = torch.cat([batch[name] for name in self.names])
        rows: Tensor = self.tables(ids, torch.arange(len(ids) + 1))
        return rows.view(-1, len(self.names), self.embedding_dim)


def full_model(tables: Allocation, make: Callable[[Mapping[str, int], int], nn.Module]) -> Any:
    """The reference model over the full tables, which are made by others."""
    sizes = {name: table.num_embeddings for name, table in tables.items()}
    (width,) = {table.embedding_dim for table in tables.values()}
    # Of its own tables nothing is kept.
    smallest = Allocation(TableAllocation(name, 1, width, (Tier(1, width),)) for name in tables)
    model = RankingModule(smallest, num_numeric=NUMBERS)
    model.embeddings = make(sizes, width)  # type: ignore[assignment]
    return model


def training_step(
    model: RankingModule, batches: Sequence[Batch], optimizer: torch.optim.Optimizer
) -> Step:
    """A whole training step."""

    def step(index: int) -> None:
        optimizer.zero_grad()
        loss = model.training_step(batches[index % len(batches)], index)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def training(found: Allocation, rounds: int) -> list[dict[str, Any]]:
    """A step of the found sizes against that of each kind of full tables."""
    batches = batches_of(found, BATCH, 4)
    rows = []
    for key, make in (
        ("train_vs_sparse", _sparse),
        ("train_vs_fused", _fused),
        ("train_vs_dense", _dense),
    ):
        ours = RankingModule(found, num_numeric=NUMBERS)
        try:
            theirs, optimizer = make(found)
        except ModuleNotFoundError as error:
            print(f"{key} is left out: {error}")
            continue
        # A step over all numbers of dense tables takes seconds.
        seconds = seconds_in_turns(
            rounds if key != "train_vs_dense" else max(rounds // 5, 3),
            training_step(ours, batches, ours.configure_optimizers()),
            training_step(theirs, batches, optimizer),
        )
        rows.append(compared(key, found, *seconds))
        del ours, theirs, optimizer
        gc.collect()
    return rows


def _dense(found: Allocation) -> tuple[Any, torch.optim.Optimizer]:
    model = full_model(found, lambda sizes, width: PlainFields(sizes, width, sparse=False))
    return model, torch.optim.Adam(model.parameters(), lr=model.learning_rate, fused=True)


def _sparse(found: Allocation) -> tuple[Any, torch.optim.Optimizer]:
    model = full_model(found, lambda sizes, width: PlainFields(sizes, width, sparse=True))
    tables = [*model.embeddings.parameters()]
    dense = [p for p in model.parameters() if all(p is not table for table in tables)]
    rate = model.learning_rate
    return model, AdamAndRowwiseAdagrad(dense, tables, rate, 3 * rate)


def _fused(found: Allocation) -> tuple[Any, torch.optim.Optimizer]:
    model = full_model(found, lambda sizes, width: FusedFields(sizes, width, 0.015))
    tables = {id(parameter) for parameter in model.embeddings.parameters()}
    dense = [p for p in model.parameters() if id(p) not in tables]
    return model, torch.optim.Adam(dense, lr=model.learning_rate, fused=True)


def serving(found: Allocation, calls: int, threads: int) -> list[dict[str, Any]]:
    """Predictions of the found sizes against those of full tables."""
    ours = fused(RankingModule(found, num_numeric=NUMBERS).eval())
    theirs = full_model(found, lambda sizes, width: PlainFields(sizes, width, sparse=False)).eval()
    rows = []
    for runtime, served in (("onnxruntime", _onnx), ("torch.compile", _compiled)):
        one, other = served(ours, found, threads), served(theirs, found, threads)
        for size in (1, 512):
            batches = batches_of(found, size, 64, seed=1)
            for batch in batches:
                del batch["label"]
            seconds = seconds_in_turns(calls, one(batches), other(batches))
            rows.append(compared(f"serve_{size}", found, *seconds, runtime=runtime))
    return rows


def _onnx(model: nn.Module, found: Allocation, threads: int) -> Callable[[list[Batch]], Step]:
    import onnxruntime

    (example,) = batches_of(found, 5, 1)
    del example["label"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with TemporaryDirectory() as folder:
        to_onnx(model, example, f"{folder}/model.onnx")
        session = onnxruntime.InferenceSession(
            f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"]
        )

    def on(batches: list[Batch]) -> Step:
        inputs = [{name: own.numpy() for name, own in batch.items()} for batch in batches]
        return lambda index: session.run(None, inputs[index % len(inputs)])

    return on


def _compiled(model: nn.Module, found: Allocation, threads: int) -> Callable[[list[Batch]], Step]:
    def on(batches: list[Batch]) -> Step:
        compiled = torch.compile(model, dynamic=False)

        def step(index: int) -> None:
            with torch.inference_mode():
                compiled(batches[index % len(batches)])

        return step

    return on


def compared(
    key: str, found: Allocation, ours: list[float], theirs: list[float], **more: Any
) -> dict[str, Any]:
    """How two compare, in milliseconds."""

    def milliseconds(times: list[float]) -> dict[str, float]:
        return {
            "median": round(1000 * median(times), 3),
            "percentile_99": round(1000 * float(np.quantile(times, 0.99)), 3),
        }

    row = {
        "key": key,
        "embedding_dim": next(iter(found.values())).embedding_dim,
        **more,
        "found": milliseconds(ours),
        "full": milliseconds(theirs),
        "ratio": round(median(a / b for a, b in zip(ours, theirs)), 3),
    }
    print(json.dumps(row), flush=True)
    return row


if __name__ == "__main__":
    main()
