"""Tables spread over two processes: run by ``test_sharding.py``, fails if anything is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import copy
from functools import partial
import os
from pathlib import Path
import socket
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed import checkpoint
from torch.nn.parallel import DistributedDataParallel

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis.data import EmbeddingDataModule, Source
from optuna_nis.lightning import NISCallback, train
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.models import embeddings, reference_model
from optuna_nis.nn import (
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    RowwiseAdagrad,
    SupernetEmbedding,
    apply_allocation,
    make_searchable,
    warm_start,
)
from optuna_nis.nn._sharded_layers import ShardedRows
from optuna_nis.nn.sharding import follow_rates, shard_tables, sharded, sharded_state_dict

ABOVE = 20
SPEC = EmbeddingSpec("x", 60, 8, row_blocks=[10, 50])
ODD = EmbeddingSpec("x", 61, 6, row_blocks=[10, 51])
# Of the first tier no process is without a row, and it is not large.
TABLE = TableAllocation("x", 60, 8, (Tier(4, 8), Tier(24, 6), Tier(30, 2)))
WHOLE = TableAllocation("x", 60, 8, (Tier(60, 8),))
RANKS = torch.arange(59, -1, -1)
# Of each process; in the second step the second one has ids of the first tier alone.
IDS = torch.tensor(
    [
        [[[3, 17], [0, 40], [9, 19], [60, 3]], [[1, 57], [2, 20], [4, 4], [59, 3]]],
        [[[5, 6], [31, 2], [60, 60], [8, 45]], [[0, 1], [2, 3], [0, 0], [1, 60]]],
        [[[3, 17], [17, 40], [17, 19], [58, 3]], [[17, 57], [30, 20], [4, 4], [59, 3]]],
    ]
)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ids = nn.Embedding(61, 8, sparse=True, padding_idx=60)

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.ids(ids)
        return rows


def searchable() -> nn.Module:
    model = Plain()
    make_searchable(model, budget="50%", counts={"ids": torch.arange(61)})
    return model


def sized() -> nn.Module:
    table = TableAllocation("ids", 61, 8, TABLE.tiers)
    return apply_allocation(Plain(), Allocation([table]), counts={"ids": torch.arange(61)})


def several(spec: EmbeddingSpec, mode: str | None = None) -> nn.Module:
    layer = SupernetEmbedding(spec, mode=mode, sparse=True, init_std=1.0)
    layer.set_widths([[spec.embedding_dim] * 2, [5, 3]])
    return layer


def models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    yield "supernet", lambda: several(SPEC)
    yield "bags of a supernet, of an odd width", lambda: several(ODD, "mean")
    yield "rows", lambda: MultiSizeEmbedding(TABLE, ranks=RANKS, sparse=True, init_std=1.0)
    yield "one tier", lambda: MultiSizeEmbedding(WHOLE, sparse=True, init_std=1.0)
    yield "bags", lambda: MultiSizeEmbeddingBag(TABLE, sparse=True, init_std=1.0)
    yield "searchable", searchable
    yield "sized", sized


def loss(output: Tensor) -> Tensor:
    return (output * torch.arange(output.numel()).view_as(output).cos()).sum()


def optimizer_of(model: nn.Module) -> RowwiseAdagrad:
    optimizer = RowwiseAdagrad(model.parameters(), lr=0.5)
    follow_rates(model, optimizer)
    return optimizer


def in_parallel(model: nn.Module) -> nn.Module:
    trained = any(parameter.requires_grad for parameter in model.parameters())
    return DistributedDataParallel(model) if trained else model


def close(found: dict[str, Tensor], expected: dict[str, Tensor], name: str) -> None:
    assert found.keys() == expected.keys(), name
    for key, tensor in expected.items():
        assert torch.allclose(found[key], tensor, rtol=1e-4, atol=1e-5), (name, key)


def check_trained(rank: int, name: str, build: Callable[[], nn.Module]) -> None:
    """Trained like the whole model in one process, with the state of the whole model."""
    torch.manual_seed(0)
    whole = build()
    model = shard_tables(copy.deepcopy(whole), above=ABOVE)
    parallel = in_parallel(model)
    one, two = optimizer_of(whole), optimizer_of(model)
    for step, ids in enumerate(IDS):
        for optimizer in (one, two):
            # As a schedule does.
            optimizer.param_groups[0]["lr"] = 0.5 / (1 + step)
        expected = [whole(part) for part in ids]
        found = parallel(ids[rank])
        assert torch.allclose(found, expected[rank], rtol=1e-4, atol=1e-5), (name, step)
        for optimizer in (one, two):
            optimizer.zero_grad()
        (sum(map(loss, expected)) / 2).backward()
        loss(found).backward()
        one.step()
        two.step()
    state, sums = model.state_dict(), two.state_dict()
    if rank == 0:
        close(state, whole.state_dict(), name)
        again = build()
        again.load_state_dict(state)
        close(again.state_dict(), whole.state_dict(), name)
    else:
        own = {key for key, rows in whole.state_dict().items() if len(state[key]) < len(rows)}
        assert len(own) == len(state) - len(whole.state_dict()) > 0, name
    one.zero_grad()
    (sum(loss(whole(part)) for part in IDS[0]) / 2).backward()
    one.step()
    # What a checkpoint of the first process has is read by all of them.
    shared = [state, sums]
    distributed.broadcast_object_list(shared)
    for weights, of_optimizer in ((state, sums), shared):
        resumed = shard_tables(build(), above=ABOVE)
        optimizer = optimizer_of(resumed)
        resumed.load_state_dict(weights)
        optimizer.load_state_dict(of_optimizer)
        parallel = in_parallel(resumed)
        loss(parallel(IDS[0][rank])).backward()
        optimizer.step()
        found = resumed.state_dict()
        if rank == 0:
            close(found, whole.state_dict(), f"{name}, resumed")


def check_checkpoint(folder: Path) -> None:
    """Written by both processes, into whole tables and sharded ones."""
    torch.manual_seed(0)
    model, other = (
        shard_tables(MultiSizeEmbedding(TABLE, sparse=True), above=ABOVE).eval() for _ in "12"
    )
    checkpoint.save(sharded_state_dict(model), checkpoint_id=folder)
    checkpoint.load(sharded_state_dict(other), checkpoint_id=folder)
    whole = MultiSizeEmbedding(TABLE)
    checkpoint.load(whole.state_dict(), checkpoint_id=folder)
    for layer in (other, whole):
        torch.testing.assert_close(layer(IDS[0]), model(IDS[0]), rtol=0, atol=0)
    states: list[Any] = [None, None]
    distributed.all_gather_object(states, model.state_dict())
    if distributed.get_rank() == 0:
        with pytest.raises(RuntimeError, match=r"from row 0 on, got \(12, 6\) from row 12 on"):
            model.load_state_dict(states[1])


def check_evaluated(rank: int) -> None:
    """What is evaluated is not trained, and a process may have nothing to look up."""
    model = shard_tables(several(SPEC), above=ABOVE, learning_rate=0.5)
    before = model.state_dict()
    model.eval()
    loss(model(IDS[0][rank])).backward()
    assert torch.equal(model.state_dict()["weight"], before["weight"])
    layer = MultiSizeEmbedding(TABLE, sparse=True)
    shard_tables(layer, above=ABOVE, learning_rate=0.5)
    ids = IDS[0][0] if rank else torch.empty(0, 2, dtype=torch.int64)
    output = layer(ids)
    assert output.shape == (*ids.shape, 8)
    output.sum().backward()


def check_warm_start() -> None:
    """Tiers get the rows of a supernet, spread in another way."""
    torch.manual_seed(0)
    supernet = nn.ModuleDict({"x": SupernetEmbedding(SPEC, sparse=True, init_std=1.0)})
    nn.init.normal_(supernet["x"].projection)
    expected, model, plain = (
        nn.ModuleDict({"x": MultiSizeEmbedding(TABLE, sparse=True)}) for _ in range(3)
    )
    warm_start(expected, supernet)
    shard_tables(supernet, above=ABOVE)
    shard_tables(model, above=ABOVE)
    warm_start(model, supernet)
    warm_start(plain, supernet)
    close(plain.state_dict(), expected.state_dict(), "warm start")
    state = model.state_dict()
    if distributed.get_rank() == 0:
        close(state, expected.state_dict(), "warm start of sharded tiers")


class Clicks(EmbeddingDataModule):
    def load(self) -> Source:
        rng = np.random.default_rng(0)
        users = (rng.random(1000) ** 3 * 200).astype(int)
        frame = pd.DataFrame({"user": users, "item": rng.integers(0, 30, 1000)})
        return Source(frame, pd.Series(rng.random(1000) < 0.2 + 0.06 * (users * 7 % 10)))


def check_search(rank: int) -> None:
    """A search finds the same with tables that no process has as with those that all have.

    So does a training of sizes that it finds.
    """
    embeddings.SPARSE_ABOVE = 100  # type: ignore[misc]
    data = Clicks("ranking", batch_size=128)
    data.setup("fit")
    plain = reference_model(data.features, hidden=(8,))
    space = SearchSpace(plain.specs(8), budget="50%")
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    found = []
    for build in (plain, sharded(plain, above=100)):
        model = with_weights_of(plain, build, space)
        search = NISCallback(space, num_updates=1, group_size=4, warmup=0.5)
        trainer = quiet_trainer(max_epochs=1, callbacks=[search], **options)
        trainer.fit(model, data)
        best = next(c for c in search.candidates if c["user"].tiers[0].num_embeddings > 100)
        begun = partial(with_weights_of, plain, build)
        trained = train(begun, best, data, seed=0, max_epochs=1, **options).model
        found.append(([choice.to_json() for choice in search.candidates], model, trained))
    (expected, *plain_models), (candidates, *models) = found
    everywhere: list[object] = [None, None]
    distributed.all_gather_object(everywhere, candidates)
    assert everywhere == [expected, expected]
    for whole, model in zip(plain_models, models):
        (layer,) = (layer for layer in model.modules() if isinstance(layer, ShardedRows))
        assert len(layer.shards.own) == (layer.num_embeddings + 1 - rank) // 2
        assert max(p.numel() for p in model.parameters()) < 4 * layer.num_embeddings
        state = model.state_dict()
        if rank == 0:
            close(state, whole.state_dict(), type(layer).__name__)


def with_weights_of(
    plain: Callable[..., nn.Module], build: Callable[..., Any], tables: SearchSpace | Allocation
) -> Any:
    torch.manual_seed(0)
    state = plain(tables).state_dict()
    model = build(tables)
    model.load_state_dict(state)
    return model


def main(rank: int, port: int) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    for name, build in models():
        check_trained(rank, name, build)
    check_checkpoint(Path(sys.argv[1], "checkpoint"))
    check_evaluated(rank)
    check_warm_start()
    check_search(rank)
    Path(sys.argv[1], f"{rank}.txt").write_text("done")
    distributed.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(main, (port,), nprocs=2, start_method="fork")
