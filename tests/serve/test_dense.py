from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch
from torch import Tensor, nn

from optuna_nis import EmbeddingSpec, TableAllocation, Tier
from optuna_nis.nn import (
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    SupernetEmbedding,
    make_searchable,
)
from optuna_nis.serve import allocation_of, to_dense


@st.composite
def tables(draw: st.DrawFn) -> TableAllocation:
    width = draw(st.integers(1, 9))
    widths = sorted(draw(st.sets(st.integers(1, width), max_size=4)), reverse=True)
    tiers = tuple(Tier(draw(st.integers(1, 12)), w) for w in widths)
    kept = sum(tier.num_embeddings for tier in tiers)
    left = draw(st.integers(0 if kept else 1, 9))
    shared = draw(st.integers(0, left)) if tiers else 0
    return TableAllocation("f", kept + left, width, tiers, shared)


def _ids(table: TableAllocation, shape: tuple[int, ...]) -> Tensor:
    """Of the whole vocabulary and the id unknown."""
    return torch.randint(0, table.num_embeddings + 1, shape)


@settings(deadline=None)
@given(table=tables(), ordered=st.booleans(), seed=st.integers(0, 99))
def test_a_layer_of_any_sizes(table: TableAllocation, ordered: bool, seed: int) -> None:
    torch.manual_seed(seed)
    ranks = None if ordered else torch.randperm(table.num_embeddings)
    layer = MultiSizeEmbedding(table, ranks=ranks)
    dense = to_dense(layer)
    assert type(dense) is nn.Embedding
    ids = _ids(table, (3, 20))
    torch.testing.assert_close(dense(ids), layer(ids))
    torch.testing.assert_close(dense(ids[:0]), layer(ids[:0]))


@settings(deadline=None)
@given(
    table=tables(),
    mode=st.sampled_from(["sum", "mean"]),
    ordered=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_bag_of_any_sizes(table: TableAllocation, mode: Any, ordered: bool, seed: int) -> None:
    torch.manual_seed(seed)
    ranks = None if ordered else torch.randperm(table.num_embeddings)
    layer = MultiSizeEmbeddingBag(table, mode=mode, ranks=ranks)
    dense = to_dense(layer)
    assert type(dense) is nn.EmbeddingBag
    ids = _ids(table, (7, 4))
    ids[0] = table.num_embeddings
    torch.testing.assert_close(dense(ids), layer(ids))
    flat, offsets = ids.reshape(-1), torch.tensor([0, 0, 5, 20])
    torch.testing.assert_close(dense(flat, offsets), layer(flat, offsets))
    if mode == "sum":
        weights = torch.rand(7, 4)
        torch.testing.assert_close(
            dense(ids, per_sample_weights=weights), layer(ids, per_sample_weights=weights)
        )


def test_a_swapped_model_becomes_what_it_was(
    swapped: nn.Module, batch_of: Callable[[int], dict[str, Tensor]]
) -> None:
    batch = batch_of(40)
    expected = swapped(batch)
    assert to_dense(swapped) is swapped
    torch.testing.assert_close(swapped(batch), expected)
    assert type(swapped.user) is nn.Embedding
    assert swapped.user.weight is swapped.tied.weight
    # Code that knows nothing of this package serves it.
    original = type(swapped)()
    original.load_state_dict(swapped.state_dict())
    torch.testing.assert_close(original(batch), expected)
    with pytest.raises(ValueError, match="must have a multi-size layer"):
        to_dense(swapped)


def test_bags_by_offsets_of_a_swapped_model(swapped: nn.Module) -> None:
    ids, offsets = torch.randint(0, 50, (30,)), torch.tensor([0, 4, 4, 20])
    expected = [layer(ids, offsets) for layer in swapped.bags]
    to_dense(swapped)
    for layer, output in zip(swapped.bags, expected):
        torch.testing.assert_close(layer(ids, offsets), output)


def test_layers_in_several_places_stay_one() -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, (Tier(5, 2),)), sparse=True)
    model = nn.ModuleDict({"a": layer, "b": nn.Sequential(layer)}).eval()
    to_dense(model)
    assert model["a"] is model["b"][0]
    assert not model["a"].training
    assert model["a"].sparse


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_and_frozenness_stay(dtype: torch.dtype) -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 9, 4, (Tier(5, 2),))).to(dtype)
    assert to_dense(layer).weight.dtype == dtype
    assert to_dense(layer).weight.requires_grad
    layer.requires_grad_(False)
    assert not to_dense(layer).weight.requires_grad


def test_a_supernet_is_refused() -> None:
    model = nn.ModuleDict({"user": nn.Embedding(60, 8)})
    make_searchable(model)
    for searchable in (model, SupernetEmbedding(EmbeddingSpec("user", 9, 4))):
        for function in (to_dense, allocation_of):
            with pytest.raises(ValueError, match="'user' is a layer of a supernet"):
                function(searchable)
