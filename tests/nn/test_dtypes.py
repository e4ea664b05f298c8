"""Whatever type a model is cast to, also by autocast, every way gives that of the weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optuna_nis import Allocation, EmbeddingSpec, TableAllocation, Tier
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
    RowwiseAdagrad,
    SupernetEmbedding,
    apply_allocation,
    make_searchable,
)
from optuna_nis.serve import quantize, to_dense

_TYPES = [torch.bfloat16, torch.float16, torch.float64]
_TIERS: list[tuple[Tier, ...]] = [
    (),
    (Tier(4, 8),),
    (Tier(2, 8), Tier(3, 4), Tier(15, 2)),
    (Tier(2, 8, 16), Tier(3, 8, 4), Tier(15, 2, 2)),
]
_FEW, _MANY = torch.tensor([[19, 0, 20]]), torch.arange(21).repeat(3, 1)


def _layers() -> list[nn.Module]:
    layers: list[nn.Module] = []
    for tiers in _TIERS:
        table = TableAllocation("x", 20, 8, tiers)
        for sparse in (False, True):
            layers.append(MultiSizeEmbedding(table, sparse=sparse))
            for mode in ("sum", "mean"):
                layers.append(MultiSizeEmbeddingBag(table, mode=mode, sparse=sparse))
    spec = EmbeddingSpec("x", 20, 8)
    for kind in (None, "sum", "mean"):
        layers += [SupernetEmbedding(spec, mode=kind, sparse=sparse) for sparse in (False, True)]
    return layers


@pytest.mark.parametrize("dtype", _TYPES)
@pytest.mark.parametrize("ids", [_FEW, _MANY])
def test_layers_give_the_type_of_their_weights(ids: Tensor, dtype: torch.dtype) -> None:
    for layer in _layers():
        found = layer.to(dtype)(ids)
        assert found.dtype == dtype, layer
        if found.requires_grad:
            found.sum().backward()
            assert all(p.grad is not None and p.grad.dtype == dtype for p in layer.parameters())
        if not isinstance(layer, SupernetEmbedding):
            assert layer.dense_weight().dtype == dtype
        if isinstance(layer, MultiSizeEmbeddingBag):
            flat, offsets = ids.flatten(), torch.tensor([0, 2])
            assert layer(flat, offsets).dtype == dtype
            if layer.mode == "sum":
                weights = torch.rand(ids.shape)
                assert layer(ids, per_sample_weights=weights).dtype == dtype


@pytest.mark.parametrize("ids", [_FEW, _MANY])
def test_autocast_changes_nothing(ids: Tensor) -> None:
    for layer in _layers():
        expected = layer(ids)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer(ids), expected), layer
            if not isinstance(layer, SupernetEmbedding):
                assert layer.dense_weight().dtype == torch.float32


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Embedding(20, 8, padding_idx=3)
        self.bags = nn.ModuleDict(
            {mode: nn.EmbeddingBag(20, 8, mode=mode) for mode in ("sum", "mean", "max")}
        )
        self.fused = nn.Embedding(20, 8)
        self.fused_bag = nn.EmbeddingBag(20, 8, mode="mean")
        self.out = nn.Linear(8, 1)
        with torch.no_grad():
            self.row.weight[3] = 1.0

    def forward(self, ids: Tensor) -> Tensor:
        columns = ids[:, :2] % 9 + torch.tensor([0, 9])
        rows = [self.row(ids).sum(1), self.fused(ids).sum(1), self.fused(columns).sum(1)]
        rows += [self.fused_bag(ids), self.fused_bag(columns)]
        for bag in self.bags.values():
            rows += [bag(ids), bag(ids.flatten(), torch.arange(0, ids.numel(), ids.shape[1]))]
        weights = torch.ones_like(ids, dtype=rows[0].dtype)
        rows.append(self.bags["sum"](ids, per_sample_weights=weights))
        assert {row.dtype for row in rows} == {self.out.weight.dtype}
        return self.out(torch.stack(rows))  # type: ignore[no-any-return]


def _sizes(gone: str) -> Allocation:
    tables = [
        TableAllocation(name, size, 8, () if name == gone else (Tier(2, 8), Tier(3, 2)))
        for name, size in (
            ("row", 20),
            ("bags.sum", 20),
            ("bags.mean", 20),
            ("bags.max", 20),
            ("fused.a", 9),
            ("fused.b", 11),
            ("fused_bag.a", 9),
            ("fused_bag.b", 11),
        )
    ]
    return Allocation(tables)


@pytest.mark.parametrize("dtype", _TYPES)
@pytest.mark.parametrize("ids", [torch.tensor([[19, 0, 3]]), torch.arange(20).repeat(3, 1)])
def test_swapped_models(ids: Tensor, dtype: torch.dtype) -> None:
    fields = {"fused": {"a": 9, "b": 11}, "fused_bag": {"a": 9, "b": 11}}
    searchable = _Model()
    make_searchable(searchable, budget="50%", fields=fields)
    # Cast before and after it was swapped.
    before, after = _Model().to(dtype), copy.deepcopy(searchable).to(dtype)
    make_searchable(before, budget="50%", fields=fields)
    for model in (before, after):
        assert model(ids).dtype == dtype
        for gone in ("row", "fused.b", "fused_bag.a", "bags.max"):
            sized = apply_allocation(copy.deepcopy(model), _sizes(gone))
            assert sized(ids).dtype == dtype
            assert sized.row.weight.dtype == dtype
        assert to_dense(copy.deepcopy(sized))(ids).dtype == dtype
        assert apply_allocation(_Model(), _sizes("row")).to(dtype)(ids).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bits", ["int8", "float16"])
def test_quantised_models(bits: Any, dtype: torch.dtype) -> None:
    sized = apply_allocation(_Model(), _sizes("row"))
    assert quantize(sized, bits).to(dtype)(_MANY[:, :20]).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casts_leave_ids_alone(dtype: torch.dtype) -> None:
    spec = EmbeddingSpec("x", 5000, 8)
    ranks = torch.randperm(5000)
    layer, expected = SupernetEmbedding(spec, ranks=ranks), SupernetEmbedding(spec, ranks=ranks)
    expected.load_state_dict(layer.state_dict())
    ids = torch.arange(5000)
    assert torch.equal(layer.to(dtype).float()(ids), expected.to(dtype).float()(ids))
    assert torch.equal(layer._ranks[:-1], ranks)  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, None])
def test_many_items_are_compared_in_full_precision(dtype: torch.dtype | None) -> None:
    """With half the bits a number of items beyond 256, or 2048, would be rounded."""
    torch.manual_seed(0)
    items, vectors = nn.Linear(4, 3000), torch.randn(9, 4)
    if dtype is not None:
        items, vectors = items.to(dtype), vectors.to(dtype)
    labels = torch.arange(9) * 300
    exact = copy.deepcopy(items).float()
    for function, more in (
        (target_ranks, ()),
        (estimated_ranks, (2999,)),
        (top_items, ()),
        (softmax_loss, ()),
        (sampled_softmax_loss, (500,)),
    ):
        arguments = (5,) if function is top_items else (labels, *more)
        torch.manual_seed(1)
        expected = function(vectors.float(), exact, *arguments)  # type: ignore[operator]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is None):
            torch.manual_seed(1)
            found = function(vectors, items, *arguments)  # type: ignore[operator]
        assert torch.equal(found, expected), function
    softmax_loss(vectors, items, labels).backward()
    assert items.weight.grad is not None
    assert items.weight.grad.dtype == items.weight.dtype


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rowwise_adagrad_in_half_precision(dtype: torch.dtype, sparse: bool) -> None:
    """The squares of small gradients are beyond float16, the sum of many beyond bfloat16."""
    layer = nn.Embedding(4, 2, sparse=sparse, dtype=dtype)
    optimizer = RowwiseAdagrad(layer.parameters(), lr=0.1)
    before = layer.weight.detach().clone()
    for _ in range(40):
        optimizer.zero_grad()
        (layer(torch.tensor([0, 1])) * 1e-4).sum().backward()
        optimizer.step()
        # As when a training is resumed.
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.state[layer.weight]["sum"].tolist()[:3] == pytest.approx(
        [40e-8, 40e-8, 0.0], rel=0.01
    )
    # Step t is of 0.1 / sqrt(t).
    moved = sum(0.1 / step**0.5 for step in range(1, 41))
    torch.testing.assert_close(layer.weight[:2], before[:2] - moved, rtol=0.1, atol=0.05)
    assert torch.equal(layer.weight[2:], before[2:])
