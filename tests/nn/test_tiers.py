"""Layers with rows in few bits give what will be stored, whatever way rows are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import copy
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis.nn import (
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    MultiSizeLinear,
    RowwiseAdagrad,
    SupernetEmbedding,
    apply_allocation,
    make_searchable,
    sized_layers,
    warm_start,
)
from optuna_nis.nn import _tier as tier_module
from optuna_nis.nn._rounding import codes_of, rows_of, spread_of
from optuna_nis.nn.multi_size import MultiSize

_ROWS = 20
TABLE = TableAllocation("f", _ROWS, 8, (Tier(2, 8, 16), Tier(5, 8, 4), Tier(9, 3, 2)))
#: Ids without a row of their own share two.
SHARED = replace(TABLE, num_shared=2)
_FEW, _MANY = torch.tensor([[19, 0], [5, 20], [9, 5]]), torch.arange(21).repeat(3, 2).view(-1, 2)


@st.composite
def tables(draw: st.DrawFn) -> TableAllocation:
    number = draw(st.integers(1, 4))
    kinds = st.tuples(st.integers(1, 8), st.sampled_from([32, 16, 8, 4, 2]))
    widths, bits = zip(*draw(st.lists(kinds, min_size=number, max_size=number)))
    falling = zip(sorted(widths, reverse=True), sorted(bits, reverse=True))
    pairs = list(dict.fromkeys(falling))
    rows = draw(st.lists(st.integers(1, 5), min_size=len(pairs), max_size=len(pairs)))
    shared = draw(st.integers(0, _ROWS - sum(rows)))
    tiers = tuple(Tier(n, *pair) for n, pair in zip(rows, pairs))
    return TableAllocation("f", _ROWS, 8, tiers, draw(st.sampled_from([0, shared])))


def _train(layer: nn.Module) -> None:
    """Give a layer numbers as training does, also beyond the outermost levels."""
    for name, parameter in layer.named_parameters():
        nn.init.normal_(parameter)
        if name.endswith("spread"):
            nn.init.constant_(parameter, 0.4)


def _stored(layer: MultiSize) -> Tensor:
    """The table as it is read from what is stored, by rank and with a row for ids unknown."""
    rows = []
    projection = layer.projection
    if projection is not None and layer.table.projection_bits == 16:
        projection = projection.half().to(projection.dtype)  # type: ignore[assignment]
    for size, tier in zip(layer.table.tiers, layer.tier_modules()):
        found, step = tier.weight, tier.stored_step()
        if step is not None:
            codes = codes_of(found, step, size.bits)
            found = rows_of(codes, step.to(found.dtype), size.bits)  # type: ignore[assignment]
        elif size.bits == 16:
            found = found.half().to(found.dtype)  # type: ignore[assignment]
        rows.append(found if projection is None else found @ projection[: size.embedding_dim])
    kept, shared = layer.table.kept, layer.table.num_shared
    if not shared:
        return torch.cat([*rows, torch.zeros(_ROWS + 1 - kept, 8)]).detach()
    # By a hash of the rank; the id unknown shares nothing.
    where = [kept + r * 2_654_435_761 % (2**31 - 1) % shared for r in range(kept, _ROWS)]
    stored = torch.cat(rows)
    return torch.cat([stored[:kept], stored[where], torch.zeros(1, 8)]).detach()


class _ByAll:
    """Lets every tier look all ids up, as off the CPU and in traces."""

    def _small(self, num_ids: int) -> bool:
        return False

    def _for_all(self, ids: Tensor) -> bool:
        return True


class _RowsByAll(_ByAll, MultiSizeEmbedding):
    pass


class _BagsByAll(_ByAll, MultiSizeEmbeddingBag):
    pass


def _kinds(bags: bool) -> Iterator[Callable[..., Any]]:
    kind, by_all = MultiSizeEmbedding, _RowsByAll
    if bags:
        kind, by_all = MultiSizeEmbeddingBag, _BagsByAll  # type: ignore[assignment]
    yield lambda *given, **more: kind(*given, **more)
    yield lambda *given, **more: kind(*given, sparse=True, **more)
    yield by_all


def _gradients(layer: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.to_dense()
        for name, parameter in layer.named_parameters()
        if parameter.grad is not None
    }


@settings(max_examples=25, deadline=None)
@given(table=tables(), seed=st.integers(0, 99), permute=st.booleans(), many=st.booleans())
def test_every_way_of_a_look_up(
    table: TableAllocation, seed: int, permute: bool, many: bool
) -> None:
    torch.manual_seed(seed)
    ranks = torch.randperm(_ROWS) if permute else None
    ids = _MANY if many else _FEW
    known = ids if ranks is None else torch.cat([ranks, torch.tensor([_ROWS])])[ids]
    weights = torch.randn(*ids.shape, 8)
    layer = MultiSizeEmbedding(table, ranks=ranks)
    _train(layer)
    expected = None
    for kind in _kinds(bags=False):
        other = kind(table, ranks=ranks)
        other.load_state_dict(layer.state_dict())
        found = other(ids)
        torch.testing.assert_close(found, _stored(layer)[known], rtol=1e-5, atol=1e-5)
        if not table.is_projected:
            assert torch.equal(found, _stored(layer)[known])
        (found * weights).sum().backward()
        expected = expected or _gradients(other)
        torch.testing.assert_close(_gradients(other), expected, rtol=1e-4, atol=1e-4)
    by_id = _stored(layer)[:-1] if ranks is None else _stored(layer)[ranks]
    torch.testing.assert_close(layer.rows(), by_id, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.dense_weight(), _stored(layer)[:-1], rtol=1e-5, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    table=tables(),
    seed=st.integers(0, 99),
    mode=st.sampled_from(["sum", "mean"]),
    many=st.booleans(),
)
def test_every_way_of_a_bag(table: TableAllocation, seed: int, mode: str, many: bool) -> None:
    torch.manual_seed(seed)
    ids = _MANY if many else _FEW
    per_sample = torch.rand(ids.shape)
    layer = MultiSizeEmbeddingBag(table, mode=mode)  # type: ignore[arg-type]
    _train(layer)
    rows, sizes = _stored(layer), (ids < _ROWS).sum(1, keepdim=True).clamp(min=1)
    expected_gradients = None
    for kind in _kinds(bags=True):
        other = kind(table, mode=mode)
        other.load_state_dict(layer.state_dict())
        expected = rows[ids].sum(1) / (sizes if mode == "mean" else 1)
        found = other(ids)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        flat = other(ids.flatten(), torch.arange(0, ids.numel(), 2))
        torch.testing.assert_close(flat, expected, rtol=1e-5, atol=1e-5)
        if mode == "sum":
            weighted = other(ids, per_sample_weights=per_sample)
            own = (rows[ids] * per_sample.unsqueeze(-1)).sum(1)
            torch.testing.assert_close(weighted, own, rtol=1e-5, atol=1e-5)
        (found * torch.arange(found.numel()).view_as(found)).sum().backward()
        expected_gradients = expected_gradients or _gradients(other)
        torch.testing.assert_close(_gradients(other), expected_gradients, rtol=1e-3, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(table=tables(), seed=st.integers(0, 99))
def test_gradients_are_those_of_the_rounded_rows(table: TableAllocation, seed: int) -> None:
    torch.manual_seed(seed)
    layer = MultiSizeEmbedding(table)
    _train(layer)
    # The same layer in 32 bits, whose numbers are those that the rounded one has.
    plain = MultiSizeEmbedding(table)
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        for tier in plain.tier_modules():
            tier.weight.copy_(tier.table())
            tier.bits = 32
        if plain.projection is not None:
            plain.projection.copy_(layer.mapping())  # type: ignore[arg-type]
    for ids in (_FEW, _MANY):
        weights = torch.randn(*ids.shape, 8)
        for each in (layer, plain):
            each.zero_grad()
            (each(ids) * weights).sum().backward()
        for own, other in zip(layer.tier_modules(), plain.tier_modules()):
            torch.testing.assert_close(own.weight.grad, other.weight.grad)
        if layer.projection is not None and plain.projection is not None:
            torch.testing.assert_close(layer.projection.grad, plain.projection.grad)


@pytest.mark.parametrize("permute", [False, True])
@pytest.mark.parametrize("sizes", [TABLE, SHARED])
def test_output_layers(permute: bool, sizes: TableAllocation) -> None:
    ranks = torch.randperm(_ROWS) if permute else None
    layer = MultiSizeLinear(sizes, ranks=ranks)
    (table,) = sized_layers(layer)
    _train(table)
    vectors = torch.randn(4, 2, 8)
    rows = _stored(table)[:-1] if ranks is None else _stored(table)[ranks]
    logits = layer(vectors)
    torch.testing.assert_close(logits, functional.linear(vectors, rows, layer.bias))
    torch.testing.assert_close(layer.weight, rows)
    weights = torch.randn(4, 2, _ROWS)
    (logits * weights).sum().backward()
    expected = _gradients(layer)
    assert any(name.endswith("spread") for name in expected)
    layer.zero_grad()
    for where, weight, bias in layer.parts(4):
        parts = functional.linear(vectors[where], weight, bias)
        (parts * weights[where]).sum().backward()
    torch.testing.assert_close(_gradients(layer), expected, rtol=1e-4, atol=1e-4)


def test_rows_of_a_large_table_are_not_all_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rounded, sizes = tier_module.rounded, []

    def watched(rows: Tensor, *more: Any) -> Tensor:
        sizes.append(len(rows))
        return rounded(rows, *more)

    monkeypatch.setattr(tier_module, "rounded", watched)
    table = TableAllocation("f", 1000, 8, (Tier(500, 8, 4), Tier(500, 3, 2)))
    ids = torch.tensor([[0, 400, 700]])
    for sparse in (False, True):
        MultiSizeEmbeddingBag(table, sparse=sparse)(ids)
        MultiSizeEmbedding(table, sparse=sparse)(ids)
        _BagsByAll(table, sparse=sparse)(ids)
        _RowsByAll(table, sparse=sparse)(ids)
    assert 0 < max(sizes) <= 3


@pytest.mark.parametrize("bits", [16, 8, 4, 2])
@pytest.mark.parametrize("sparse", [False, True])
def test_training_lowers_the_loss(bits: int, sparse: bool) -> None:
    torch.manual_seed(0)
    layer = MultiSizeEmbedding(TableAllocation("f", 30, 4, (Tier(30, 4, bits),)), sparse=sparse)
    # Levels of a step that is not that of the first rows.
    target = (torch.randint(0, 2 ** min(bits, 4), (30, 4)) + 0.5) * 0.3
    target -= target.mean()
    optimizer = RowwiseAdagrad(layer.parameters(), lr=0.1)
    ids = torch.arange(30).repeat(2)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (layer(ids) - target[ids]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_a_layer_of_32_bits_is_as_it_was() -> None:
    layer = MultiSizeEmbedding(TableAllocation("f", 20, 8, (Tier(4, 8), Tier(6, 2))))
    assert list(layer.state_dict()) == ["projection", "tiers.0.weight", "tiers.1.weight"]
    assert sum(p.numel() for p in layer.parameters()) == layer.table.num_parameters
    (tier, _) = layer.tier_modules()
    assert tier.table() is tier.weight
    assert layer.mapping() is layer.projection
    assert (tier.spread, tier.stored_step()) == (None, None)
    halves = MultiSizeEmbedding(TableAllocation("f", 20, 8, (Tier(4, 8, 16), Tier(6, 2, 16))))
    assert halves.state_dict().keys() == layer.state_dict().keys()


def test_a_layer_shows_its_precisions() -> None:
    assert "2x8x16bit + 5x8x4bit + 9x3x2bit" in repr(MultiSizeEmbedding(TABLE))
    assert "Tier(5, 8, bits=4)" not in repr(MultiSizeEmbedding(TABLE).tiers[0])
    assert "5, 8, bits=4" in repr(MultiSizeEmbedding(TABLE).tiers[1])


@pytest.mark.parametrize("assign", [False, True])
def test_state(assign: bool) -> None:
    layer, other = MultiSizeEmbedding(TABLE), MultiSizeEmbedding(TABLE)
    _train(layer)
    state = copy.deepcopy(layer.state_dict())
    assert [name for name in state if name.endswith("spread")] == [
        "tiers.1._dense.spread",
        "tiers.2._dense.spread",
    ]
    with torch.device("meta"):
        empty = MultiSizeEmbedding(TABLE)
    for each in (other, copy.deepcopy(other), empty if assign else empty.to_empty(device="cpu")):
        each.load_state_dict(state, assign=assign)
        assert torch.equal(each(_FEW), layer(_FEW))
    average = AveragedModel(layer)
    average.update_parameters(layer)
    assert torch.equal(average.module(_FEW), layer(_FEW))


def test_rows_without_their_steps() -> None:
    layer, other = MultiSizeEmbedding(TABLE), MultiSizeEmbedding(TABLE)
    nn.init.normal_(layer.tier_modules()[1].weight, std=3.0)
    state = {name: n for name, n in layer.state_dict().items() if not name.endswith("spread")}
    with pytest.raises(RuntimeError, match=r"Missing key.*tiers\.1\._dense\.spread"):
        MultiSizeEmbedding(TABLE).load_state_dict(state)
    # Steps start from the rows then.
    other.load_state_dict(state, strict=False)
    layer.fit_steps()
    assert torch.equal(other(_FEW), layer(_FEW))
    plain = TableAllocation("f", _ROWS, 8, tuple(Tier(*tier[:2]) for tier in TABLE.tiers[1:]))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*tiers\.1\._dense\.spread"):
        MultiSizeEmbedding(plain).load_state_dict(layer.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    layer = MultiSizeEmbedding(TABLE)
    _train(layer)
    layer.to(dtype)
    for tier in layer.tier_modules()[1:]:
        step = tier.stored_step()
        assert step is not None
        codes = codes_of(tier.weight, step, tier.bits)
        assert torch.equal(tier.table(), rows_of(codes, step.to(dtype), tier.bits))
    for ids in (_FEW, _MANY):
        found = layer(ids)
        assert found.dtype == dtype
        found.sum().backward()
        assert all(p.grad is not None and p.grad.dtype == dtype for p in layer.parameters())
    # Steps are those of the rows that were drawn, also where nothing was drawn at first.
    with torch.device("meta"):
        empty = MultiSizeEmbedding(TABLE, init_std=2.0)
    assert empty(_FEW.to("meta")).shape == (3, 2, 8)
    empty.to_empty(device="cpu").reset_parameters()
    for tier in empty.tier_modules()[1:]:
        assert 1.0 < tier.spread.item() < 3.0  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("bags", [False, True])
def test_compiled_layers(bags: bool) -> None:
    kind = MultiSizeEmbeddingBag if bags else MultiSizeEmbedding
    layer = kind(SHARED)
    _train(layer)
    for training in (False, True):
        layer.train(training).zero_grad()
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        expected = layer(_MANY)
        torch.testing.assert_close(compiled(_MANY), expected, rtol=1e-5, atol=1e-5)
        if training:
            expected.square().sum().backward()
            gradients = _gradients(layer)
            layer.zero_grad()
            compiled(_MANY).square().sum().backward()
            torch.testing.assert_close(_gradients(layer), gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("kind", [MultiSizeEmbedding, MultiSizeEmbeddingBag])
@pytest.mark.parametrize("sizes", [TABLE, SHARED])
def test_exported_layers(kind: type[MultiSize], grad: bool, sizes: TableAllocation) -> None:
    layer = kind(sizes).eval()
    _train(layer)
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(layer, (_MANY,), dynamic_shapes=shapes).module()
    for ids in (_FEW, _MANY):
        torch.testing.assert_close(program(ids), layer(ids), rtol=1e-5, atol=1e-5)


class _Model(nn.Module):
    def __init__(self, *, trained: bool = True) -> None:
        super().__init__()
        self.row = nn.Embedding(_ROWS, 8, padding_idx=0, sparse=True)
        self.bag = nn.EmbeddingBag(_ROWS, 8, mode="mean")
        self.out = nn.Linear(8, _ROWS)
        for layer in (self.row, self.bag):
            nn.init.normal_(layer.weight, std=2.0)
            layer.weight.requires_grad_(trained)

    def forward(self, ids: Tensor) -> Tensor:
        output: Tensor = self.out(self.row(ids).sum(1) + self.bag(ids))
        return output


def _sizes(*bits: int) -> Allocation:
    return Allocation(
        TableAllocation(name, _ROWS, 8, (Tier(5, 8, bits[0]), Tier(15, 8, bits[1])))
        for name in ("row", "bag", "out")
    )


@pytest.mark.parametrize("trained", [False, True])
def test_models_of_others_keep_their_rows(trained: bool) -> None:
    torch.manual_seed(0)
    model = _Model(trained=trained)
    ids = torch.randint(1, _ROWS, (6, 2))
    optimizer = torch.optim.SGD(model.row.parameters(), lr=0.1)
    before = {name: layer.weight.detach().clone() for name, layer in model.named_children()}
    expected = model(ids).detach()
    apply_allocation(model, _sizes(8, 4))
    assert (model.row.num_embeddings, model.row.embedding_dim) == (_ROWS, 8)
    # As near as the bits allow, so the steps are those of these rows.
    for name, layer in model.named_children():
        assert isinstance(layer.weight, Tensor)
        error = (layer.weight.detach() - before[name])[1:].square().mean().sqrt()
        assert 0.01 < float(error / before[name].std()) < 0.15
    assert float((model(ids).detach() - expected).std() / expected.std()) < 0.15
    spreads = [p for name, p in model.row.named_parameters() if name.endswith("spread")]
    assert len(spreads) == 2
    for layer in sized_layers(model):
        for tier in layer.tier_modules():
            assert torch.equal(tier.spread.detach(), spread_of(tier.weight))  # type: ignore[union-attr]
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    assert {id(each) for each in spreads} <= held
    assert {p.requires_grad for p in spreads} == {trained}
    if trained:
        model(ids).square().sum().backward()
        assert all(p.grad is not None and p.grad.is_sparse for p in model.row.parameters())
        before_step = spreads[0].item()
        with pytest.warns(UserWarning, match="No optimiser has"):
            torch.optim.SparseAdam(list(model.row.parameters()), lr=0.1).step()
        assert spreads[0].item() != before_step
    model.row.reset_parameters()
    assert spreads[1].item() == pytest.approx(1.0, rel=0.3)


def test_supernets_hand_their_rows_over() -> None:
    torch.manual_seed(0)
    supernet = nn.Sequential(nn.Embedding(_ROWS, 8), nn.Linear(8, 1))
    nn.init.normal_(supernet[0].weight, std=2.0)
    make_searchable(supernet)
    sizes = Allocation([TableAllocation("0", _ROWS, 8, (Tier(20, 8, 4),))])
    full = nn.Sequential(nn.Embedding(_ROWS, 8), nn.Linear(8, 1))
    apply_allocation(full, sizes)
    warm_start(full, supernet)
    shrunk = apply_allocation(copy.deepcopy(supernet), sizes)
    layer = MultiSizeEmbedding(sizes["0"])
    supernet[0].fields[0].copy_to(layer)
    ids = torch.arange(_ROWS)
    rows = supernet[0](ids).detach()
    for found in (full[0](ids), shrunk[0](ids), layer(ids)):
        assert found.requires_grad
        assert torch.equal(found, layer(ids))
        assert 0.02 < float((found - rows).std() / rows.std()) < 0.15


def test_tables_of_a_frozen_supernet_stay_frozen() -> None:
    model = nn.Sequential(nn.Embedding(_ROWS, 8))
    model[0].weight.requires_grad_(False)
    make_searchable(model)
    apply_allocation(model, Allocation([TableAllocation("0", _ROWS, 8, (Tier(20, 8, 4),))]))
    assert len(list(model.parameters())) == 2
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_sparse_rows_have_a_dense_step() -> None:
    layer = MultiSizeEmbedding(TABLE, sparse=True)
    layer(_FEW).sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.is_sparse == name.endswith("weight")


def test_frozen_steps_stay() -> None:
    layer = MultiSizeEmbedding(TABLE)
    spreads = [tier.spread for tier in layer.tier_modules() if tier.spread is not None]
    for spread in spreads:
        spread.requires_grad_(False)
    for ids in (_FEW, _MANY):
        layer(ids).sum().backward()
    assert all(spread.grad is None for spread in spreads)
    assert all(tier.weight.grad is not None for tier in layer.tier_modules())


def test_the_supernet_of_a_space_with_precisions_gives_its_rows() -> None:
    spec = EmbeddingSpec("f", _ROWS, 8, precisions=(32, 4, 2))
    space = SearchSpace([spec])
    layer = SupernetEmbedding(space.specs[0], init_std=1.0)
    sized = MultiSizeEmbedding(space.full(bits=4)["f"])
    layer.copy_to(sized)
    assert {tier.bits for tier in sized.tier_modules()} == {4}
    difference = sized.dense_weight() - layer.weight[:-1]
    assert 0.0 < float(difference.std()) < 0.2
