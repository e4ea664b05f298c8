"""Sparse gradients are the dense ones, for tiers, bags and the supernet."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch
from torch import Tensor, nn

from optuna_nis import EmbeddingSpec, TableAllocation, Tier
from optuna_nis.nn import MultiSizeEmbedding, MultiSizeEmbeddingBag, SupernetEmbedding

_TIERS = [
    (),
    (Tier(4, 8),),
    (Tier(3, 4), Tier(5, 1)),
    (Tier(2, 8), Tier(3, 4), Tier(15, 2)),
    (Tier(2, 8, 16), Tier(3, 8, 4), Tier(15, 2, 2)),
]


def _gradients(layer: nn.Module, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
    output = layer(*inputs)
    weights = torch.arange(output.numel(), dtype=output.dtype).view_as(output)
    if output.requires_grad:
        (output * weights).sum().backward()
    return output, [p.grad.to_dense() for p in layer.parameters() if p.grad is not None]


def _assert_same(dense: nn.Module, sparse: nn.Module, *inputs: Tensor) -> None:
    sparse.load_state_dict(dense.state_dict())
    expected, expected_grads = _gradients(dense, *inputs)
    found, grads = _gradients(sparse, *inputs)
    torch.testing.assert_close(found, expected)
    # The order of the sums differs.
    torch.testing.assert_close(grads, expected_grads, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    tiers=st.sampled_from(_TIERS),
    ids=st.lists(st.integers(0, 20), min_size=1, max_size=30),
)
def test_multi_size_embedding(tiers: tuple[Tier, ...], ids: list[int]) -> None:
    table = TableAllocation("x", 20, 8, tiers)
    sparse = MultiSizeEmbedding(table, sparse=True)
    _assert_same(MultiSizeEmbedding(table), sparse, torch.tensor(ids))
    for tier in sparse.tier_modules():
        assert tier.weight.grad is not None
        assert tier.weight.grad.is_sparse


@settings(max_examples=30, deadline=None)
@given(
    tiers=st.sampled_from(_TIERS),
    bags=st.lists(st.lists(st.integers(0, 20), max_size=4), min_size=1, max_size=6),
    mode=st.sampled_from(["sum", "mean"]),
)
def test_multi_size_embedding_bag(
    tiers: tuple[Tier, ...], bags: list[list[int]], mode: str
) -> None:
    table = TableAllocation("x", 20, 8, tiers)
    flat = torch.tensor([i for bag in bags for i in bag], dtype=torch.int64)
    offsets = torch.tensor([0, *(len(bag) for bag in bags)]).cumsum(0)[:-1]
    _assert_same(
        MultiSizeEmbeddingBag(table, mode=mode),  # type: ignore[arg-type]
        MultiSizeEmbeddingBag(table, mode=mode, sparse=True),  # type: ignore[arg-type]
        flat,
        offsets,
    )


@pytest.mark.parametrize("mode", [None, "mean"])
def test_supernet(mode: str | None) -> None:
    spec = EmbeddingSpec("x", 20, 8, row_blocks=5)
    layers = [SupernetEmbedding(spec, mode=mode, sparse=s) for s in (False, True)]  # type: ignore[arg-type]
    for layer in layers:
        layer.set_widths([[8, 8, 4, 2, 0], [4, 1, 1, 1, 1]])
    _assert_same(*layers, torch.arange(20).view(10, 2))
    assert layers[1].weight.grad is not None
    assert layers[1].weight.grad.is_sparse


def test_gradients_of_the_look_up_are_right() -> None:
    table = TableAllocation("x", 20, 8, (Tier(2, 8), Tier(3, 4), Tier(5, 2)))
    layer = MultiSizeEmbedding(table).double()
    ids = torch.tensor([0, 4, 1, 19])  # Few enough that the table is not projected as a whole.

    def look_up(*parameters: Tensor) -> Tensor:
        named = dict(zip(dict(layer.named_parameters()), parameters))
        output: Tensor = torch.func.functional_call(layer, named, (ids,))
        return output

    assert torch.autograd.gradcheck(look_up, tuple(layer.parameters()))


def test_no_gradients_in_half_precision_are_lost() -> None:
    table = TableAllocation("x", 20, 8, (Tier(2, 8), Tier(18, 2)))
    layer = MultiSizeEmbedding(table, sparse=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(torch.tensor([0, 4]))
    assert output.dtype == torch.float32
    output.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
