"""Tables spread over processes by TorchRec, run for real on CPU."""

from __future__ import annotations

from collections.abc import Iterator
import copy
from importlib import reload
from pathlib import Path
import sys
from typing import Any

from programs import run_program
import pytest
import torch
from torch import distributed, nn

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis.models import RankingModule, RetrievalModule, embeddings
from optuna_nis.nn import (
    MultiSizeEmbedding,
    SupernetEmbedding,
    apply_allocation,
    make_searchable,
)

pytest.importorskip("torchrec")

from optuna_nis.nn import sharding
from optuna_nis.nn.sharding import follow_rates, shard_tables, sharded

SPEC = EmbeddingSpec("user", 60, 8)


def test_two_processes_train_and_search_as_one(tmp_path: Path) -> None:
    script = Path(__file__).parent / "sharded_in_two_processes.py"
    run_program("-W", "ignore", script, tmp_path, timeout=300)
    assert len(list(tmp_path.glob("*.txt"))) == 2


def test_without_processes() -> None:
    with pytest.raises(RuntimeError, match=r"there is none: start the program with torchrun"):
        shard_tables(SupernetEmbedding(SPEC, sparse=True), above=20)
    with pytest.raises(RuntimeError, match="process group"):
        sharded(RankingModule, above=20)(SearchSpace([SPEC]))


@pytest.fixture
def _one_process() -> Iterator[None]:
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def _of_fields() -> nn.Module:
    model = nn.ModuleDict({"x": nn.Embedding(60, 8, sparse=True)})
    make_searchable(model, budget="50%", fields={"x": [20, 40]})
    return model


def _allocation(*tiers: Tier, **options: Any) -> TableAllocation:
    return TableAllocation("user", 60, 8, tiers, **options)


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (SupernetEmbedding(SPEC), "'user' cannot be sharded: its gradients are dense"),
        (
            SupernetEmbedding(EmbeddingSpec("user", 60, 8, precisions=(32, 8)), sparse=True),
            "'user' .*fewer than 32 bits",
        ),
        (
            MultiSizeEmbedding(_allocation(Tier(30, 8, 4)), sparse=True),
            "'user' .*fewer than 32 bits",
        ),
        (
            MultiSizeEmbedding(_allocation(Tier(30, 8), num_shared=4), sparse=True),
            "'user' .*`oov` must be 'zero'",
        ),
        (_of_fields(), "'x.1' cannot be sharded: it is one of several fields"),
        (nn.Linear(4, 4), "largest table that is looked up in `model`, 0, got 20"),
        (SupernetEmbedding(EmbeddingSpec("user", 20, 8), sparse=True), "20, got 20"),
    ],
)
def test_what_is_refused(model: nn.Module, problem: str) -> None:
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=problem):
        shard_tables(model, above=20)
    torch.testing.assert_close(model.state_dict(), state)


@pytest.mark.usefixtures("_one_process")
def test_arguments_out_of_range() -> None:
    layer = SupernetEmbedding(SPEC, sparse=True)
    with pytest.raises(ValueError, match="`above` must be an integer of at least 1, got 0"):
        shard_tables(layer, above=0)
    with pytest.raises(ValueError, match="`learning_rate` must be a number"):
        sharded(RankingModule, learning_rate=-1.0)
    with pytest.raises(TypeError, match="`build` must be a function"):
        sharded(layer)  # type: ignore[arg-type]


def test_too_small_for_so_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 5)
    with pytest.raises(ValueError, match="`above` must be at least 25"):
        shard_tables(SupernetEmbedding(SPEC, sparse=True), above=20)


@pytest.mark.usefixtures("_one_process")
def test_what_a_sharded_layer_refuses() -> None:
    layer = shard_tables(SupernetEmbedding(SPEC, sparse=True), above=20)
    with pytest.raises(RuntimeError, match=r"learning rate .*'user' is not known"):
        layer(torch.tensor([3]))
    with pytest.raises(ValueError, match=r"`optimizer` must have the `weight`.*'user'"):
        follow_rates(layer, torch.optim.SGD([layer.projection], lr=0.1))
    with pytest.raises(TypeError, match=r"'user' .*cannot be copied"):
        copy.deepcopy(layer)
    for whole in (layer.rows, lambda: layer.logits(torch.zeros(2, 8))):
        with pytest.raises(RuntimeError, match="'user' is spread over several processes"):
            whole()
    with pytest.raises(RuntimeError, match=r"'user' must have the shape \(61, 8\).*\(5, 8\)"):
        layer.load_state_dict({**layer.state_dict(), "weight": torch.zeros(5, 8)})


@pytest.mark.usefixtures("_one_process")
def test_large_tables_never_are_in_memory_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "SPARSE_ABOVE", 30)
    made: list[int] = []

    def build(tables: SearchSpace | Allocation) -> RetrievalModule:
        model = RetrievalModule(tables, num_classes=50, items="items", hidden=(8,))
        made.extend(len(p) for p in model.parameters() if p.dim() > 1 and not p.is_meta)
        return model

    space = SearchSpace(
        [SPEC, EmbeddingSpec("city", 20, 8), EmbeddingSpec("items", 50, 8)], budget=0.5
    )
    for tables in (space, space.full()):
        model = sharded(build, above=30)(tables)
        assert made
        assert max(made) < 50
        made.clear()
        assert not any(p.is_meta for p in model.parameters())
        assert 0.5 < _rows(model).std() / 0.03 < 1.5
        batch = {"user": torch.tensor([3, 4]), "city": torch.tensor([1, 2])}
        # The tables of output layers stay whole.
        optimizer = model.configure_optimizers()
        model(batch).sum().backward()
        optimizer.step()


@pytest.mark.usefixtures("_one_process")
def test_a_table_is_looked_up_once_in_a_step() -> None:
    layer = shard_tables(SupernetEmbedding(SPEC, sparse=True), above=20, learning_rate=0.1)
    for _ in range(2):
        layer(torch.tensor([3, 4])).sum().backward()
    twice = layer(torch.tensor([3])).sum() + layer(torch.tensor([4])).sum()
    with pytest.raises(RuntimeError, match="'user' was looked up twice in one step"):
        twice.backward()


def _rows(model: nn.Module) -> torch.Tensor:
    (layer,) = (each for each in model.modules() if isinstance(each, sharding.ShardedRows))
    return layer.shards.own


@pytest.mark.usefixtures("_one_process")
def test_a_model_that_was_swapped() -> None:
    counts = {"0": torch.arange(60)}
    sizes = Allocation([TableAllocation("0", 60, 8, (Tier(40, 4),))])
    plain = nn.Sequential(nn.Embedding(60, 8, sparse=True))
    model = apply_allocation(plain, sizes, counts=counts)
    ids = torch.tensor([[3, 4], [59, 0]])
    expected = model(ids)
    torch.testing.assert_close(shard_tables(model, above=20, learning_rate=0.1)(ids), expected)
    model[0].reset_parameters()
    assert not torch.equal(model(ids), expected)


def test_without_torchrec(monkeypatch: pytest.MonkeyPatch) -> None:
    from optuna_nis.nn import _sharded_table

    monkeypatch.setitem(sys.modules, "torchrec", None)
    with pytest.raises(ModuleNotFoundError, match=r"`optuna_nis.nn.sharding` needs .* `torchrec`"):
        reload(_sharded_table)
