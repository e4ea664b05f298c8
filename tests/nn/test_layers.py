"""The supernet under a choice and the multi-size layer are the same function."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis.nn import (
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    SupernetEmbedding,
    freeze,
    set_choices,
    supernet_layers,
)
from optuna_nis.nn._shared import hashed


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    rows = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    columns = draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    spec = EmbeddingSpec(
        "f",
        sum(rows),
        sum(columns),
        row_blocks=rows,
        col_blocks=columns,
        oov=draw(st.sampled_from(["zero", "shared", "hash"])),
    )
    return SearchSpace([spec], mode=draw(st.sampled_from(["multi", "single"])))


SHARES = st.sampled_from([0.2, 0.5, 1.0])


def _supernet(spec: EmbeddingSpec, **options: object) -> SupernetEmbedding:
    layer = SupernetEmbedding(spec, init_std=1.0, **options)  # type: ignore[arg-type]
    nn.init.normal_(layer.projection)
    return layer


def _check_gradients(supernet: SupernetEmbedding, layer: nn.Module) -> None:
    """The gradients of the tiers are those of the supernet's blocks, nothing is left over."""
    weight = torch.zeros_like(supernet.weight)
    table = layer.table
    if table.num_shared:
        shared = supernet._shared.weight
        own = layer.tier_modules()[-1].weight.grad[-table.num_shared :]
        expected = torch.zeros_like(shared)
        expected[: len(own), : own.shape[1]] = own
        if layer.projection is None:
            expected = expected @ supernet.projection.T
        torch.testing.assert_close(shared.grad, expected, rtol=1e-4, atol=1e-5)
    projection = torch.zeros_like(supernet.projection)
    start = 0
    for tier in layer.tier_modules():
        end = min(start + tier.weight.shape[0], table.kept)
        weight[start:end, : tier.weight.shape[1]] = tier.weight.grad[: end - start]
        start = end
    if layer.projection is not None:
        projection[: layer.projection.shape[0]] = layer.projection.grad
    elif start:
        # A layer of full width holds the projected rows.
        projection = supernet.weight[:start].T @ weight[:start]
        if table.num_shared:
            projection += shared[: len(own)].T @ own
        weight = weight @ supernet.projection.T
    torch.testing.assert_close(supernet.weight.grad, weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(supernet.projection.grad, projection, rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    space=spaces(),
    share=SHARES,
    seed=st.integers(0, 99),
    permute=st.booleans(),
    many=st.booleans(),
)
def test_supernet_equals_multi_size(
    space: SearchSpace, share: float, seed: int, permute: bool, many: bool
) -> None:
    torch.manual_seed(seed)
    (spec,) = space.specs
    ranks = torch.randperm(spec.num_embeddings) if permute else None
    allocation = space.sample(np.random.default_rng(seed), share * space.full_parameters)
    supernet = _supernet(spec, ranks=ranks)
    set_choices(supernet, space, [allocation])
    layer = MultiSizeEmbedding(allocation["f"], ranks=ranks)
    supernet.copy_to(layer)
    # Few ids take the way through the tiers, many that through the projected table.
    ids = torch.randint(0, spec.num_embeddings + 1, (64, 2) if many else (3,))
    torch.testing.assert_close(supernet(ids), layer(ids), rtol=1e-4, atol=1e-5)
    target = torch.randn(*ids.shape, spec.embedding_dim)
    (supernet(ids) * target).sum().backward()
    if allocation["f"].tiers:
        (layer(ids) * target).sum().backward()
        _check_gradients(supernet, layer)


@settings(max_examples=40, deadline=None)
@given(
    space=spaces(),
    share=SHARES,
    seed=st.integers(0, 99),
    mode=st.sampled_from(["sum", "mean"]),
    many=st.booleans(),
)
def test_supernet_bag_equals_multi_size_bag(
    space: SearchSpace, share: float, seed: int, mode: str, many: bool
) -> None:
    torch.manual_seed(seed)
    (spec,) = space.specs
    allocation = space.sample(np.random.default_rng(seed), share * space.full_parameters)
    supernet = _supernet(spec, mode=mode)
    set_choices(supernet, space, [allocation])
    layer = MultiSizeEmbeddingBag(allocation["f"], mode=mode)  # type: ignore[arg-type]
    supernet.copy_to(layer)
    ids = torch.randint(0, spec.num_embeddings + 1, (64, 3) if many else (2, 1))
    torch.testing.assert_close(supernet(ids), layer(ids), rtol=1e-4, atol=1e-5)
    target = torch.randn(len(ids), spec.embedding_dim)
    (supernet(ids) * target).sum().backward()
    if allocation["f"].tiers:
        (layer(ids) * target).sum().backward()
        _check_gradients(supernet, layer)


@pytest.mark.parametrize(("mode", "times"), [(None, 1), (None, 40), ("mean", 1), ("mean", 40)])
def test_each_run_of_the_batch_sees_its_choice(mode: str | None, times: int) -> None:
    space = SearchSpace([EmbeddingSpec("f", 60, 8, oov="hash")])
    (spec,) = space.specs
    tables = [spec.table([8, 8]), spec.table([8, 3], num_shared=16), spec.table([4], num_shared=1)]
    choices = [Allocation([table]) for table in tables]
    supernet = _supernet(spec, mode=mode)
    ids = torch.randint(0, 61, (10 * times,) if mode is None else (10 * times, 2))
    alone = []
    for choice in choices:
        set_choices(supernet, space, [choice])
        alone.append(supernet(ids))
    set_choices(supernet, space, choices)
    torch.testing.assert_close(supernet(torch.cat([ids] * 3)), torch.cat(alone))
    assert not torch.equal(alone[0], alone[2])


TABLE = TableAllocation("f", 20, 8, (Tier(4, 8), Tier(6, 2)))


def test_holds_exactly_the_parameters_of_the_allocation() -> None:
    for layer in (MultiSizeEmbedding(TABLE), MultiSizeEmbeddingBag(TABLE)):
        assert sum(p.numel() for p in layer.parameters()) == TABLE.num_parameters
        assert not list(layer.buffers())


def test_full_width_is_a_plain_embedding() -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 20, 8, (Tier(20, 8),)))
    plain = nn.Embedding(20, 8, _weight=layer.tier_modules()[0].weight.detach())
    ids = torch.randint(0, 20, (5, 3))
    assert torch.equal(layer(ids), plain(ids))
    assert torch.equal(layer.dense_weight(), plain.weight)


