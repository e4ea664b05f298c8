"""What is state of the layers, and what is not: copies, averages, and states of other models."""

from __future__ import annotations

from collections.abc import Iterator
import copy
from pathlib import Path
from typing import Any
import warnings

import pytest
from safetensors.torch import load_model, save_model
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis.nn import (
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    SupernetEmbedding,
    apply_allocation,
    make_searchable,
    set_choices,
    supernet_layers,
)
from optuna_nis.serve import quantize, to_torch_export

# Some tables are left without counts on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:`counts` has none")

COUNTS = {"user": torch.arange(60), "item": torch.arange(60)}
TABLE = TableAllocation("f", 20, 8, (Tier(4, 8), Tier(6, 2)))
RANKS = torch.arange(20).flip(0)
IDS = torch.arange(60)


class Model(nn.Module):
    """Two layers of one weight, one of fused fields with padding that is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(60, 8), nn.Embedding(60, 8)
        self.item.weight = self.user.weight
        self.fused = nn.Embedding(60, 8, padding_idx=0)
        with torch.no_grad():
            self.fused.weight[0] = 1.0

    def forward(self, ids: Tensor) -> Tensor:
        return torch.stack([self.user(ids), self.item(ids), self.fused(ids)])


def _searchable(counted: bool = True) -> tuple[Any, SearchSpace]:
    model = Model()
    counts = COUNTS if counted else None
    space = make_searchable(model, budget="50%", counts=counts, fields={"fused": [40, 20]})
    return model, space


def _sized(counted: bool = True) -> Any:
    tables = [
        TableAllocation("user", 60, 8, (Tier(10, 8), Tier(40, 2))),
        TableAllocation("fused.0", 40, 8, (Tier(10, 2),)),
        TableAllocation("fused.1", 20, 8, ()),
    ]
    counts = COUNTS if counted else None
    return apply_allocation(Model(), Allocation(tables), counts=counts)


def _averages(model: nn.Module) -> Iterator[AveragedModel]:
    yield AveragedModel(model, use_buffers=True)
    yield AveragedModel(model, avg_fn=get_ema_avg_fn(0.9), use_buffers=True)
    yield AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)


@pytest.mark.parametrize("kind", ["searchable", "sized"])
def test_averages_are_of_weights_only(kind: str) -> None:
    model = _searchable()[0] if kind == "searchable" else _sized()
    expected = model(IDS)
    for average in _averages(model):
        for step in reversed(range(8)):
            if kind == "searchable":
                # In each step others, and another number of them.
                for layer in supernet_layers(model).values():
                    widths = [8 - step] * len(layer.spec.row_blocks)
                    layer.set_widths([widths] * (step % 3 + 1))
            average.update_parameters(model)
        torch.testing.assert_close(average.module(IDS), expected)
        half = copy.deepcopy(average.module).bfloat16()(IDS)
        torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.01)


def test_copies_have_choices_of_their_own() -> None:
    model, space = _searchable()
    small = space.allocation(dict.fromkeys(space.distributions(), 1))
    set_choices(model, space, [small])
    expected = model(IDS)
    copied = copy.deepcopy(model)
    set_choices(model, space, [space.full()])
    assert torch.equal(copied(IDS), expected)
    assert not torch.equal(model(IDS), expected)
    # The weights of another are taken over, its choice is not.
    other, _ = _searchable()
    other.load_state_dict(copied.state_dict())
    assert torch.equal(other(IDS), model(IDS))


def test_state_before_the_projection_was_a_module_of_its_own() -> None:
    spec = EmbeddingSpec("x", 60, 8)
    layer, other = SupernetEmbedding(spec, ranks=IDS.flip(0)), SupernetEmbedding(spec)
    nn.init.normal_(layer.projection)
    state = layer.state_dict()
    old = {
        "weight": state["weight"],
        "projection": state["_dense.projection"],
        "_row_block": torch.zeros(61, dtype=torch.int64),
        "_ranks": state["_ranks"],
    }
    assert state.keys() ^ old.keys() == {"_dense.projection", "projection", "_row_block"}
    other.load_state_dict(old)
    assert torch.equal(other(IDS), layer(IDS))
    nested = nn.ModuleDict({"a": SupernetEmbedding(spec)})
    nested.load_state_dict({f"a.{name}": value for name, value in old.items()})
    assert torch.equal(nested["a"](IDS), layer(IDS))


LAYERS: list[tuple[type[nn.Module], Any]] = [
    (MultiSizeEmbedding, TABLE),
    (MultiSizeEmbeddingBag, TABLE),
    (SupernetEmbedding, EmbeddingSpec("f", 20, 8)),
]


@pytest.mark.parametrize(("kind", "table"), LAYERS)
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("before", [None, torch.arange(20)])
def test_ranks_come_with_the_weights(
    kind: Any, table: Any, before: Tensor | None, assign: bool
) -> None:
    layer, other = kind(table, ranks=RANKS), kind(table, ranks=before)
    state = layer.state_dict()
    other.load_state_dict(state, assign=assign)
    ids = torch.arange(21).view(-1, 1)
    assert torch.equal(other(ids), layer(ids))
    if not assign:
        state["_ranks"].zero_()
        assert torch.equal(other(ids), layer(ids))
    # Also in fewer bits, as quantised models have them.
    state = layer.state_dict()
    other.load_state_dict(state | {"_ranks": state["_ranks"].int()})
    assert torch.equal(other(ids), layer(ids))


@pytest.mark.parametrize(("kind", "table"), LAYERS)
def test_a_state_without_ranks_is_no_secret(kind: Any, table: Any) -> None:
    layer, other = kind(table, ranks=RANKS), kind(table)
    text = "rows of 'f' but not the order of their ids, `a._ranks`"
    model = nn.ModuleDict({"a": layer})
    with (
        pytest.warns(UserWarning, match=text),
        pytest.raises(RuntimeError, match=r"Missing key.* \"a\._ranks\""),
    ):
        model.load_state_dict(nn.ModuleDict({"a": other}).state_dict())
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    with pytest.warns(UserWarning, match=text):
        found = model.load_state_dict(parameters, strict=False)
    assert found.missing_keys == ["a._ranks"]
    assert torch.equal(layer._ranks[:-1], RANKS)
    # Of other layers only.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict({}, strict=False)


@pytest.mark.parametrize(("kind", "table"), LAYERS)
def test_ranks_that_do_not_fit(kind: Any, table: Any) -> None:
    layer = kind(table)
    state = layer.state_dict()
    for ranks, text in (
        (torch.arange(9), r"`_ranks` must be 21 integers, got torch.int64 of shape \(9,\)"),
        (torch.rand(21), "`_ranks` must be 21 integers, got torch.float32"),
        (torch.arange(1, 22), "`_ranks` must be between 0 and 20, got 1 to 21"),
    ):
        with pytest.raises(RuntimeError, match=text):
            layer.load_state_dict({**state, "_ranks": ranks})
    assert layer._ranks is None


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("loaded", [True, False])
@pytest.mark.parametrize("kind", ["searchable", "sized"])
def test_safetensors(tmp_path: Path, kind: str, saved: bool, loaded: bool) -> None:
    def build(counted: bool) -> Any:
        return _searchable(counted)[0] if kind == "searchable" else _sized(counted)

    model, other = build(saved), build(loaded)
    save_model(model, str(tmp_path / "model.safetensors"))
    if loaded and not saved:
        with pytest.warns(UserWarning, match="order of their ids"), pytest.raises(RuntimeError):
            load_model(other, tmp_path / "model.safetensors")
        return
    load_model(other, tmp_path / "model.safetensors")
    assert torch.equal(other(IDS), model(IDS))


def test_quantised_and_exported_models_keep_their_order() -> None:
    model = _sized()
    small, other = quantize(copy.deepcopy(model)), quantize(_sized(counted=False))
    other.load_state_dict(small.state_dict())
    assert torch.equal(other(IDS), small(IDS))
    program = to_torch_export(model, IDS).module()
    torch.testing.assert_close(program(IDS), model(IDS))


def test_layers_on_the_meta_device_can_be_filled() -> None:
    for kind, table in LAYERS:
        layer = kind(table, ranks=RANKS)
        with torch.device("meta"):
            empty = kind(table)
        empty.to_empty(device="cpu").load_state_dict(layer.state_dict())
        ids = torch.arange(21).view(-1, 1)
        assert torch.equal(empty(ids), layer(ids))
    searchable, _ = _searchable()
    empty = copy.deepcopy(searchable).to("meta")
    assert empty(IDS.to("meta")).shape == (3, 60, 8)
    empty.to_empty(device="cpu").load_state_dict(searchable.state_dict())
    assert torch.equal(empty(IDS), searchable(IDS))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_models_on_the_meta_device_can_be_swapped_and_filled(inside: bool, assign: bool) -> None:
    def build() -> nn.ModuleDict:
        layers = {"a": nn.Embedding(60, 8, padding_idx=0), "b": nn.EmbeddingBag(60, 8)}
        return nn.ModuleDict(layers)

    def swaps(model: nn.ModuleDict) -> tuple[nn.ModuleDict, nn.ModuleDict]:
        sized = apply_allocation(copy.deepcopy(model), allocation, counts=counts)
        make_searchable(model, counts=counts)
        return model, sized

    counts = {"a": torch.arange(60), "b": torch.arange(60)}
    tables = [TableAllocation(name, 60, 8, (Tier(20, 8), Tier(20, 2))) for name in counts]
    allocation = Allocation(tables)
    filled = swaps(build())
    with torch.device("meta"):
        empty = build()
        if inside:
            swapped = swaps(empty)
    for model, full in zip(swapped if inside else swaps(empty), filled):
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        if not assign:
            model.to_empty(device="cpu")
        model.load_state_dict(full.state_dict(), assign=assign)
        ids = torch.arange(60)
        assert torch.equal(model["a"](ids), full["a"](ids))
        assert torch.equal(model["b"](ids.view(20, 3)), full["b"](ids.view(20, 3)))


@pytest.mark.parametrize("searched", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_a_row_of_padding_comes_with_the_state(searched: bool, tied: bool) -> None:
    def made(row: float) -> nn.ModuleDict:
        model = nn.ModuleDict({"e": nn.Embedding(60, 8, padding_idx=0), "o": nn.Linear(8, 60)})
        with torch.no_grad():
            model["e"].weight[0] = row
        if tied:
            model["o"].weight = model["e"].weight
        if searched:
            make_searchable(model)
        else:
            apply_allocation(model, Allocation([TableAllocation("e", 60, 8, (Tier(60, 8),))]))
        return model

    for before, after in ((1.0, 0.0), (1.0, 2.0), (0.0, 0.0)):
        source, target = made(before), made(after)
        target.load_state_dict(source.state_dict())
        assert torch.equal(target["e"](IDS), source["e"](IDS))
        assert torch.equal(target["e"](IDS[:1]), torch.full((1, 8), before))
        vectors = torch.randn(3, 8)
        assert torch.equal(target["o"](vectors), source["o"](vectors))
        assert [*target.state_dict()] == [*source.state_dict()]
    with pytest.raises(RuntimeError, match=r'Missing key.* "e\._padding_row"'):
        made(1.0).load_state_dict(made(0.0).state_dict())


@pytest.mark.parametrize("bits", [32, 16, 8, 4, 2])
@pytest.mark.parametrize("others", [32, 16, 8, 4, 2])
def test_a_state_is_of_one_precision(bits: int, others: int, tmp_path: Path) -> None:
    def made(bits: int) -> MultiSizeEmbedding:
        return MultiSizeEmbedding(TableAllocation("f", 20, 8, (Tier(10, 8, bits),)))

    torch.save(made(bits).state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    if bits == others:
        made(others).load_state_dict(state)
    elif (bits > 8) != (others > 8):
        with pytest.raises(RuntimeError, match=r"tiers\.0\._dense\.spread"):
            made(others).load_state_dict(state)
        # Codes may go on from floats.
        made(others).load_state_dict(state, strict=False)
    else:
        told = f"the rows of `tiers.0` have {bits} bits a number in the state, here {others}"
        with pytest.raises(RuntimeError, match=told):
            made(others).load_state_dict(state)
