"""Layers of torch, their supernet and the sizes chosen are the same function of the ids."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from pretend_device import DEVICE, PretendDevice
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from optuna_nis import Allocation, SearchSpace, TableAllocation, Tier
from optuna_nis.nn import (
    MultiSizeEmbedding,
    SwappedEmbedding,
    SwappedEmbeddingBag,
    apply_allocation,
    make_searchable,
    set_choices,
    supernet_layers,
)
from optuna_nis.nn.swapped import swapped_layers


class Model(nn.Module):
    """Embeddings in every place where a model may have them, some of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(120, 8, padding_idx=0)
        self.shared = nn.ModuleDict({"city": nn.Embedding(60, 8)})
        self.tower = nn.Sequential(nn.ModuleList([nn.EmbeddingBag(90, 8, mode="mean")]))
        self.layers = [self.user]  # Whoever holds on to a layer sees the swap.
        self.head = nn.Linear(32, 1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        rows = [
            self.layers[0](batch["user"]),
            self.shared["city"](batch["from"]),
            self.shared["city"](batch["to"]),
            self.tower[0][0](batch["genres"]),
        ]
        return self.head(torch.cat(rows, 1)).squeeze(1)


def _batch(length: int = 64) -> dict[str, Tensor]:
    return {
        "user": torch.randint(0, 120, (length,)),
        "from": torch.randint(0, 60, (length,)),
        "to": torch.randint(0, 60, (length,)),
        "genres": torch.randint(0, 90, (length, 5)),
    }


def _counts(size: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).zipf(1.3, size) % 1000)


COUNTS = {"user": _counts(120), "shared.city": _counts(60), "tower.0.0": _counts(90)}


@pytest.mark.parametrize("counts", [None, COUNTS])
def test_predictions_stay_and_choices_can_be_made_and_kept(counts: Any) -> None:
    torch.manual_seed(0)
    model, batch = Model(), _batch()
    fresh = copy.deepcopy(model)
    before = model(batch)
    space = make_searchable(model, counts=counts, budget="25%")
    assert {s.name: (s.num_embeddings, s.embedding_dim) for s in space.specs} == {
        "user": (120, 8),
        "shared.city": (60, 8),
        "tower.0.0": (90, 8),
    }
    assert space.budget == 540
    torch.testing.assert_close(model(batch), before)
    # All sizes in full.
    apply_allocation(fresh, space.full(), counts=counts)
    torch.testing.assert_close(fresh(batch), before)
    # A choice, warm-started.
    choice = space.sample(np.random.default_rng(0), space.budget)
    assert choice.num_parameters <= 540
    set_choices(model, space, [choice])
    chosen = model(batch)
    assert not torch.allclose(chosen, before)
    assert apply_allocation(model, choice) is model
    torch.testing.assert_close(model(batch), chosen)
    embedding = sum(p.numel() for layer in swapped_layers(model) for p in layer.parameters())
    assert embedding == choice.num_parameters
    assert not supernet_layers(model)


def test_layers_stay_what_they_were() -> None:
    model = Model()
    weights = {id(p) for p in model.parameters()}
    user = model.user
    handle = user.register_forward_hook(lambda *_: None)
    make_searchable(model)
    assert model.user is user
    assert isinstance(user, nn.Embedding)
    assert isinstance(model.tower[0][0], nn.EmbeddingBag)
    assert (user.num_embeddings, user.embedding_dim, user.padding_idx) == (120, 8, 0)
    assert handle.id in user._forward_hooks
    # Optimisers that were made before go on training the tables.
    assert weights <= {id(p) for p in model.parameters()}


