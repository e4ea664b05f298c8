"""The same output from TorchRec's tables as from the layers, run for real on CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch
from torch import Tensor, nn

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.nn import MultiSizeEmbedding, MultiSizeEmbeddingBag, apply_allocation
from optuna_nis.serve import allocation_of, freeze, load, quantize, save

torchrec = pytest.importorskip("torchrec")

from optuna_nis.serve.torchrec import (  # noqa: E402
    TieredEmbeddingBagCollection,
    embedding_bag_configs,
    to_torchrec,
)

USER = TableAllocation("user", 60, 8, (Tier(5, 8), Tier(20, 6), Tier(10, 2)))
GENRES = TableAllocation("genres", 30, 8, (Tier(9, 8), Tier(9, 1)), num_shared=3)
CITY = TableAllocation("city", 9, 8, ())


def _jagged(bags: dict[str, list[list[int]]]) -> Any:
    return torchrec.KeyedJaggedTensor(
        keys=list(bags),
        values=torch.tensor(
            [i for b in bags.values() for bag in b for i in bag], dtype=torch.int64
        ),
        lengths=torch.tensor([len(bag) for b in bags.values() for bag in b]),
    )


def _flat(bags: list[list[int]]) -> tuple[Tensor, Tensor]:
    """As :class:`torch.nn.EmbeddingBag` takes them."""
    lengths = torch.tensor([0, *map(len, bags)])
    return torch.tensor([i for bag in bags for i in bag], dtype=torch.int64), lengths.cumsum(0)[
        :-1
    ]


@settings(deadline=None, max_examples=40)
@given(
    bags=st.lists(st.lists(st.integers(0, 30), max_size=5), min_size=1, max_size=6),
    mode=st.sampled_from(["sum", "mean"]),
    ordered=st.booleans(),
)
def test_bags_of_any_length(bags: list[list[int]], mode: Any, ordered: bool) -> None:
    torch.manual_seed(0)
    ranks = None if ordered else torch.randperm(30)
    layer = MultiSizeEmbeddingBag(GENRES, mode=mode, ranks=ranks)
    found = to_torchrec(layer)(_jagged({"genres": bags}))["genres"]
    torch.testing.assert_close(found, layer(*_flat(bags)))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [
                MultiSizeEmbedding(USER, ranks=torch.randperm(60)),
                MultiSizeEmbeddingBag(GENRES, mode="mean", ranks=torch.randperm(30)),
                MultiSizeEmbedding(CITY),
            ]
        )


BAGS = {
    "genres": [[3, 30, 4], [], [30], [29, 29]],
    "user": [[0], [59], [60], [7]],
    "city": [[0], [1], [9], [3]],
}


def _expected(model: Model) -> Tensor:
    user, genres, city = model.layers
    single = {name: torch.tensor(BAGS[name]).squeeze(1) for name in ("user", "city")}
    return torch.cat(
        [user(single["user"]), genres(*_flat(BAGS["genres"])), city(single["city"])], 1
    )


def test_a_model_and_its_tables() -> None:
    model = Model()
    tables = to_torchrec(model)
    found = tables(_jagged(BAGS))
    assert found.keys() == ["user", "genres", "city"]
    torch.testing.assert_close(found.values(), _expected(model))
    configs = tables.collection.embedding_bag_configs()
    assert [(c.name, c.num_embeddings, c.embedding_dim, c.feature_names) for c in configs] == [
        ("user_t0", 5, 8, ["user_t0"]),
        ("user_t1", 20, 8, ["user_t1"]),
        ("user_t2", 10, 4, ["user_t2"]),
        ("genres_t0", 9, 8, ["genres_t0"]),
        # With the rows that ids without one share.
        ("genres_t1", 12, 4, ["genres_t1"]),
    ]
    assert all(config.pooling == torchrec.PoolingType.SUM for config in configs)
    assert allocation_of(tables) == allocation_of(model)


def test_it_trains_as_the_layers_do() -> None:
    model = Model()
    tables = to_torchrec(model)
    target = torch.randn(4, 24)
    for _ in range(3):
        for parameters, output in (
            (model.parameters(), _expected(model)),
            (tables.parameters(), tables(_jagged(BAGS)).values()),
        ):
            optimiser = torch.optim.SGD(parameters, lr=0.5)
            optimiser.zero_grad()
            (output - target).square().mean().backward()
            optimiser.step()
    torch.testing.assert_close(tables(_jagged(BAGS)).values(), _expected(model))
    # The columns that widths were rounded up by stay empty.
    assert bool((tables.collection.embedding_bags["user_t1"].weight[:, 6:] == 0).all())


def test_saved_and_loaded(tmp_path: Path) -> None:
    tables = to_torchrec(Model())
    save(tables, tmp_path / "tables.pt")
    again = load(
        tmp_path / "tables.pt", lambda sizes: TieredEmbeddingBagCollection(sizes, mean=["genres"])
    )
    assert torch.equal(again(_jagged(BAGS)).values(), tables(_jagged(BAGS)).values())


@pytest.fixture
def _one_process() -> Any:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
def test_sharded() -> None:
    tables = to_torchrec(Model())
    expected = tables(_jagged(BAGS)).values()
    state = {name: value.clone() for name, value in tables.state_dict().items()}
    parallel = torchrec.distributed.DistributedModelParallel(tables, device=torch.device("cpu"))
    parallel.load_state_dict(state)
    collection = parallel.module.collection
    assert isinstance(collection, torchrec.distributed.embeddingbag.ShardedEmbeddingBagCollection)
    torch.testing.assert_close(parallel(_jagged(BAGS)).values(), expected)


def test_quantised_layers() -> None:
    model = quantize(Model())
    torch.testing.assert_close(to_torchrec(model)(_jagged(BAGS)).values(), _expected(model))


def test_rows_of_few_bits_go_as_the_model_sees_them() -> None:
    tiers = (Tier(3, 8, 16), Tier(9, 6, 4), Tier(8, 3, 2))
    layer = MultiSizeEmbeddingBag(TableAllocation("genres", 30, 8, tiers), mode="sum")
    bags = [[0, 5, 29], [], [13]]
    for each in (layer, freeze(layer).eval()):
        found = to_torchrec(each)(_jagged({"genres": bags}))["genres"]
        torch.testing.assert_close(found, layer(*_flat(bags)))


def test_features_that_are_all_removed() -> None:
    tables = TieredEmbeddingBagCollection(Allocation([CITY]))
    assert tables.collection is None
    assert bool((tables(_jagged({"city": [[1, 2], []]})).values() == 0).all())


def _swapped(layer: nn.Module, tables: list[TableAllocation]) -> nn.Module:
    counts = {"net.layer": torch.randint(0, 99, (layer.num_embeddings,))}
    model = nn.ModuleDict({"net": nn.ModuleDict({"layer": layer})})
    return apply_allocation(model, Allocation(tables), counts=counts)


def test_swapped_layers_and_their_padding() -> None:
    a = TableAllocation("net.layer.a", 20, 8, (Tier(10, 4),))
    b = TableAllocation("net.layer.b", 30, 8, (Tier(4, 8), Tier(20, 1)))
    model = _swapped(nn.Embedding(50, 8, padding_idx=20), [a, b])
    bags = {"net.layer.a": [[3], [4], [19]], "net.layer.b": [[0], [1], [29]]}
    found = to_torchrec(model)(_jagged(bags)).values()
    layer = model["net"]["layer"]
    expected = torch.cat([layer(torch.tensor([3, 4, 19])), layer(torch.tensor([20, 21, 49]))], 1)
    torch.testing.assert_close(found, expected)
    whole = TableAllocation("net.layer", 30, 8, (Tier(20, 8), Tier(9, 3)))
    model = _swapped(nn.EmbeddingBag(30, 8, mode="mean", padding_idx=7), [whole])
    found = to_torchrec(model)(_jagged({"net.layer": [[7, 3], [7], [4, 5, 5]]})).values()
    ids = torch.tensor([[7, 7, 3], [7, 7, 7], [4, 5, 5]])
    torch.testing.assert_close(found, model["net"]["layer"](ids))


def test_what_is_refused() -> None:
    half = nn.Embedding(60, 8, padding_idx=3)
    with torch.no_grad():
        half.weight[3] = 0.5
    whole = TableAllocation("net.layer", 60, 8, (Tier(20, 8),))
    parts = [TableAllocation(f"net.layer.{i}", 30, 8, (Tier(9, 8),)) for i in range(2)]
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: to_torchrec(nn.Linear(2, 2)), "must have a multi-size layer"),
        (lambda: to_torchrec(_swapped(half, [whole])), "'net.layer' .*row of padding is not zero"),
        (
            lambda: to_torchrec(_swapped(nn.EmbeddingBag(60, 8, mode="max"), [whole])),
            "'net.layer' cannot go to TorchRec: a maximum",
        ),
        (
            lambda: to_torchrec(_swapped(nn.EmbeddingBag(60, 8, mode="mean"), parts)),
            "'net.layer.0' .*several fields by one mean",
        ),
        (
            lambda: TieredEmbeddingBagCollection(Allocation([CITY]), mean=["x"]),
            "`mean` names \\['x'\\]",
        ),
        (
            lambda: TieredEmbeddingBagCollection(
                Allocation([CITY]), ranks={"city": torch.zeros(9, dtype=torch.int64)}
            ),
            "`ranks` of 'city' must be a permutation",
        ),
        (
            lambda: embedding_bag_configs(
                Allocation([TableAllocation(name, 9, 8, (Tier(9, 8),)) for name in ("a.b", "a_b")])
            ),
            "gives two tables the name 'a_b_t0'",
        ),
    ]
    for build, message in cases:
        with pytest.raises(ValueError, match=message):
            build()
    tables = TieredEmbeddingBagCollection(Allocation([GENRES]))
    weighted = torchrec.KeyedJaggedTensor(
        keys=["genres"],
        values=torch.tensor([1]),
        lengths=torch.tensor([1]),
        weights=torch.tensor([0.5]),
    )
    with pytest.raises(ValueError, match="must not have weights"):
        tables(weighted)
    with pytest.raises(ValueError, match="between 0 and 30"):
        tables(_jagged({"genres": [[31]]}))