@pytest.mark.parametrize("ids", [torch.tensor([10, 19, 20]), torch.arange(10, 21).repeat(9)])
def test_out_of_vocabulary_is_zero(ids: Tensor) -> None:
    assert torch.equal(MultiSizeEmbedding(TABLE)(ids), torch.zeros(len(ids), 8))


@pytest.mark.parametrize("permute", [False, True])
def test_ids_without_a_row_share_some(permute: bool) -> None:
    ranks = torch.randperm(20) if permute else None
    layer = MultiSizeEmbedding(replace(TABLE, num_shared=1), ranks=ranks)
    ids = torch.arange(20) if ranks is None else ranks.argsort()
    rows = layer(ids[10:])
    assert torch.equal(rows, rows[:1].expand(10, -1))
    assert bool((rows[0] != 0).any())
    # All of what is unknown, missing and padding.
    assert torch.equal(layer(torch.tensor([20])), torch.zeros(1, 8))
    bag = MultiSizeEmbeddingBag(replace(TABLE, num_shared=1), mode="mean", ranks=ranks)
    assert torch.equal(bag(torch.tensor([[20, 20]])), torch.zeros(1, 8))
    torch.testing.assert_close(bag(ids[None, 12:14]), bag(ids[None, 12:13]))
    assert sum(p.numel() for p in layer.parameters()) == layer.table.num_parameters


def test_hashed_rows_are_shared_evenly_and_by_one_rule() -> None:
    ranks = torch.arange(3_000_000, 3_000_000 + 256 * 40)
    for number in (16, 256):
        counts = torch.bincount(hashed(ranks, number), minlength=number).float()
        assert counts.std() < 0.1 * counts.mean()
    # Who shares one of many rows also shares one of few.
    assert torch.equal(hashed(ranks, 256) % 16, hashed(ranks, 16))
    assert torch.equal(hashed(ranks.int(), 256), hashed(ranks, 256))


def test_removed_feature_is_zero() -> None:
    removed = TableAllocation("f", 20, 8, ())
    assert torch.equal(MultiSizeEmbedding(removed)(torch.tensor([0, 3])), torch.zeros(2, 8))
    bag = MultiSizeEmbeddingBag(removed)
    assert torch.equal(bag(torch.tensor([[0, 3]])), torch.zeros(1, 8))
    assert torch.equal(bag.dense_weight(), torch.zeros(20, 8))