def test_an_optimiser_made_before_the_swap_trains_the_supernet() -> None:
    torch.manual_seed(0)
    model, batch = Model(), _batch(256)
    target = torch.randn(256)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    make_searchable(model, counts=COUNTS)
    losses = []
    for _ in range(100):
        loss = (model(batch) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_only_some_layers() -> None:
    assert len(make_searchable(Model(), include=["user", "shared.*"]).specs) == 2
    model = Model()
    space = make_searchable(model, exclude=["tower.*"], precisions=(32, 4))
    assert space.precisions == (32, 4)
    assert [spec.name for spec in space.specs] == ["user", "shared.city"]
    assert type(model.tower[0][0]) is nn.EmbeddingBag
    # What is left can be swapped later.
    assert [s.name for s in make_searchable(model).specs] == ["tower.0.0"]


def test_the_model_itself_may_be_the_layer() -> None:
    layer = nn.Embedding(60, 4)
    rows = layer(torch.arange(60))
    space = make_searchable(layer)
    assert space.specs[0].name == "embedding"
    torch.testing.assert_close(layer(torch.arange(60)), rows)
    apply_allocation(layer, space.full())
    torch.testing.assert_close(layer(torch.arange(60)), rows)


FIELDS = {"a": 30, "b": 55, "c": 5}


@pytest.mark.parametrize("shape", [(7, 3), (7, 2, 3), (7, 4), (11,), ()])
@pytest.mark.parametrize("padding", [None, 30, 89])
def test_a_fused_table(shape: tuple[int, ...], padding: int | None) -> None:
    torch.manual_seed(0)
    plain = nn.Embedding(90, 8, padding_idx=padding)
    if padding == 89:
        nn.init.normal_(plain.weight)  # A row of padding that is not zero, as some models have.
    if shape and shape[-1] == 3:
        sizes, starts = torch.tensor([30, 55, 5]), torch.tensor([0, 30, 85])
        ids = starts + (torch.rand(shape) * sizes).long()
    else:
        ids = torch.randint(0, 90, shape)
    model = nn.ModuleDict({"table": plain})
    before, table = plain(ids), plain.weight.detach().clone()
    counts = _counts(90)
    space = make_searchable(model, fields={"table": FIELDS}, counts={"table": counts})
    assert [s.name for s in space.specs] == ["table.a", "table.b", "table.c"]
    torch.testing.assert_close(plain(ids), before)
    torch.testing.assert_close(plain.weight, table)
    choice = space.sample(np.random.default_rng(1), 200)
    set_choices(model, space, [choice])
    chosen = plain(ids)
    assert chosen.shape == before.shape
    for start, size, name in ((0, 30, "table.a"), (30, 55, "table.b"), (85, 5, "table.c")):
        order = counts[start : start + size].clone()
        if padding is not None and start <= padding < start + size:
            order[padding - start] = -1
        cut = start + order.argsort(descending=True, stable=True)[choice[name].kept :]
        rows = plain(cut[cut != padding])
        assert torch.equal(rows, torch.zeros_like(rows))
    apply_allocation(model, choice)
    torch.testing.assert_close(plain(ids), chosen)


def test_a_fused_table_in_its_columns_is_shared_among_choices() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(90, 8)})
    space = make_searchable(model, fields={"table": [30, 55, 5]})
    rng = np.random.default_rng(0)
    choices = [space.sample(rng, cost) for cost in (600, 100)]
    ids = torch.tensor([[0, 31, 85], [29, 84, 89]])
    alone = []
    for choice in choices:
        set_choices(model, space, [choice])
        alone.append(model["table"](ids))
    set_choices(model, space, choices)
    torch.testing.assert_close(model["table"](torch.cat([ids, ids])), torch.cat(alone))
    with pytest.raises(RuntimeError, match="is not one table while a batch is shared"):
        model["table"].weight  # noqa: B018


