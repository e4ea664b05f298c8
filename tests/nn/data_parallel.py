"""Sparse gradients in two processes: run by ``test_data_parallel.py``, fails if one is wrong."""

from __future__ import annotations

from collections.abc import Iterator
import copy
from pathlib import Path
import sys

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from optuna_nis import Allocation, EmbeddingSpec, TableAllocation, Tier
from optuna_nis.nn import (
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    SupernetEmbedding,
    apply_allocation,
    make_searchable,
)
from optuna_nis.nn.data_parallel import sparse_allreduce_hook

IDS = torch.tensor([[3, 17], [0, 40], [9, 19], [1, 57], [2, 20], [4, 4], [59, 8], [3, 3]])
TIERS = (Tier(4, 8), Tier(15, 4), Tier(30, 2))
CODES = (Tier(4, 8, 16), Tier(15, 8, 4), Tier(30, 2, 2))
COUNTS = torch.arange(60)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Embedding(60, 8, padding_idx=3, sparse=True)
        self.bag = nn.EmbeddingBag(60, 8, mode="mean", sparse=True)
        self.fused = nn.Embedding(60, 8, sparse=True)

    def forward(self, ids: Tensor) -> Tensor:
        output: Tensor = self.row(ids).sum(1) + self.bag(ids) + self.fused(ids).sum(1)
        return output


def searchable() -> nn.Module:
    model = Model()
    make_searchable(model, budget="50%", counts={"row": COUNTS}, fields={"fused": [20, 40]})
    return model


def sized(*, removed: bool = False, codes: bool = False) -> nn.Module:
    tiers = CODES if codes else TIERS
    names = {"row": 60, "bag": 60, "fused.0": 20, "fused.1": 40}
    tables = [
        TableAllocation(name, size, 8, () if removed and name != "row" else tiers[::2])
        for name, size in names.items()
        if name != "fused.0"
    ]
    tables.append(TableAllocation("fused.0", 20, 8, tiers[:2]))
    return apply_allocation(Model(), Allocation(tables), counts={"row": COUNTS})


def models() -> Iterator[tuple[str, nn.Module]]:
    yield "searchable", searchable()
    yield "copied", copy.deepcopy(searchable())
    yield "sized", sized()
    yield "removed", sized(removed=True)
    yield "codes", sized(codes=True)
    for name, tiers in (("x", TIERS), ("codes", CODES)):
        table = TableAllocation(name, 60, 8, tiers)
        yield f"rows of {name}", MultiSizeEmbedding(table, sparse=True)
        yield f"bags of {name}", MultiSizeEmbeddingBag(table, sparse=True)
    spec = EmbeddingSpec("x", 60, 8)
    yield "supernet", SupernetEmbedding(spec, sparse=True)
    yield "supernet bags", SupernetEmbedding(spec, mode="mean", sparse=True)


def loss(output: Tensor) -> Tensor:
    return (output * torch.arange(output.numel()).view_as(output)).sum()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.to_dense() for name, p in model.named_parameters() if p.grad is not None}


def check(rank: int, folder: str) -> None:
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.manual_seed(0)
    for name, model in models():
        alone = [copy.deepcopy(model) for _ in range(2)]
        parallel = DistributedDataParallel(model)
        parallel.register_comm_hook(None, sparse_allreduce_hook)
        for steps in (1, 2):
            # The second time the gradients are added to the first.
            loss(parallel(IDS[rank::2])).backward()
            for part, each in enumerate(alone):
                loss(each(IDS[part::2])).backward()
            found, (first, second) = gradients(model), map(gradients, alone)
            assert found.keys() == first.keys() == dict(model.named_parameters()).keys(), name
            for parameter, gradient in found.items():
                mean = (first[parameter] + second[parameter]) / 2
                torch.testing.assert_close(gradient, mean, rtol=1e-4, atol=1e-4)
            assert steps == 2 or all(
                p.grad is not None and p.grad.is_sparse
                for key, p in model.named_parameters()
                if not key.endswith(("projection", "spread")) or isinstance(model, Model)
            ), name
        if isinstance(model, Model):
            # It takes nothing but sparse gradients.
            parallel.zero_grad()
            loss(parallel(IDS[rank::2])).backward()
            torch.optim.SparseAdam(list(model.parameters())).step()
        for parameter in model.parameters():
            others = [torch.empty_like(parameter) for _ in range(2)]
            distributed.all_gather(others, parameter.detach())
            assert torch.equal(*others), name
    distributed.destroy_process_group()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    multiprocessing.start_processes(check, (str(folder),), nprocs=2, start_method="fork")