def test_initial_rows_have_the_same_scale_in_every_tier() -> None:
    torch.manual_seed(0)
    table = TableAllocation("f", 4000, 64, (Tier(2000, 64), Tier(2000, 16)))
    rows = MultiSizeEmbedding(table, init_std=0.1).dense_weight()
    assert rows[:2000].std().item() == pytest.approx(0.1, rel=0.05)
    assert rows[2000:, :16].std().item() == pytest.approx(0.1, rel=0.05)
    assert (rows[2000:, 16:] == 0).all()


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bag_agrees_with_torch(mode: str) -> None:
    layer = MultiSizeEmbeddingBag(TABLE, mode=mode)  # type: ignore[arg-type]
    ids = torch.tensor([3, 11, 0, 9, 9])
    offsets = torch.tensor([0, 2, 2])
    plain = nn.EmbeddingBag(20, 8, mode=mode, _weight=layer.dense_weight().detach())
    torch.testing.assert_close(layer(ids, offsets), plain(ids, offsets))


@pytest.mark.parametrize("times", [1, 30])
def test_flat_bags_of_any_integer_type(times: int) -> None:
    layer = MultiSizeEmbeddingBag(TABLE)
    ids = torch.tensor([0, 5, 20, 9] * times)
    offsets = torch.arange(0, 4 * times, 2)
    expected = layer(ids.view(-1, 2))
    torch.testing.assert_close(layer(ids, offsets), expected)
    torch.testing.assert_close(layer(ids.int(), offsets), expected)
    torch.testing.assert_close(layer(ids.int(), offsets.int()), expected)


def test_bag_with_weights_agrees_with_torch() -> None:
    layer = MultiSizeEmbeddingBag(TABLE, mode="sum")
    ids, weights = torch.randint(0, 20, (4, 3)), torch.randn(4, 3)
    plain = nn.EmbeddingBag(20, 8, mode="sum", _weight=layer.dense_weight().detach())
    torch.testing.assert_close(
        layer(ids, per_sample_weights=weights), plain(ids, per_sample_weights=weights)
    )


def test_mean_leaves_padding_out_but_counts_cut_ids() -> None:
    layer = MultiSizeEmbeddingBag(TABLE, mode="mean")
    row = layer(torch.tensor([[2]]))
    torch.testing.assert_close(layer(torch.tensor([[2, 20, 20]])), row)
    torch.testing.assert_close(layer(torch.tensor([[2, 15]])), row / 2)
    assert torch.equal(layer(torch.tensor([[20, 20]])), torch.zeros(1, 8))


@pytest.mark.parametrize("wrong", [-1, 21])
def test_id_out_of_range(wrong: int) -> None:
    spec = EmbeddingSpec("f", 20, 8)
    for layer in (MultiSizeEmbedding(TABLE), SupernetEmbedding(spec)):
        with pytest.raises(ValueError, match=rf"`ids` of 'f' must be between 0 and 20 .* {wrong}"):
            layer(torch.tensor([0, wrong]))


@pytest.mark.parametrize("offsets", [[1, 2], [0, 3, 2], [0, 4], [-1, 0]])
@pytest.mark.parametrize("frozen", [False, True])
def test_bags_that_offsets_do_not_cut_are_refused(offsets: list[int], frozen: bool) -> None:
    table = TableAllocation("f", 9, 4, (Tier(3, 4), Tier(6, 2, 4)))
    layer: nn.Module = MultiSizeEmbeddingBag(table, mode="sum")
    layer = freeze(layer).eval() if frozen else layer
    with pytest.raises(
        ValueError, match="`offsets` of 'f' must begin with 0, not fall, and be at"
    ):
        layer(torch.arange(3), torch.tensor(offsets))