@settings(max_examples=20)
@given(
    mode=st.sampled_from(["sum", "mean", "max"]),
    fused=st.booleans(),
    padding=st.sampled_from([None, 3]),
    flat=st.booleans(),
    last=st.booleans(),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_bags(
    mode: str, fused: bool, padding: int | None, flat: bool, last: bool, weighted: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"padding_idx": padding, "include_last_offset": flat and last}
    layer = nn.EmbeddingBag(90, 6, mode=mode, **options)
    model = nn.ModuleDict({"bag": layer})
    ids = torch.randint(0, 90, (20,) if flat else (5, 4))
    ids[..., :2] = 3
    arguments: dict[str, Any] = {}
    if flat:
        offsets = [0, 2, 2, 9, 20] if last else [0, 2, 2, 9]
        arguments["offsets"] = torch.tensor(offsets)
    if weighted and mode == "sum":
        arguments["per_sample_weights"] = torch.rand(ids.shape)
    before = layer(ids, **arguments)
    fresh = copy.deepcopy(model)
    counts = {"bag": _counts(90, seed)}
    fields = {"bag": [40, 50]} if fused else None
    space = make_searchable(model, counts=counts, fields=fields)
    torch.testing.assert_close(layer(ids, **arguments), before)
    apply_allocation(fresh, space.full(), counts=counts)
    torch.testing.assert_close(fresh["bag"](ids, **arguments), before)
    choice = space.sample(np.random.default_rng(seed), 150)
    set_choices(model, space, [choice])
    chosen = layer(ids, **arguments)
    # What torch makes of the table that is left.
    plain = nn.EmbeddingBag(90, 6, mode=mode, _weight=layer.weight.detach(), **options)
    torch.testing.assert_close(chosen, plain(ids, **arguments))
    apply_allocation(model, choice)
    torch.testing.assert_close(layer(ids, **arguments), chosen)
    if choice.num_parameters:
        layer(ids, **arguments).sum().backward()


_BUFFER = torch.arange(20).where(torch.arange(20) < 15, 999)
_ENDS = torch.tensor([0, 3, 3, 15])


def _with_rest(mode: str, fused: bool, padding: int | None, sized: bool) -> tuple[Any, Any]:
    """A layer for bags that end before the ids do, and torch's for ids without the rest."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"mode": mode, "padding_idx": padding, "include_last_offset": True}
    plain = nn.EmbeddingBag(50, 4, **options)
    model = nn.ModuleDict({"bag": copy.deepcopy(plain)})
    space = make_searchable(model, fields={"bag": [20, 30]} if fused else None)
    if sized:
        apply_allocation(model, space.full())
    return model["bag"], plain


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("mode", ["sum", "mean", "max", "weighted"])
def test_a_bag_ends_at_the_last_offset(
    mode: str, padding: int | None, fused: bool, sized: bool
) -> None:
    weights = torch.rand(20) if mode == "weighted" else None
    layer, plain = _with_rest("sum" if mode == "weighted" else mode, fused, padding, sized)
    expected = plain(_BUFFER[:15], _ENDS, None if weights is None else weights[:15])
    torch.testing.assert_close(layer(_BUFFER, _ENDS, weights), expected)
    assert layer(_BUFFER, _ENDS[:1], weights).shape == (0, 4)
    with PretendDevice() as device:
        layer.to(DEVICE)
        if weights is not None:
            weights[15:] = torch.nan
            weights = weights.to(DEVICE)
        ids, ends = _BUFFER.to(DEVICE), _ENDS.to(DEVICE)
        layer(ids, ends, weights)
        device.reset()
        found = layer(ids, ends, weights)
        assert fused or not device.waits
        torch.testing.assert_close(found.cpu(), expected)


def test_last_offsets_that_torch_refuses_are_refused() -> None:
    layer, plain = _with_rest("sum", False, None, False)
    # Where torch ends bags there too.
    torch.testing.assert_close(layer(_BUFFER, _ENDS), plain(_BUFFER, _ENDS))
    for offsets, message in (
        ([0, 21], "at most the number of ids, 20, got"),
        ([0, 7, 3], "not fall"),
        ([], "must hold where the last bag ends, got none"),
    ):
        with pytest.raises(ValueError, match=f"`offsets` of 'bag' .*{message}"):
            layer(_BUFFER, torch.tensor(offsets, dtype=torch.int64))


def test_bags_in_the_columns_of_a_fused_table() -> None:
    layer = nn.EmbeddingBag(90, 6, mode="mean", padding_idx=31)
    ids = torch.tensor([[0, 31, 85], [29, 84, 89]])
    before = layer(ids)
    space = make_searchable(layer, fields={"embedding": [30, 55, 5]})
    torch.testing.assert_close(layer(ids), before)
    set_choices(layer, space, [space.full(), space.full()])
    torch.testing.assert_close(layer(torch.cat([ids, ids])), torch.cat([before, before]))
    with pytest.raises(ValueError, match="cannot be shared among 2 choices"):
        layer(ids.view(-1), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="`per_sample_weights` needs mode='sum', got 'mean'"):
        layer(ids, per_sample_weights=torch.ones(2, 3))
    other = nn.EmbeddingBag(90, 6, mode="sum")
    make_searchable(other, fields={"embedding": [30, 60]})
    for shape in ((3, 2), (1,), (2, 1), (6,)):
        with pytest.raises(ValueError, match=r"must have the shape of the ids, \(2, 3\), got"):
            other(ids, per_sample_weights=torch.ones(shape))
    with pytest.raises(ValueError, match="`input` must hold ids between 0 and 89, got 90"):
        layer(torch.tensor([[90]]))


def test_padding_is_never_trained() -> None:
    layer = nn.Embedding(60, 4, padding_idx=5)
    nn.init.ones_(layer.weight)
    space = make_searchable(layer)
    ids = torch.tensor([5, 5, 7])
    layer(ids).sum().backward()
    (inner,) = supernet_layers(layer).values()
    assert inner.weight.grad is not None
    assert inner.weight.grad.abs().sum(1).nonzero().flatten().tolist() == [7]
    assert torch.equal(layer(torch.tensor([5])), torch.ones(1, 4))
    set_choices(layer, space, [Allocation([TableAllocation("embedding", 60, 4, ())])])
    assert layer(ids).sum(1).tolist() == [4.0, 4.0, 0.0]


def test_how_often_padding_occurs_does_not_matter() -> None:
    counts = _counts(120).sort(descending=True).values
    counts[50] = 10**6
    space = make_searchable(nn.Embedding(120, 4, padding_idx=50), counts={"embedding": counts})
    counts[50] = 0
    assert space == make_searchable(nn.Embedding(120, 4), counts={"embedding": counts})


@pytest.mark.parametrize("optimiser", [torch.optim.SparseAdam, torch.optim.SGD])
@pytest.mark.parametrize("apply", [False, True])
def test_sparse_gradients_stay_sparse(optimiser: type[torch.optim.Optimizer], apply: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(60, 8, sparse=True)
    space = make_searchable(layer)
    choice = space.sample(np.random.default_rng(0), 200)
    set_choices(layer, space, [choice])
    if apply:
        apply_allocation(layer, choice)
    optimiser_ = optimiser(list(layer.parameters()), lr=0.01)  # type: ignore[call-arg]
    ids = torch.arange(20)
    before = layer(ids).detach()
    for _ in range(2):  # Accumulated.
        (layer(ids) - 1).square().sum().backward()
    assert all(p.grad is None or p.grad.is_sparse for p in layer.parameters())
    optimiser_.step()
    assert (layer(ids) - 1).square().sum() < (before - 1).square().sum()


def test_frozen_tables_stay_frozen() -> None:
    layer = nn.Embedding.from_pretrained(torch.randn(60, 8), freeze=True)
    space = make_searchable(layer)
    assert not supernet_layers(layer)["embedding"].weight.requires_grad
    apply_allocation(layer, space.full())
    assert not [p for p in layer.parameters() if p.requires_grad]


def test_a_frozen_copy_of_a_table_cannot_follow_it() -> None:
    model = nn.ModuleDict({"online": nn.Embedding(60, 8), "other": nn.Embedding(60, 8)})
    model["target"] = copy.deepcopy(model["online"]).requires_grad_(False)
    with pytest.warns(UserWarning, match="'target' is frozen and begins as a copy of that of 'on"):
        make_searchable(model)


def test_double_precision() -> None:
    layer = nn.Embedding(60, 8).double()
    before = layer(torch.arange(60))
    space = make_searchable(layer)
    assert torch.equal(layer(torch.arange(60)), before)
    apply_allocation(layer, space.full())
    assert torch.equal(layer(torch.arange(60)), before)


def test_embeddings_that_share_a_weight_are_one_feature() -> None:
    model = nn.ModuleDict({"a": nn.Embedding(60, 8), "b": nn.Embedding(60, 8)})
    model["b"].weight = model["a"].weight
    before = model["b"](torch.arange(60))
    space = make_searchable(model)
    assert [spec.name for spec in space.specs] == ["a"]
    torch.testing.assert_close(model["b"](torch.arange(60)), before)
    choice = space.sample(np.random.default_rng(0), 100)
    apply_allocation(model, choice)
    assert torch.equal(model["a"](torch.arange(60)), model["b"](torch.arange(60)))
    assert sum(p.numel() for p in model.parameters()) == choice.num_parameters


def test_what_is_trained_from_scratch() -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(300, 8)
    nn.init.normal_(layer.weight, std=0.3)
    rows = layer.weight.detach().clone()
    counts = _counts(300)
    table = TableAllocation("embedding", 300, 8, (Tier(50, 8), Tier(100, 2)))
    apply_allocation(layer, Allocation([table]), counts={"embedding": counts})
    order = counts.argsort(descending=True, stable=True)
    torch.testing.assert_close(layer(order[:50]), rows[order[:50]])
    assert layer(order[50:150])[:, :2].std().item() == pytest.approx(0.3, rel=0.2)
    assert torch.equal(layer(order[150:]), torch.zeros(150, 8))


def test_state_dict_and_copies() -> None:
    torch.manual_seed(0)
    model, batch = Model(), _batch()
    space = make_searchable(model, counts=COUNTS)
    choice = space.sample(np.random.default_rng(0), 500)
    set_choices(model, space, [choice])
    expected = model(batch)
    torch.testing.assert_close(copy.deepcopy(model)(batch), expected)
    again = Model()
    make_searchable(again, counts=COUNTS)
    again.load_state_dict(model.state_dict())
    set_choices(again, space, [choice])
    torch.testing.assert_close(again(batch), expected)
    apply_allocation(model, choice)
    for counts in (COUNTS, None):
        final = apply_allocation(Model(), choice, counts=counts)
        final.load_state_dict(model.state_dict())
        torch.testing.assert_close(final(batch), expected)


class Scaled(nn.Embedding):
    pass


def _tied() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Embedding(60, 8), "out": nn.Bilinear(8, 60, 1)})
    model["out"].weight = model["a"].weight
    return model


def _tied_with_other_settings() -> nn.Module:
    model = nn.ModuleDict({"a": nn.Embedding(60, 8), "b": nn.Embedding(60, 8, padding_idx=0)})
    model["b"].weight = model["a"].weight
    return model


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Embedding(9, 4, max_norm=1.0), {}, "'embedding' cannot be swapped: max_norm=1.0"),
        (nn.EmbeddingBag(9, 4, max_norm=1.0), {}, "'embedding' cannot be swapped: max_norm=1.0"),
        (nn.Embedding(9, 4, scale_grad_by_freq=True), {}, "scale_grad_by_freq=True is not"),
        (Scaled(9, 4), {}, "it is a Scaled, a subclass"),
        (_tied(), {}, r"weight of 'a' is tied: 'out.weight' is one of \['a.weight', 'out.weight'"),
        (_tied_with_other_settings(), {}, "weight of 'a' is tied: 'b.weight'"),
        (nn.Linear(2, 2), {}, "`model` has no embedding layer to swap: Linear"),
        (Model(), {"include": ["item"]}, "`include` has 'item', which fits none"),
        (Model(), {"exclude": ["item"]}, "`exclude` has 'item', which fits none"),
        (Model(), {"exclude": "user"}, "`exclude` must be a list of patterns, got 'user'"),
        (Model(), {"counts": {"item": [1]}}, "`counts` names 'item', which is none of"),
        (Model(), {"fields": {"item": [1]}}, "`fields` names 'item', which is none of"),
        (Model(), {"fields": {"user": [1, 2]}}, "`fields` of 'user' must sum to 120, got"),
        (Model(), {"counts": {"user": [1]}}, "`counts` of 'user' must be 120 integers, got shape"),
        (Model(), {"counts": {"user": [-1] * 120}}, "`counts` of 'user' must not be negative"),
        (Model(), {"budget": 1}, "`budget` must be at least"),
        (Model(), {"precisions": (32, 6)}, r"`precisions` of 'user' must hold .*got \[32, 6\]"),
    ],
)
def test_what_cannot_be_swapped(model: nn.Module, options: Any, message: str) -> None:
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        make_searchable(model, **options)
    assert [type(module) for module in model.modules()] == before


def test_what_cannot_be_applied() -> None:
    other = Allocation([TableAllocation("item", 60, 8, ())])
    with pytest.raises(ValueError, match=r"`allocation` has features \['item'\], which are not"):
        apply_allocation(Model(), other)
    wrong = Allocation([TableAllocation("user", 60, 8, ())])
    with pytest.raises(ValueError, match="`allocation` must be of the 120x8 table 'user', got"):
        apply_allocation(Model(), wrong)
    model = Model()
    make_searchable(model, include=["user"])
    with pytest.raises(ValueError, match=r"must have the features of `model`, \['user'\]"):
        apply_allocation(model, other)
    with pytest.raises(ValueError, match="`allocation` of 'user' must be of"):
        apply_allocation(model, wrong)
    assert isinstance(model.user, SwappedEmbedding)


def test_inner_layers_are_those_that_others_know() -> None:
    model = Model()
    space = make_searchable(model)
    assert isinstance(space, SearchSpace)
    apply_allocation(model, space.full())
    assert isinstance(model.tower[0][0], SwappedEmbeddingBag)
    assert len([m for m in model.modules() if isinstance(m, MultiSizeEmbedding)]) == 2


def test_a_fused_table_that_is_not_in_columns_is_shared_too() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(90, 8, padding_idx=31)})
    space = make_searchable(model, fields={"table": [30, 55, 5]})
    rng = np.random.default_rng(0)
    choices = [space.sample(rng, cost) for cost in (600, 100)]
    ids = torch.randint(0, 90, (6, 4))
    alone = []
    for choice in choices:
        set_choices(model, space, [choice])
        alone.append(model["table"](ids))
    set_choices(model, space, choices)
    torch.testing.assert_close(model["table"](torch.cat([ids, ids])), torch.cat(alone))


class Adapted(nn.Module):
    """An embedding that has another one in it, as adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(100, 8)
        self.user.delta = nn.Embedding(100, 8)
        self.item = nn.Embedding(60, 8)


def test_a_layer_in_another_is_a_feature_of_its_own() -> None:
    space = make_searchable(Adapted(), exclude=["user"])
    assert [spec.name for spec in space.specs] == ["user.delta", "item"]
    sizes = Allocation(
        [TableAllocation("user.delta", 100, 8, (Tier(10, 2),)), space.full()["item"]]
    )
    model = apply_allocation(Adapted(), sizes)
    assert type(model.user) is nn.Embedding
    assert isinstance(model.user.delta, SwappedEmbedding)
    fields = make_searchable(Adapted(), fields={"user": {"old": 30, "new": 70}})
    assert [spec.name for spec in fields.specs][:2] == ["user.old", "user.new"]
    model = apply_allocation(Adapted(), fields.full())
    assert len(model.user.fields) == 2
    assert len(model.user.delta.fields) == 1


class Tied(nn.Module):
    """Two embeddings and an output layer with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.now = nn.Embedding(6, 4)
        self.before = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.before.weight = self.head.weight = self.now.weight


def test_counts_of_layers_with_one_weight_are_added() -> None:
    counts = {
        "now": torch.tensor([5, 0, 0, 0, 0, 0]),
        "before": torch.tensor([0, 0, 3, 0, 3, 0]),
        "head": torch.tensor([0, 0, 0, 0, 4, 9]),
    }
    searched = Tied()
    (spec,) = make_searchable(searched, counts=counts).specs
    (layer,) = supernet_layers(searched).values()
    assert layer.ranks is not None
    assert layer.ranks.argsort().tolist() == [5, 4, 0, 2, 1, 3]
    assert spec.mean_counts is not None
    assert sum(r * n for r, n in zip(spec.row_blocks, spec.mean_counts)) == pytest.approx(24)
    sizes = Allocation([TableAllocation("now", 6, 4, (Tier(2, 4),))])
    model = apply_allocation(Tied(), sizes, counts=counts)
    kept = (model.before(torch.arange(6)) != 0).any(1)
    assert kept.tolist() == [False, False, False, False, True, True]


@pytest.mark.filterwarnings("error:`counts` has none for")
def test_counts_of_a_later_layer_are_those_of_its_table() -> None:
    make_searchable(Tied(), counts={"before": torch.arange(6)})


def test_a_layer_cannot_be_left_alone_by_half() -> None:
    model = Tied()
    with pytest.raises(ValueError, match=r"`exclude` leaves 'before' alone, .* of 'now': exclude"):
        make_searchable(model, exclude=["before"])
    assert type(model.now) is nn.Embedding


@pytest.mark.parametrize("computed", ["weight_norm", "prune"])
def test_a_weight_that_is_computed_is_refused(computed: str) -> None:
    model = nn.ModuleDict({"e": nn.Embedding(20, 4)})
    if computed == "prune":
        prune.l1_unstructured(model["e"], "weight", 0.5)
    else:
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(model["e"])
    with pytest.raises(ValueError, match="'e' cannot be swapped: its weight is computed"):
        make_searchable(model)


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize("layer", [nn.Embedding(20, 4), nn.EmbeddingBag(20, 4, mode="sum")])
def test_ids_that_torch_refuses_are_refused(layer: nn.Module, sized: bool) -> None:
    model = nn.ModuleDict({"e": copy.deepcopy(layer)})
    space = make_searchable(model)
    if sized:
        apply_allocation(model, space.full())
    model["e"](torch.tensor([[0, 19]]))
    with pytest.raises(ValueError, match="between 0 and 19, got 20"):
        model["e"](torch.tensor([[0, 20]]))
    if isinstance(layer, nn.EmbeddingBag):
        with pytest.raises(ValueError, match="or flat with `offsets`, got shape"):
            model["e"](torch.tensor([0, 19]))


@pytest.mark.parametrize("sized", [False, True])
def test_the_gradient_of_a_maximum_at_zero_is_whole(sized: bool) -> None:
    plain = nn.EmbeddingBag(20, 4, mode="max")
    nn.init.zeros_(plain.weight)
    model = nn.ModuleDict({"e": copy.deepcopy(plain)})
    space = make_searchable(model)
    if sized:
        apply_allocation(model, space.full())
    ids, offsets = torch.tensor([3, 7, 7, 1]), torch.tensor([0, 1, 3])
    for layer in (plain, model["e"]):
        layer(ids, offsets).sum().backward()
    grad = model["e"].fields[0].tiers[0].weight.grad if sized else model["e"].fields[0].weight.grad
    torch.testing.assert_close(grad[:20], plain.weight.grad)


def test_choices_that_do_not_fit_are_refused() -> None:
    model = Adapted()
    first = make_searchable(model, include=["user"])
    set_choices(model, first, [first.full()])
    with pytest.raises(ValueError, match="`allocations` must hold a choice"):
        set_choices(model, first, [])
    with pytest.raises(ValueError, match="`module` must have supernet layers, Linear has none"):
        set_choices(nn.Linear(2, 2), first, [first.full()])
    second = make_searchable(model, include=["item"])
    with pytest.raises(ValueError, match=r"it lacks \['user'\]"):
        set_choices(model, second, [second.full()])


def test_jagged_ids_have_jagged_rows() -> None:
    parts = [torch.tensor([1, 2, 3]), torch.tensor([4, 49])]
    ids = torch.nested.nested_tensor(parts, layout=torch.jagged)
    model = nn.Sequential(nn.Embedding(50, 8))
    space = make_searchable(model, budget="50%")
    rows = model(ids)
    assert [len(each) for each in rows.unbind()] == [3, 2]
    assert torch.equal(rows.values(), model(torch.cat(parts)))
    rows.values().sum().backward()
    set_choices(model, space, [space.full(), space.full()])
    with pytest.raises(ValueError, match="Jagged ids of '0' cannot be shared among 2 choices"):
        model(ids)
    with pytest.raises(TypeError, match="'0' must be an ordinary tensor or a jagged one"):
        model(torch.nested.nested_tensor(parts, layout=torch.strided))
