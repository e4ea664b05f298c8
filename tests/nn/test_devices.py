"""Off the CPU everything gives what it gives there, and the device is seldom waited for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import copy
from typing import Any

import numpy as np
from pretend_device import DEVICE, OnDevice, PretendDevice
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis.lightning import RankingModule, RetrievalModule
from optuna_nis.models.softmax import (
    estimated_ranks,
    sampled_softmax_loss,
    softmax_loss,
    target_ranks,
    top_items,
)
from optuna_nis.nn import (
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    MultiSizeLinear,
    RowwiseAdagrad,
    SupernetEmbedding,
    SupernetLinear,
    apply_allocation,
    make_searchable,
    set_choices,
    supernet_layers,
    warm_start,
)
from optuna_nis.serve import quantize, to_dense

# Some tables are left without counts on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:`counts` has none")

_TIERS: list[tuple[Tier, ...]] = [
    (),
    (Tier(4, 8),),
    (Tier(3, 4), Tier(5, 1)),
    (Tier(2, 8), Tier(3, 4), Tier(15, 2)),
    (Tier(2, 8, 16), Tier(3, 8, 4), Tier(15, 2, 2)),
]
_FEW, _MANY = torch.tensor([[19, 0, 20], [3, 7, 2]]), torch.arange(21).repeat(3, 1)
_OFFSETS = torch.tensor([0, 2, 2, 5])


@pytest.fixture
def device() -> Iterator[PretendDevice]:
    with PretendDevice() as entered:
        yield entered


def _there(each: Any) -> Any:
    return each.to(DEVICE) if isinstance(each, Tensor) else each


def _assert_same(layer: nn.Module, *inputs: Any, **more: Any) -> None:
    """A layer gives the same, and the same gradients, on the CPU and on the device."""
    layer.zero_grad()
    moved = copy.deepcopy(layer).to(DEVICE)
    expected = layer(*inputs, **more)
    found = moved(*map(_there, inputs), **{name: _there(each) for name, each in more.items()})
    assert isinstance(found, OnDevice)
    torch.testing.assert_close(found.cpu(), expected)
    if not expected.requires_grad:
        assert not found.requires_grad
        return
    weights = torch.randn(expected.shape)
    (expected * weights).sum().backward()
    (found * weights.to(DEVICE)).sum().backward()
    for a, b in zip(layer.parameters(), moved.parameters()):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None and b.grad is not None:
            assert a.grad.layout == b.grad.layout
            torch.testing.assert_close(_dense(b.grad), _dense(a.grad), rtol=1e-4, atol=1e-5)


def _dense(grad: Tensor) -> Tensor:
    grad = grad.inner if isinstance(grad, OnDevice) else grad
    return grad.to_dense() if grad.is_sparse else grad


def _ranks(ordered: bool) -> Tensor | None:
    return None if ordered else torch.arange(20).flip(0)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(
    ("tiers", "ordered"),
    [
        (_TIERS[0], True),
        (_TIERS[0], False),
        (_TIERS[1], True),
        (_TIERS[2], False),
        (_TIERS[3], True),
        (_TIERS[4], False),
    ],
)
def test_multi_size_layers(
    device: PretendDevice, tiers: tuple[Tier, ...], ordered: bool, sparse: bool
) -> None:
    table = TableAllocation("x", 20, 8, tiers)
    for ids in (_FEW, _MANY, _FEW.int(), _FEW[:0]):
        layer = MultiSizeEmbedding(table, ranks=_ranks(ordered), sparse=sparse)
        _assert_same(layer, ids)
    for mode in ("sum", "mean"):
        bag = MultiSizeEmbeddingBag(table, mode=mode, ranks=_ranks(ordered), sparse=sparse)
        for ids in (_FEW, _MANY):
            _assert_same(bag, ids)
        _assert_same(bag, _FEW.flatten().int(), _OFFSETS)
    for ids in (_FEW, _MANY):
        bag = MultiSizeEmbeddingBag(table, mode="sum", ranks=_ranks(ordered), sparse=sparse)
        _assert_same(bag, ids, per_sample_weights=torch.rand(ids.shape))
        flat = ids.flatten()
        _assert_same(bag, flat, _OFFSETS, per_sample_weights=torch.rand(flat.shape))
    found = bag.to(DEVICE).dense_weight()
    assert (found.device, found.shape) == (DEVICE, (20, 8))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("mode", [None, "sum", "mean"])
def test_supernet(device: PretendDevice, mode: Any, sparse: bool) -> None:
    spec = EmbeddingSpec("x", 20, 8, row_blocks=[5, 5, 10])
    for ranks in (None, _ranks(False)):
        for ids in (_FEW, _MANY[:2]):
            layer = SupernetEmbedding(spec, mode=mode, ranks=ranks, sparse=sparse)
            _assert_same(layer, ids)
            layer.set_widths([[8, 4, 0], [2, 2, 1]])
            _assert_same(layer, ids)


@pytest.mark.parametrize("ordered", [False, True])
def test_output_layers(device: PretendDevice, ordered: bool) -> None:
    vectors = torch.randn(4, 2, 8)
    layer = SupernetLinear(EmbeddingSpec("x", 20, 8, row_blocks=[5, 15]), ranks=_ranks(ordered))
    _assert_same(layer, vectors)
    supernet_layers(layer)["x"].set_widths([[8, 4], [2, 0]])
    _assert_same(layer, vectors)
    for tiers in _TIERS:
        sized = MultiSizeLinear(TableAllocation("x", 20, 8, tiers), ranks=_ranks(ordered))
        _assert_same(sized, vectors)
        torch.testing.assert_close(copy.deepcopy(sized).to(DEVICE).weight.cpu(), sized.weight)
        moved = sized.to(DEVICE)
        moved(vectors.to(DEVICE))  # The order of the ids goes there once.
        assert not _waits(device, moved, vectors.to(DEVICE))


def test_a_tied_head(device: PretendDevice) -> None:
    model = nn.Sequential(nn.Embedding(20, 8, padding_idx=0), nn.Linear(8, 20))
    model[1].weight = model[0].weight
    space = make_searchable(model, counts={"0": torch.arange(20)})
    _assert_same(model, _FEW[:, :2] % 20)
    apply_allocation(model, space.sample(np.random.default_rng(0), 60))
    _assert_same(model, _FEW[:, :2] % 20)


def test_choices_are_set_there_and_go_along(device: PretendDevice) -> None:
    space = SearchSpace([EmbeddingSpec("a", 60, 8), EmbeddingSpec("b", 90, 8)])
    model = nn.ModuleList([SupernetEmbedding(spec) for spec in space.specs])
    moved = copy.deepcopy(model).to(DEVICE)
    choices = [space.sample(np.random.default_rng(seed), 500) for seed in range(2)]
    for each in (model, moved):
        set_choices(each, space, choices)
    ids = torch.arange(60)
    for layer, other in zip(model, moved):
        assert isinstance(other._mask, OnDevice)
        torch.testing.assert_close(other(ids.to(DEVICE)).cpu(), layer(ids))
    back = moved[0].cpu()
    assert torch.equal(back(ids), model[0](ids))


class _Model(nn.Module):
    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.user = nn.Embedding(20, 8, padding_idx=3, sparse=sparse)
        self.fused = nn.Embedding(21, 8, sparse=sparse)
        self.bags = nn.ModuleDict(
            {
                mode: nn.EmbeddingBag(20, 8, mode=mode, padding_idx=2, sparse=sparse)
                for mode in ("sum", "mean", "max")
                if not (sparse and mode == "max")
            }
        )
        self.fused_bag = nn.EmbeddingBag(21, 8, mode="mean", sparse=sparse)
        with torch.no_grad():
            self.user.weight[3] = 1.0

    def forward(self, ids: Tensor) -> Tensor:
        columns = ids[:, :2] % 9 + torch.tensor([0, 9]).to(ids.device)
        flat = ids.flatten()
        offsets = torch.arange(0, len(flat), 2, device=ids.device)
        rows = [self.user(ids).sum(1), self.fused(columns).sum(1), self.fused(ids).sum(1)]
        rows += [self.fused_bag(columns), self.fused_bag(ids)]
        rows += [self.user(ids[0, 0]).expand(len(ids), -1), self.user.weight[:1].expand(2, -1)]
        for bag in self.bags.values():
            rows += [bag(ids), bag(flat, offsets)[: len(ids)]]
        weights = torch.ones_like(ids, dtype=rows[0].dtype) / 2
        rows.append(self.bags["sum"](ids, per_sample_weights=weights))
        return torch.stack([row[:2] for row in rows])


def _sizes(model: _Model) -> Allocation:
    """Sizes with removed fields among them."""
    names = ["user", *(f"bags.{mode}" for mode in model.bags)]
    tables = [TableAllocation(name, 20, 8, _TIERS[2]) for name in names]
    for name in ("fused", "fused_bag"):
        tables += [
            TableAllocation(f"{name}.0", 9, 8, (Tier(4, 8), Tier(5, 2))),
            TableAllocation(f"{name}.1", 12, 8, ()),
        ]
    return Allocation(tables)


_FIELDS = {"fused": [9, 12], "fused_bag": [9, 12]}
_IDS = torch.tensor([[19, 0, 3], [3, 7, 2]])


@pytest.mark.parametrize("sparse", [False, True])
def test_swapped_models(device: PretendDevice, sparse: bool) -> None:
    torch.manual_seed(0)
    model = _Model(sparse)
    counts = {"user": torch.arange(20), "fused": torch.arange(21)}
    plain = copy.deepcopy(model).to(DEVICE)
    searchable = copy.deepcopy(model)
    space = make_searchable(searchable, fields=_FIELDS, counts=counts, budget="50%")
    _assert_same(searchable, _IDS)
    # Models that are on the device already.
    assert make_searchable(plain, fields=_FIELDS, counts=counts, budget="50%") == space
    torch.testing.assert_close(plain(_IDS.to(DEVICE)).cpu(), searchable(_IDS))
    sizes = space.sample(np.random.default_rng(0), space.budget)
    apply_allocation(searchable, sizes)
    apply_allocation(plain, sizes)
    torch.testing.assert_close(plain(_IDS.to(DEVICE)).cpu(), searchable(_IDS))
    _assert_same(searchable, _IDS)
    sized = copy.deepcopy(model).to(DEVICE)
    apply_allocation(sized, _sizes(model), counts=counts)
    assert sized(_IDS.to(DEVICE)).device == DEVICE
    dense = to_dense(copy.deepcopy(searchable).to(DEVICE))
    torch.testing.assert_close(dense(_IDS.to(DEVICE)).cpu(), searchable(_IDS))
    _assert_same(quantize(copy.deepcopy(searchable)), _IDS)


def test_building_in_the_context_of_a_device(device: PretendDevice) -> None:
    space = SearchSpace([EmbeddingSpec("x", 20, 8)])
    with torch.device(DEVICE):
        supernet = SupernetEmbedding(space.specs[0], ranks=torch.arange(20).flip(0))
        layer = MultiSizeEmbedding(TableAllocation("x", 20, 8, _TIERS[3]), ranks=_ranks(False))
        model = nn.ModuleDict({"x": nn.Embedding(20, 8)})
        make_searchable(model, budget="50%", counts={"x": np.arange(20)})
    for each in (supernet, layer, model["x"]):
        assert each(_FEW[:, :2].to(DEVICE)).device == DEVICE


@pytest.mark.parametrize("sparse", [False, True])
def test_rowwise_adagrad(device: PretendDevice, sparse: bool) -> None:
    table = TableAllocation("x", 20, 8, _TIERS[3])
    layers = [MultiSizeEmbedding(table, sparse=sparse), MultiSizeEmbedding(table, sparse=sparse)]
    layers[1].load_state_dict(layers[0].state_dict())
    layers[1].to(DEVICE)
    for layer, ids in zip(layers, (_FEW, _FEW.to(DEVICE))):
        optimizer = RowwiseAdagrad(layer.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            layer(ids).square().sum().backward()
            optimizer.step()
    for a, b in zip(layers[0].parameters(), layers[1].parameters()):
        torch.testing.assert_close(b.cpu(), a)


def test_softmax(device: PretendDevice) -> None:
    torch.manual_seed(0)
    items, vectors = nn.Linear(4, 90), torch.randn(5, 4)
    moved, labels = copy.deepcopy(items).to(DEVICE), torch.tensor([0, 3, 89, -1, 2])
    known = labels.clamp(min=0)
    functions: list[tuple[Callable[..., Tensor], Tensor, tuple[Any, ...]]] = [
        (softmax_loss, known, ()),
        (sampled_softmax_loss, known, (7,)),
        (target_ranks, labels, ()),
        (estimated_ranks, labels, (20,)),
    ]
    for function, target, more in functions:
        torch.manual_seed(1)
        expected = function(vectors, items, target, *more)
        torch.manual_seed(1)
        found = function(vectors.to(DEVICE), moved, target.to(DEVICE), *more)
        torch.testing.assert_close(found.cpu(), expected)
    softmax_loss(vectors.to(DEVICE), moved, known.to(DEVICE)).backward()
    assert isinstance(moved.weight.grad, OnDevice)
    assert torch.equal(top_items(vectors.to(DEVICE), moved, 3).cpu(), top_items(vectors, items, 3))


def _reference(kind: str) -> tuple[SearchSpace, Callable[[Any], Any]]:
    specs = [EmbeddingSpec("a", 60, 8), EmbeddingSpec("b", 90, 8)]
    classes = 2000 if "estimated" in kind else 30
    if kind.startswith("items, "):
        specs.append(EmbeddingSpec("items", classes, 4))
    space = SearchSpace(specs, budget="50%")

    def build(tables: SearchSpace | Allocation) -> Any:
        if kind == "ranking":
            return RankingModule(tables, bags={"b"}, hidden=(4,))
        return RetrievalModule(
            tables,
            bags={"b"},
            hidden=(4,),
            num_classes=classes,
            num_sampled=7 if "sampled" in kind else None,
        )

    return space, build


def _reference_batch(kind: str) -> dict[str, Tensor]:
    labels = torch.tensor([0.0, 1, 1, 0]) if kind == "ranking" else torch.tensor([0, 1, 1, 0])
    return {
        "a": torch.tensor([0, 59, 60, 3]),
        "b": torch.tensor([[0, 90], [90, 90], [3, 4], [1, 1]]),
        "label": labels,
    }


_RETRIEVAL = ("retrieval", "sampled", "estimated")
_KINDS = ("ranking", *_RETRIEVAL, *(f"items, {kind}" for kind in _RETRIEVAL))


@pytest.mark.parametrize("kind", _KINDS)
def test_reference_models(device: PretendDevice, kind: str) -> None:
    if kind != "ranking":
        # Means of earlier versions make tensors where the stand-in does not see it.
        pytest.importorskip("torchmetrics", "1.9")
    space, build = _reference(kind)
    torch.manual_seed(0)
    supernet = build(space)
    moved = copy.deepcopy(supernet).to(DEVICE)
    batch = _reference_batch(kind)
    there = {name: tensor.to(DEVICE) for name, tensor in batch.items()}
    choice = space.sample(np.random.default_rng(0), space.budget)
    qualities = []
    for model, examples in ((supernet, batch), (moved, there)):
        model.log = lambda *args, **kwargs: None
        set_choices(model, space, [space.full(), choice])
        torch.manual_seed(1)
        optimizer = model.configure_optimizers()
        model.training_step(examples, 0).backward()
        optimizer.step()
        twice = {name: torch.cat([tensor] * 2) for name, tensor in examples.items()}
        qualities.append(model.choice_quality(twice, 2).cpu())
        model.validation_step(examples, 0)
        model.predict_step(examples, 0)
    torch.testing.assert_close(qualities[1], qualities[0])
    for a, b in zip(supernet.parameters(), moved.parameters()):
        torch.testing.assert_close(b.cpu(), a, rtol=1e-3, atol=1e-5)
    sized = build(choice).to(DEVICE)
    warm_start(sized, moved)
    set_choices(moved, space, [choice])
    torch.testing.assert_close(sized(there).cpu(), moved(there).cpu())


def test_one_class_on_the_device(device: PretendDevice) -> None:
    space = SearchSpace([EmbeddingSpec("a", 60, 8)])
    model = RankingModule(space).to(DEVICE)
    batch = {"a": torch.tensor([0, 1]).to(DEVICE), "label": torch.ones(2, device=DEVICE)}
    assert model.choice_quality(batch, 1).isnan().all()


def test_a_removed_feature_on_cuda() -> None:
    gone = TableAllocation("plane", 100, 8, ())
    for layer in (MultiSizeEmbedding(gone), MultiSizeEmbeddingBag(gone)):
        with FakeTensorMode(allow_non_fake_inputs=True):
            moved = layer.to("cuda")
            assert moved(torch.zeros(4, 3, dtype=torch.long, device="cuda")).device.type == "cuda"


def test_tensors_of_two_devices_are_told_apart(device: PretendDevice) -> None:
    layer = MultiSizeEmbedding(TableAllocation("x", 20, 8, _TIERS[3])).to(DEVICE)
    with pytest.raises(RuntimeError, match="all tensors to be on the same device"):
        layer(_FEW)
    with pytest.raises(RuntimeError, match="all tensors to be on the same device"):
        torch.zeros(2, device=DEVICE) + torch.zeros(2)


def _waits(device: PretendDevice, layer: nn.Module, *inputs: Tensor) -> int:
    device.reset()
    layer(*inputs).sum().backward()
    return device.waits.total()


def test_a_step_does_not_wait_for_the_device(device: PretendDevice) -> None:
    table = TableAllocation("x", 200, 8, (Tier(50, 8), Tier(50, 4), Tier(90, 1)))
    ids = _FEW.to(DEVICE)
    offsets = torch.tensor([0, 4]).to(DEVICE)
    rows, bags = MultiSizeEmbedding(table).to(DEVICE), MultiSizeEmbeddingBag(table).to(DEVICE)
    for layer, inputs in ((rows, (ids,)), (bags, (ids,)), (bags, (ids.flatten(), offsets))):
        assert not _waits(device, layer, *inputs), layer
    space = SearchSpace([EmbeddingSpec(name, 200, 8) for name in "abc"])
    supernet = nn.ModuleList([SupernetEmbedding(spec) for spec in space.specs]).to(DEVICE)

    def step() -> None:
        set_choices(supernet, space, [space.full(), space.full()])
        for layer in supernet:
            layer(ids).sum().backward()

    step()
    device.reset()
    step()
    assert not device.waits
    # The widths of all features go there together.
    assert device.uploads == 1
    model = nn.ModuleDict({"bag": nn.EmbeddingBag(200, 8, mode="max", padding_idx=1)}).to(DEVICE)
    make_searchable(model, budget="50%")
    model["bag"](ids.flatten(), offsets)
    assert not _waits(device, model["bag"], ids.flatten(), offsets)


@pytest.mark.parametrize("kind", _KINDS)
def test_a_training_step_of_the_reference_models(device: PretendDevice, kind: str) -> None:
    space, build = _reference(kind)
    model = build(space).to(DEVICE)
    batch = {name: tensor.to(DEVICE) for name, tensor in _reference_batch(kind).items()}
    for _ in range(2):
        device.reset()
        set_choices(model, space, [space.full(), space.full()])
        model.training_step(batch, 0).backward()
    assert not device.waits
    assert device.uploads == 1


def test_the_waits_that_remain(device: PretendDevice) -> None:
    """Shapes that depend on the data: one for a sparse layer, one or two for fused fields."""
    table = TableAllocation("x", 200, 8, (Tier(50, 8), Tier(50, 4), Tier(90, 1)))
    ids = _FEW.to(DEVICE)
    for kind in (MultiSizeEmbedding, MultiSizeEmbeddingBag):
        layer = kind(table, sparse=True).to(DEVICE)
        assert _waits(device, layer, ids) == 1
    fused = nn.ModuleDict({"fused": nn.Embedding(60, 8)}).to(DEVICE)
    tables = [TableAllocation(f"fused.{i}", 20, 8, _TIERS[3]) for i in range(3)]
    layer = apply_allocation(fused, Allocation(tables))["fused"]
    columns = torch.tensor([[0, 20, 40], [19, 39, 59]]).to(DEVICE)
    layer(columns)
    assert _waits(device, layer, columns) == 1
    assert _waits(device, layer, columns.flatten()) == 1
    others = columns.flip(1)
    assert _waits(device, layer, others) == 2