def test_bad_arguments() -> None:
    spec = EmbeddingSpec("f", 20, 8)
    with pytest.raises(TypeError, match=r"`ids` of 'f' must be int64 or int32, got torch.float32"):
        MultiSizeEmbedding(TABLE)(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="`ranks` of 'f' must be a permutation of 0 to 19"):
        MultiSizeEmbedding(TABLE, ranks=torch.zeros(20, dtype=torch.int64))
    with pytest.raises(ValueError, match="cannot be projected after pooling"):
        MultiSizeEmbeddingBag(TABLE, mode="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be projected after pooling"):
        SupernetEmbedding(spec, mode="max")  # type: ignore[arg-type]
    bag = MultiSizeEmbeddingBag(TABLE, mode="mean")
    with pytest.raises(ValueError, match="`offsets` of 'f' must be None"):
        bag(torch.tensor([[0]]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"`ids` of 'f' must be of shape \(batch, length\)"):
        bag(torch.tensor([0]))
    with pytest.raises(ValueError, match="needs mode='sum', got 'mean'"):
        bag(torch.tensor([[0]]), per_sample_weights=torch.ones(1, 1))
    supernet = SupernetEmbedding(spec)
    with pytest.raises(ValueError, match=r"`widths` of 'f' must hold 1 widths for each choice"):
        supernet.set_widths([[8, 8]])
    with pytest.raises(ValueError, match=r"`widths` of 'f' must be between 0 and 8"):
        supernet.set_widths([[9]])
    supernet.set_widths([[8], [4]])
    with pytest.raises(ValueError, match="must be a multiple of the 2 choices, got 3 examples"):
        supernet(torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="`layer` must be of"):
        supernet.copy_to(MultiSizeEmbedding(TableAllocation("g", 20, 8, ())))


def test_supernet_layers_finds_them_and_refuses_twins() -> None:
    spec = EmbeddingSpec("f", 20, 8)
    model = nn.ModuleDict({"a": SupernetEmbedding(spec), "b": nn.Linear(1, 1)})
    assert supernet_layers(model) == {"f": model["a"]}
    model["c"] = SupernetEmbedding(spec)
    with pytest.raises(ValueError, match="two supernet embeddings of 'f'"):
        supernet_layers(model)


def test_state_dict_round_trip() -> None:
    ranks = torch.randperm(20)
    layer = MultiSizeEmbedding(TABLE, ranks=ranks)
    other = MultiSizeEmbedding(TABLE, ranks=torch.arange(20))
    other.load_state_dict(layer.state_dict())
    ids = torch.arange(21)
    assert torch.equal(layer(ids), other(ids))


def test_layers_show_their_sizes() -> None:
    assert "f: 4x8 + 6x2 (of 20x8)" in repr(MultiSizeEmbedding(TABLE))
    assert "mode='mean'" in repr(MultiSizeEmbeddingBag(TABLE))
    assert "f: 20x8, rows=[20]" in repr(SupernetEmbedding(EmbeddingSpec("f", 20, 8)))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("batch", [3, 64])
def test_bags_have_a_weight_for_each_id(frozen: bool, batch: int) -> None:
    # Looked up in the whole table, or id by id.
    layer = MultiSizeEmbeddingBag(TableAllocation("f", 40, 4, (Tier(10, 4),)), mode="sum").eval()
    bag = freeze(layer) if frozen else layer
    ids = torch.randint(0, 40, (batch, 2))
    for shape in ((2, batch), (batch, 1), (batch,), (9, 9), ()):
        told = rf"`per_sample_weights` of 'f' must have the shape of the ids, \({batch}, 2\), got"
        with pytest.raises(ValueError, match=told):
            bag(ids, per_sample_weights=torch.rand(shape))
    with pytest.raises(ValueError, match=rf"ids, \({2 * batch},\), got \({2 * batch + 2},\)"):
        bag(ids.view(-1), torch.tensor([0, 2]), torch.rand(2 * batch + 2))


@pytest.mark.parametrize("how", ["prune", "weight_norm"])
@pytest.mark.parametrize("kind", [MultiSizeEmbedding, MultiSizeEmbeddingBag])
def test_rows_that_a_hook_makes_are_refused(kind: Any, how: str) -> None:
    layer = kind(TableAllocation("user", 9, 4, (Tier(3, 4), Tier(4, 2))))
    tier = layer.tiers[1]
    if how == "prune":
        prune.random_unstructured(tier, "weight", amount=0.5)
    else:
        with pytest.warns(FutureWarning, match="weight_norm"):
            nn.utils.weight_norm(tier)
    with pytest.raises(RuntimeError, match="The rows of 'user' are made by a hook"):
        layer(torch.tensor([[0, 5]]))


def test_parametrized_rows_are_made_where_they_are_looked_up() -> None:
    layer = MultiSizeEmbedding(TableAllocation("user", 9, 4, (Tier(3, 4),)))
    expected = 2 * layer(torch.arange(3))
    parametrize.register_parametrization(layer.tiers[0], "weight", _Double())
    for _ in range(2):
        rows = layer(torch.arange(3))
        assert torch.equal(rows, expected)
        rows.sum().backward()


class _Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight
