from __future__ import annotations

import copy
import sys
from typing import Any

from any_tables import tables
from hypothesis import given, settings
from hypothesis import strategies as st
from pretend_device import DEVICE, OnDevice, PretendDevice
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis import Allocation, EmbeddingSpec, TableAllocation, Tier
from optuna_nis.nn import (
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    MultiSizeLinear,
    PackedEmbedding,
    PackedEmbeddingBag,
    RowwiseAdagrad,
    SupernetEmbedding,
    apply_allocation,
    freeze,
    sized_layers,
)
from optuna_nis.nn.multi_size import MultiSize
from optuna_nis.nn.packed import pack, unpack
from optuna_nis.serve import quantize, to_dense
from optuna_nis.space.precision import CODES

TABLE = TableAllocation(
    "f",
    100,
    16,
    (Tier(5, 16), Tier(10, 16, 16), Tier(10, 13, 8), Tier(20, 11, 4), Tier(30, 7, 2)),
)
#: Of one width, so that there is no projection, and a single tier.
WHOLE = TableAllocation("f", 100, 16, (Tier(100, 16, 4),))
ALIKE = TableAllocation("f", 100, 16, (Tier(30, 16, 8), Tier(60, 16, 4)))
TABLES = (TABLE, WHOLE, ALIKE, TableAllocation("f", 100, 16, ()))
IDS = torch.arange(101)


def _expected(layer: MultiSize) -> Tensor:
    """What a layer gives for every id, and for the id unknown."""
    rows = layer.rows().detach()
    return torch.cat([rows, rows.new_zeros(1, layer.embedding_dim)])


def _stored(model: nn.Module) -> int:
    return sum(buffer.nbytes for buffer in model.buffers())


@settings(deadline=None, max_examples=60)
@given(table=tables("f"), ordered=st.booleans(), seed=st.integers(0, 99))
def test_bytes_are_those_counted_and_rows_those_rounded(
    table: TableAllocation, ordered: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    ranks = None if ordered else torch.randperm(table.num_embeddings)
    layer = MultiSizeEmbedding(table, ranks=ranks, init_std=1.0)
    small = freeze(layer).eval()
    assert type(small) is PackedEmbedding
    assert not list(small.parameters())
    assert _stored(small) == table.nbytes()
    expected = _expected(layer)
    torch.testing.assert_close(small(torch.arange(table.num_embeddings + 1)), expected)
    for ours, theirs in zip(small.tier_modules(), layer.tier_modules()):
        assert torch.equal(ours.table(), theirs.table())
    torch.testing.assert_close(small.rows(), expected[:-1])
    # An order is kept apart, in 4 bytes an id.
    order = {name: each.nbytes for name, each in small.state_dict().items() if "_ranks" in name}
    assert order == ({} if ordered else {"_ranks": 4 * (table.num_embeddings + 1)})


@given(
    rows=st.integers(1, 5), columns=st.integers(1, 20), bits=st.sampled_from(CODES), data=st.data()
)
def test_codes_are_packed(rows: int, columns: int, bits: int, data: Any) -> None:
    numbers = st.lists(
        st.integers(0, 2**bits - 1), min_size=rows * columns, max_size=rows * columns
    )
    codes = torch.tensor(data.draw(numbers), dtype=torch.uint8).view(rows, columns)
    packed = pack(codes, bits)
    assert packed.shape == (rows, -(-columns * bits // 8))
    assert torch.equal(unpack(packed, bits, columns), codes)
    # Number by number, the first in the lowest bits.
    for row, line in zip(codes.tolist(), packed.tolist()):
        value = sum(code << bits * index for index, code in enumerate(row))
        assert value == int.from_bytes(bytes(line), "little")


@pytest.mark.parametrize("bits", CODES)
@pytest.mark.parametrize("shape", [(0, 1), (0, 3), (2, 1), (2, 0, 2), (1,)])
def test_unpacking_no_rows_and_narrow_ones(bits: int, shape: tuple[int, ...]) -> None:
    codes = unpack(torch.zeros(shape, dtype=torch.uint8), bits, shape[-1])
    assert codes.shape == shape


@pytest.mark.parametrize("bits", CODES)
def test_machines_that_order_bytes_otherwise(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = torch.randint(0, 2**bits, (9, 7), dtype=torch.uint8)
    monkeypatch.setattr(sys, "byteorder", "big")
    assert torch.equal(unpack(pack(codes, bits), bits, 7).to(torch.uint8), codes)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags(table: TableAllocation, mode: Any) -> None:
    layer = MultiSizeEmbeddingBag(table, mode=mode, ranks=torch.randperm(100), init_std=1.0)
    small = freeze(layer).eval()
    assert type(small) is PackedEmbeddingBag
    assert _stored(small) == table.nbytes()
    rows, ids, offsets = _expected(layer), torch.randint(0, 101, (7, 4)), torch.tensor([0, 0, 5])

    def pooled(ids: Tensor, **more: Any) -> Tensor:
        padding = 100 if mode == "mean" else None
        return functional.embedding_bag(ids, rows, mode=mode, padding_idx=padding, **more)

    torch.testing.assert_close(small(ids), pooled(ids))
    flat = ids.flatten()
    torch.testing.assert_close(small(flat, offsets), pooled(flat, offsets=offsets))
    if mode == "sum":
        weights = torch.rand(7, 4)
        torch.testing.assert_close(
            small(ids, per_sample_weights=weights), pooled(ids, per_sample_weights=weights)
        )


class _Model(nn.Module):
    """Layers that share and tie their tables."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(60, 16, padding_idx=3)
        self.again = self.user
        self.fused = nn.Embedding(50, 16)
        self.bag = nn.EmbeddingBag(60, 16, mode="max")
        self.item = nn.Embedding(40, 16)
        self.head = nn.Linear(16, 40)
        self.head.weight = self.item.weight
        self.own = nn.Linear(16, 30)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        rows = self.user(user) + 2 * self.again(user) + self.fused(user % 50) + self.item(item)
        rows = rows + self.bag(torch.stack([user, 59 - user], 1))
        return torch.cat([self.head(rows), self.own(rows)], 1)


TIERS = (Tier(4, 16, 16), Tier(9, 16, 8), Tier(15, 10, 4))
SIZES = Allocation(
    TableAllocation(name, size, 16, TIERS)
    for name, size in (("user", 60), ("bag", 60), ("item", 40), ("own", 30))
)


def _swapped() -> nn.Module:
    torch.manual_seed(0)
    fused = [TableAllocation("fused.a", 20, 16, TIERS[:2]), TableAllocation("fused.b", 30, 16, ())]
    counts = {"user": torch.randint(0, 99, (60,)), "item": torch.randint(0, 99, (40,))}
    sizes = Allocation([*SIZES.values(), *fused])
    with torch.random.fork_rng():
        model = apply_allocation(_Model(), sizes, counts=counts)
    for layer in sized_layers(model):
        for tier in layer.tier_modules():
            nn.init.normal_(tier.weight)
        layer.fit_steps()
    return model


INPUTS = torch.arange(60), torch.arange(60) % 40


@pytest.mark.filterwarnings("ignore:`counts` has none")
def test_a_swapped_model() -> None:
    model = _swapped()
    plain = copy.deepcopy(model)
    assert freeze(model) is model
    assert model.user is model.again
    assert model.head.fields is model.item.fields
    assert {name for name, _ in model.named_parameters()} == {"head.bias", "own.bias"}
    assert _stored(model) == sum(layer.table.nbytes() for layer in sized_layers(model))
    expected = plain.eval()(*INPUTS)
    torch.testing.assert_close(model.eval()(*INPUTS), expected, rtol=1e-4, atol=1e-4)
    for (rows, weight, bias), (_, before, _) in zip(model.own.parts(4), plain.own.parts(4)):
        assert rows == slice(0, 4)
        assert bias is model.own.bias
        torch.testing.assert_close(weight, before)
    dense = to_dense(copy.deepcopy(model))
    torch.testing.assert_close(dense(*INPUTS), model(*INPUTS), rtol=1e-4, atol=1e-4)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*INPUTS), model(*INPUTS), rtol=1e-4, atol=1e-4)


def test_an_output_layer_of_its_own() -> None:
    layer = MultiSizeLinear(TABLE, ranks=torch.randperm(100))
    rows = _expected(layer.fields[0])[:-1]
    small = freeze(layer).eval()
    assert small is layer
    vectors = torch.randn(3, 16)
    expected = functional.linear(vectors, rows, layer.bias)
    torch.testing.assert_close(small(vectors), expected)
    torch.testing.assert_close(small.weight, rows)


@pytest.mark.parametrize("table", TABLES)
def test_casts_change_the_type_of_rows_and_no_stored_number(table: TableAllocation) -> None:
    layer = freeze(MultiSizeEmbedding(table, init_std=1.0)).eval()
    expected = layer(IDS)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.float32):
        layer.to(dtype)
        assert layer(IDS).dtype == dtype
        assert layer.rows().dtype == dtype
        exact = 2e-2 if dtype in (torch.float16, torch.bfloat16) else 1e-5
        torch.testing.assert_close(layer(IDS).float(), expected, rtol=exact, atol=exact)
    for name, value in layer.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert torch.equal(layer(IDS), expected)
    half = freeze(MultiSizeEmbedding(table, init_std=1.0).half()).eval()
    assert _stored(half) == table.nbytes()
    assert half(IDS).dtype == torch.float16


@pytest.mark.parametrize("table", TABLES)
def test_on_another_device(table: TableAllocation) -> None:
    bag = freeze(MultiSizeEmbeddingBag(table, ranks=torch.randperm(100), init_std=1.0)).eval()
    layer = freeze(MultiSizeEmbedding(table, ranks=bag.ranks, init_std=1.0)).eval()
    with PretendDevice():
        for each, ids in ((layer, IDS), (bag, IDS.view(-1, 1)), (layer, IDS[:0])):
            expected = each(ids)
            moved = copy.deepcopy(each).to(DEVICE)
            assert {buffer.device for buffer in moved.buffers()} <= {DEVICE}
            found = moved(ids.to(DEVICE))
            assert isinstance(found, OnDevice)
            torch.testing.assert_close(found.cpu(), expected)


def test_state() -> None:
    layers = [MultiSizeEmbedding(TABLE, ranks=torch.randperm(100)) for _ in range(2)]
    small, other = (freeze(layer).eval() for layer in layers)
    assert not torch.equal(other(IDS), small(IDS))
    other.load_state_dict(small.state_dict())
    assert torch.equal(other(IDS), small(IDS))
    assert torch.equal(copy.deepcopy(small)(IDS), small(IDS))
    state = small.state_dict()
    assert {name: value.dtype for name, value in state.items() if "tiers.3" in name} == {
        "tiers.3.codes": torch.uint8,
        "tiers.3.step": torch.float16,
    }
    state["tiers.3.codes"] = state["tiers.3.codes"].half()
    with pytest.raises(RuntimeError, match=r"`tiers.3.codes` must be of type torch.uint8, got "):
        other.load_state_dict(state)
    with pytest.raises(RuntimeError, match=r'Missing key.*"tiers.0.codes"'):
        other.load_state_dict(layers[0].state_dict())


@pytest.mark.parametrize("kind", [MultiSizeEmbedding, MultiSizeEmbeddingBag, MultiSizeLinear])
def test_training_is_refused(kind: Any) -> None:
    model = nn.Sequential(
        freeze(kind(TABLE)), nn.Linear(100 if kind is MultiSizeLinear else 16, 1)
    )
    batch = torch.rand(3, 16) if kind is MultiSizeLinear else IDS.view(-1, 1)
    message = r"The table 'f' is frozen: its rows are packed and cannot be trained. Call `model.e"
    with pytest.raises(RuntimeError, match=message):
        model(batch)
    with torch.no_grad():
        expected = model(batch)
    torch.testing.assert_close(model.eval()(batch), expected)
    (layer,) = sized_layers(model)
    assert layer.requires_grad_(False) is layer
    with pytest.raises(RuntimeError, match=message):
        layer.requires_grad_()
    with pytest.raises(ValueError, match="empty parameter list"):
        RowwiseAdagrad(layer.parameters())
    with pytest.raises(RuntimeError, match="'f' is frozen: it cannot start anew"):
        layer.reset_parameters()
    with pytest.raises(RuntimeError, match="would be lost"), torch.no_grad():
        layer.tiers[0].weight.zero_()


def test_what_is_refused() -> None:
    layer = MultiSizeEmbedding(TABLE)
    for model, message in (
        (freeze(layer), "The table 'f' of `model` is frozen already"),
        (quantize(MultiSizeEmbedding(TableAllocation("f", 9, 4, ()))), "is quantised already"),
        (SupernetEmbedding(EmbeddingSpec("f", 9, 4)), "'f' is a layer of a supernet"),
        (nn.Linear(2, 2), "must have a multi-size layer"),
    ):
        with pytest.raises(ValueError, match=message):
            freeze(model)
    with torch.no_grad():
        layer.tiers[1].weight[3, 1] = 1e9
    model = nn.ModuleList([MultiSizeEmbedding(WHOLE), layer])
    with pytest.raises(ValueError, match=r"'f' has the number 1e\+09, which is beyond float16"):
        freeze(model)
    assert all(type(child) is MultiSizeEmbedding for child in model)


def test_it_shows_its_tiers() -> None:
    shown = repr(freeze(MultiSizeEmbedding(TABLE)))
    assert str(TABLE) in shown
    assert "PackedTier(20, 11, bits=4)" in shown


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
def test_nan_is_nothing_that_is_stored(bits: int) -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 10, 4, (Tier(10, 4, bits),)))
    with torch.no_grad():
        layer.tier_modules()[0].weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match="The table 'f' has NaN among its numbers"):
        freeze(layer)


def test_a_model_without_numbers_is_frozen_and_loaded() -> None:
    layer = MultiSizeEmbedding(TABLE)
    frozen = freeze(copy.deepcopy(layer)).eval()
    with torch.device("meta"):
        empty = freeze(MultiSizeEmbedding(TABLE)).eval()
    empty.load_state_dict(frozen.state_dict(), assign=True)
    assert {buffer.device.type for buffer in empty.buffers()} == {"cpu"}
    assert empty.state_dict().keys() == frozen.state_dict().keys()
