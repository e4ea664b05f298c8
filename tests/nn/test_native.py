"""Compiled loops give what torch and numpy give without them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
import os
import subprocess
import sys
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optuna_nis import EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis.nn import (
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    RowwiseAdagrad,
    SupernetEmbedding,
    _native,
    freeze,
    set_choices,
)
from optuna_nis.nn._distinct import distinct
from optuna_nis.nn._gather import add_rows

needs_kernels = pytest.mark.skipif(not _native._IS_USED, reason="needs a C compiler")


@contextmanager
def _without_kernels() -> Iterator[None]:
    with mock.patch.object(_native, "_IS_USED", False):
        yield


@needs_kernels
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_distinct_rows_are_the_same(data: st.DataObject) -> None:
    highest = data.draw(st.sampled_from([0, 1, 5, 2047, 2048, 2**22, 2**40, 2**61]))
    ids = data.draw(st.lists(st.integers(0, highest), max_size=40))
    some = st.integers(1, highest // 2 + 2)
    tables = data.draw(st.lists(some, min_size=1, max_size=4))
    ranks = torch.tensor(ids, dtype=torch.int64)
    found = distinct(ranks, tables, highest)
    with _without_kernels():
        expected = distinct(ranks, tables, highest)
    assert found.sizes == expected.sizes
    pairs = [*zip(found.rows, expected.rows, strict=True), (found.inverse, expected.inverse)]
    pairs += [(found.order, expected.order), (found.starts, expected.starts)]
    assert all(torch.equal(one, other) for one, other in pairs)


@needs_kernels
@pytest.mark.parametrize("ids", [[3, -1], [3, 11]])
def test_ranks_out_of_range_are_refused(ids: list[int]) -> None:
    with pytest.raises(IndexError, match="not between 0 and 10"):
        distinct(torch.tensor(ids), [5], 10)


def test_ranks_of_every_second_place_are_taken() -> None:
    found = distinct(torch.tensor([7, 0, 2, 0, 7, 0])[::2], [8], 8)
    assert [rows.tolist() for rows in found.rows] == [[2, 7]]


def _trained(layer: nn.Module, *batches: Tensor) -> list[Tensor]:
    optimizer = RowwiseAdagrad(layer.parameters(), lr=0.1)
    for ids in batches:
        optimizer.zero_grad()
        layer(ids).square().sum().backward()
        optimizer.step()
    states = [state["sum"] for state in optimizer.state.values()]
    return [parameter.detach().clone() for parameter in layer.parameters()] + states


@needs_kernels
@settings(deadline=None, max_examples=60)
@given(
    width=st.sampled_from([4, 16, 17, 64, 70]),
    sparse=st.booleans(),
    bag=st.booleans(),
    seed=st.integers(0, 99),
)
def test_training_is_the_same(width: int, sparse: bool, bag: bool, seed: int) -> None:
    torch.manual_seed(seed)
    tiers = (Tier(10, width), Tier(60, width // 2), Tier(20, 1, 4))
    table = TableAllocation("f", 100, width, tiers[: int(torch.randint(1, 4, ()))])
    kind = MultiSizeEmbeddingBag if bag else MultiSizeEmbedding
    layer = kind(table, sparse=sparse, init_std=1.0)
    start = {name: value.clone() for name, value in layer.state_dict().items()}
    batches = [torch.randint(0, 101, (30, 2)) for _ in range(3)]
    found = _trained(layer, *batches)
    layer.load_state_dict(start)
    with _without_kernels():
        expected = _trained(layer, *batches)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found[0], start["tiers.0.weight"])


@needs_kernels
def test_a_supernet_is_trained_the_same() -> None:
    spec = EmbeddingSpec("f", 100, 8)
    space = SearchSpace([spec], budget=0.5)
    layers = [SupernetEmbedding(spec, sparse=sparse, init_std=1.0) for sparse in (True, False)]
    layers[1].load_state_dict(layers[0].state_dict())
    ids = torch.randint(0, 101, (40,))
    choices = [space.full(), space.sample(np.random.default_rng(0), space.budget)]
    for layer in layers:
        set_choices(layer, space, choices)
    rows = [_trained(layer, ids, ids.flip(0)) for layer in layers]
    torch.testing.assert_close(*rows, rtol=1e-4, atol=1e-5)


@needs_kernels
@settings(deadline=None, max_examples=100)
@given(
    size=st.integers(1, 9),
    n=st.integers(0, 30),
    width=st.sampled_from([1, 7, 16, 33]),
    columns=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_rows_add_up_to_the_same(size: int, n: int, width: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    rows, values = torch.randint(0, size, (n,)), torch.randn(n, columns, width)[:, -1]
    found = torch.randn(size, width)
    expected = found.index_add(0, rows, values)
    with mock.patch.object(Tensor, "scatter_add_", side_effect=AssertionError):
        add_rows(found, rows, values)
    torch.testing.assert_close(found, expected)
    with _without_kernels():
        add_rows(found, rows, -values)
    torch.testing.assert_close(found, expected.index_add(0, rows, -values), rtol=0, atol=1e-5)


@needs_kernels
def test_rows_that_are_not_in_the_table_are_refused() -> None:
    total, values = torch.zeros(3, 2), torch.ones(2, 2)
    for wrong in (-1, 3):
        with pytest.raises(IndexError, match="not between 0 and 2"):
            add_rows(total, torch.tensor([0, wrong]), values)
    assert not total.any()
    # Of another type, not next to each other, and not what is in memory.
    for own in (values.double(), values[:, :1].expand(2, 2), torch._neg_view(values)):
        assert not _native.add_rows(total.to(own.dtype), torch.tensor([0, 1]), own)
    assert not _native.add_rows(total, torch.tensor([0, 1], dtype=torch.int32), values)
    assert not _native.add_rows(total, torch.tensor([0, 1, 2]), values)
    assert not _native.add_rows(total, torch.tensor([0, 1]), values[:, :1])


@needs_kernels
@settings(deadline=None, max_examples=100)
@given(
    rows=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    batch=st.integers(0, 30),
    width=st.sampled_from([1, 7, 16, 33]),
    seed=st.integers(0, 99),
)
def test_rows_side_by_side_are_the_same(
    rows: list[int], batch: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    tables = [torch.randn(n, width) for n in rows] + [torch.randn(batch, width)]
    # Some beyond the last row, which are zeros.
    places = [torch.randint(n + 2, (batch,)) for n in rows] + [None]
    padded = [torch.cat([table, torch.zeros(2, width)]) for table in tables]
    found = _native.gather(tables, places)
    own = [torch.arange(batch) if each is None else each for each in places]
    expected = torch.stack([table[each] for table, each in zip(padded, own)], 1)
    assert found is not None
    assert torch.equal(found, expected)
    assert _native.scatter(tables, places, found)
    for table, each, before, values in zip(tables, own, padded, found.unbind(1)):
        added = before.index_add(0, each, values)[: len(table)]
        torch.testing.assert_close(table, added, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_tables_and_rows_that_are_not_plain_are_not_gathered() -> None:
    table, rows = torch.randn(4, 2), torch.tensor([3, 0])
    assert _native.gather([table.double()], [rows]) is None
    assert _native.gather([torch.randn(2, 4).t()], [rows]) is None
    assert _native.gather([table], [rows.int()]) is None
    assert _native.gather([table], [torch.tensor([3, 9, 0])[::2]]) is None
    before = table.clone()
    assert not _native.scatter([table], [rows], torch.ones(2, 1, 2).double())
    assert not _native.scatter([table], [rows.int()], torch.ones(2, 1, 2))
    with pytest.raises(IndexError, match="below 0"):
        _native.gather([table], [-rows])
    with pytest.raises(IndexError, match="below 0"):
        _native.scatter([table], [-rows], torch.ones(2, 1, 2))
    assert torch.equal(table, before)
    version = table._version
    assert _native.scatter([table], [rows], torch.ones(2, 1, 2))
    assert table._version > version


@needs_kernels
@settings(deadline=None, max_examples=100)
@given(
    size=st.integers(1, 9),
    n=st.integers(0, 11),
    width=st.sampled_from([1, 5, 16, 33]),
    columns=st.sampled_from([1, 7, 16, 40]),
    seed=st.integers(0, 99),
)
def test_products_of_rows_are_the_same(
    size: int, n: int, width: int, columns: int, seed: int
) -> None:
    torch.manual_seed(seed)
    table, matrix = torch.randn(size, width), torch.randn(width, columns)
    rows, slopes = torch.randint(0, size, (n,)), torch.randn(n, columns)
    kept, output = torch.empty(n, width), torch.empty(n, columns)
    alone = torch.empty(n, width)
    _native.take_rows(
        [
            _native.Taken(table, rows, kept, matrix, output),
            _native.Taken(table, rows, alone, None, None),
        ],
        columns,
    )
    assert torch.equal(kept, table[rows])
    assert torch.equal(alone, kept)
    torch.testing.assert_close(output, kept @ matrix, rtol=1e-4, atol=1e-5)
    of_rows, of_matrix = torch.empty(n, width), torch.ones(width, columns)
    _native.multiply_back(
        [
            _native.Multiplied(slopes, kept, matrix, of_rows, None),
            _native.Multiplied(slopes, kept, matrix, None, of_matrix),
        ],
        columns,
    )
    torch.testing.assert_close(of_rows, slopes @ matrix.t(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(of_matrix, 1 + kept.t() @ slopes, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("wrong", [-1, 4])
def test_rows_that_are_not_in_a_table_are_not_taken(wrong: int) -> None:
    table, rows = torch.randn(4, 2), torch.tensor([0, wrong])
    with pytest.raises(IndexError, match="not between 0 and 3"):
        _native.take_rows([_native.Taken(table, rows, torch.empty(2, 2), None, None)], 2)


@needs_kernels
def test_what_the_kernel_is_not_for_is_left_to_torch() -> None:
    grad = torch.sparse_coo_tensor([[4, 4, 1]], torch.ones(3, 2), (6, 2), check_invariants=True)
    weight, total = torch.zeros(6, 2), torch.zeros(6)
    sorted_grad = grad.coalesce()
    for tensors in (
        (weight, total, grad),
        (weight.double(), total.double(), sorted_grad.double()),
        (torch.zeros(2, 6).t(), total, sorted_grad),
        (weight[:, 0], total, sorted_grad.to_dense()[:, 0]),
    ):
        assert not _native.rowwise_adagrad(*tensors, lr=0.1, eps=0.0)
        assert not tensors[0].any()
        assert not tensors[1].any()
    beyond = torch.sparse_coo_tensor([[1, 6]], torch.ones(2, 2), (9, 2), check_invariants=True)
    assert not _native.rowwise_adagrad(weight, total, beyond, lr=0.1, eps=0.0)
    assert not weight.any()
    assert _native.rowwise_adagrad(weight, total, sorted_grad, lr=0.1, eps=0.0)
    assert weight.sum(1).nonzero().flatten().tolist() == [1, 4]


@needs_kernels
def test_a_step_is_noticed_by_the_backward_pass() -> None:
    layer = nn.Embedding(5, 2)
    layer.weight.grad = torch.ones_like(layer.weight)
    loss = layer.weight.square().sum()
    RowwiseAdagrad(layer.parameters()).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@needs_kernels
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("width", [1, 5, 64, 66])
def test_frozen_rows_are_the_same_to_the_bit(bits: int, width: int) -> None:
    table = TableAllocation("f", 50, width, (Tier(40, width, bits),))
    layer = freeze(MultiSizeEmbedding(table, init_std=1.0)).eval()
    ids = torch.randint(0, 51, (80,))
    found = layer(ids)
    with _without_kernels():
        assert torch.equal(layer(ids), found)
    with torch.device("meta"):
        assert torch.equal(layer(ids), found)


@needs_kernels
def test_rows_beyond_a_frozen_table_are_refused() -> None:
    codes, step = torch.zeros(5, 3, dtype=torch.uint8), torch.ones(1)
    for row in (-1, 5):
        with pytest.raises(IndexError, match="not between 0 and 4"):
            _native.unpacked(codes, torch.tensor([0, row]), step, 8, 3)
    # Of other codes than it is told of.
    assert _native.unpacked(codes, torch.tensor([0]), step, 8, 4) is None


def test_kernels_can_be_left_out() -> None:
    program = "from optuna_nis.nn import _native; print(_native._IS_USED)"
    environment = os.environ | {"OPTUNA_NIS_NO_KERNELS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("rows", [10, 1000])
def test_a_state_of_another_table_is_refused(rows: int, sparse: bool) -> None:
    table, other = nn.Embedding(100, 8, sparse=sparse), nn.Embedding(rows, 8, sparse=sparse)
    optimizer = RowwiseAdagrad(other.parameters())
    other(torch.arange(5)).sum().backward()
    optimizer.step()
    mine = RowwiseAdagrad(table.parameters())
    with pytest.raises(ValueError, match=rf"shape \(100,\) for the parameter .*\({rows},\)"):
        mine.load_state_dict(optimizer.state_dict())
    assert not mine.state
    # As it may be put there without.
    mine.state[table.weight]["sum"] = optimizer.state[other.weight]["sum"]
    table(torch.tensor([3, 99])).sum().backward()
    before = table.weight.detach().clone()
    if sparse and rows > 100:
        return
    with pytest.raises((RuntimeError, IndexError)):
        mine.step()
    assert torch.equal(table.weight, before)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adagrad])
def test_a_state_of_another_optimizer_is_refused(kind: type[torch.optim.Optimizer]) -> None:
    table = nn.Embedding(100, 8)
    table(torch.arange(5)).sum().backward()
    other = kind(table.parameters())
    other.step()
    with pytest.raises(ValueError, match=r"must have a `sum` of shape \(100,\)"):
        RowwiseAdagrad(table.parameters()).load_state_dict(other.state_dict())


@pytest.mark.parametrize("size", [(50, 8), (1000, 8), (100, 4)])
def test_a_gradient_of_another_size_moves_nothing(size: tuple[int, int]) -> None:
    table = nn.Embedding(100, 8)
    table.weight.grad = torch.ones(100, 8)
    table.weight.data = torch.zeros(size)
    with pytest.raises(RuntimeError):
        RowwiseAdagrad(table.parameters()).step()
    assert not table.weight.any()


@needs_kernels
def test_gradients_that_are_not_what_is_in_memory() -> None:
    weight, total = torch.zeros(3, 2), torch.zeros(3)
    for grad in (torch._neg_view(torch.ones(3, 2)), torch._efficientzerotensor((3, 2))):
        assert not _native.rowwise_adagrad(weight, total, grad, lr=0.1, eps=0.0)


def test_codes_without_memory_are_left_to_torch() -> None:
    codes, step = torch.zeros(5, 3, dtype=torch.uint8), torch.ones(1)
    codes.untyped_storage().resize_(0)
    assert _native.unpacked(codes, torch.tensor([0]), step, 8, 3) is None


def test_ids_elsewhere_are_refused_by_frozen_tables() -> None:
    table = TableAllocation("f", 50, 6, (Tier(50, 6, 8),))
    layer = freeze(MultiSizeEmbedding(table)).eval()
    with pytest.raises(RuntimeError, match="device"):
        layer(torch.zeros(3, dtype=torch.int64, device="meta"))


def test_large_dense_gradients_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "_MOST_DENSE", 5)
    weight, total = torch.zeros(3, 2), torch.zeros(3)
    assert not _native.rowwise_adagrad(weight, total, torch.ones(3, 2), lr=0.1, eps=0.0)


def test_a_weight_without_memory_is_left_to_torch() -> None:
    weight, total = torch.zeros(3, 2), torch.zeros(3)
    weight.untyped_storage().resize_(0)
    assert not _native.rowwise_adagrad(weight, total, torch.ones(3, 2), lr=0.1, eps=0.0)


def test_a_supernet_on_the_cpu_beside_another_default_device() -> None:
    layer = SupernetEmbedding(EmbeddingSpec("f", 100, 8), sparse=True)
    with torch.device("meta"):
        layer(torch.randint(0, 101, (40,), device="cpu")).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.device.type == "cpu"
