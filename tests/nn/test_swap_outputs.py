"""Linear layers over items are tables too: on request, or if they have the weight of one."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis import Allocation, SearchSpace, TableAllocation, Tier
from optuna_nis.nn import (
    SwappedEmbedding,
    SwappedLinear,
    apply_allocation,
    make_searchable,
    output_features,
    set_choices,
    supernet_layers,
    swapped_layers,
)

# Some tables are left without counts on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:`counts` has none")

ITEMS, WIDTH = 120, 8


class TwoTables(nn.Module):
    """Users in, items out, each a table of its own."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.user = nn.Embedding(60, WIDTH)
        self.layers = nn.ModuleDict({"head": nn.Linear(WIDTH, ITEMS, bias=bias)})

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.layers["head"](torch.tanh(self.user(ids)))
        return logits


class Sequential(nn.Module):
    """Items in, items out, of one weight, as in SASRec."""

    def __init__(
        self,
        bias: bool = False,
        padding_idx: int | None = 0,
        padding: float = 0.0,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.item = nn.Embedding(ITEMS, WIDTH, padding_idx, sparse=sparse)
        if padding_idx is not None:
            nn.init.constant_(self.item.weight[padding_idx], padding)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, ITEMS, bias=bias)
        self.head.weight = self.item.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.mix(self.item(ids)))
        return logits


def _counts(size: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).zipf(1.3, size) % 1000)


def _ids() -> Tensor:
    return torch.randint(0, 60, (12, 3))


def _goes_through(
    model: Any, counts: Any, **options: Any
) -> tuple[SearchSpace, Allocation, Tensor]:
    """Swap, choose and shrink: the same logits before and after each."""
    torch.manual_seed(0)
    ids = _ids()
    fresh, before = copy.deepcopy(model), model(ids).detach()
    space = make_searchable(model, counts=counts, budget="25%", **options)
    torch.testing.assert_close(model(ids), before)
    apply_allocation(fresh, space.full(), counts=counts)
    torch.testing.assert_close(fresh(ids), before)
    rng = np.random.default_rng(0)
    choices = [space.sample(rng, space.budget) for _ in range(3)]
    alone = []
    for choice in choices:
        set_choices(model, space, [choice])
        alone.append(model(ids[:4]))
        assert not torch.allclose(alone[-1], before[:4])
    set_choices(model, space, choices)
    torch.testing.assert_close(model(torch.cat([ids[:4]] * 3)), torch.cat(alone))
    functional.cross_entropy(model(ids).transpose(1, 2), ids).backward()
    set_choices(model, space, choices[:1])
    chosen = model(ids)
    apply_allocation(model, choices[0])
    torch.testing.assert_close(model(ids), chosen)
    assert not supernet_layers(model)
    assert {type(layer).__name__ for layer in swapped_layers(model)} == {
        "SwappedEmbedding",
        "SwappedLinear",
    }
    heads = [layer for layer in swapped_layers(model) if isinstance(layer, SwappedLinear)]
    biases = sum(layer.bias.numel() for layer in heads if layer.bias is not None)
    held = sum(p.numel() for layer in swapped_layers(model) for p in layer.parameters())
    assert held - biases == choices[0].num_parameters
    functional.cross_entropy(model(ids).transpose(1, 2), ids).backward()
    return space, choices[0], chosen


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_head_is_a_table_on_request(counted: bool, bias: bool) -> None:
    counts = {"user": _counts(60), "layers.head": _counts(ITEMS)} if counted else None
    model = TwoTables(bias)
    head, kept = model.layers["head"], model.layers["head"].bias
    space, _, _ = _goes_through(model, counts, outputs=["layers.*"])
    assert [(s.name, s.num_embeddings, s.embedding_dim) for s in space.specs] == [
        ("user", 60, WIDTH),
        ("layers.head", ITEMS, WIDTH),
    ]
    assert model.layers["head"] is head
    assert isinstance(head, nn.Linear)
    assert head.bias is kept
    assert output_features(model) == {"layers.head"}
    assert [s.name for s in make_searchable(TwoTables()).specs] == ["user"]


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": True, "padding": 1.0},
        {"padding_idx": None},
        {"padding_idx": 7, "padding": 1.0},
        {"sparse": True},
    ],
)
def test_a_tied_head_is_the_same_feature(counted: bool, options: dict[str, Any]) -> None:
    model = Sequential(**options)
    space, _, _ = _goes_through(model, {"item": _counts(ITEMS)} if counted else None)
    assert [spec.name for spec in space.specs] == ["item"]
    assert model.head.fields is model.item.fields
    torch.testing.assert_close(model.head.weight, model.item.weight, rtol=0, atol=0)
    # Formats that take no shared tensors take the state, as long as the model is swapped.
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values() if tensor.numel()]
    assert len(set(pointers)) == len(pointers)
    assert ", weight of 'item'" in repr(model.head)
    assert output_features(model) == set()


def test_compiled() -> None:
    model = Sequential(bias=True, padding=1.0)
    space = make_searchable(model, counts={"item": _counts(ITEMS)})
    rng = np.random.default_rng(0)
    set_choices(model, space, [space.sample(rng, cost) for cost in (900, 200)])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids = _ids()
    torch.testing.assert_close(compiled(ids), model(ids))


def test_fields_of_a_tied_table() -> None:
    space, _, _ = _goes_through(Sequential(bias=True), None, fields={"item": [50, 70]})
    assert [spec.name for spec in space.specs] == ["item.0", "item.1"]


class ByWeight(nn.Module):
    """Multiplies by the weight of its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(ITEMS, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return self.item(ids) @ self.item.weight.T


def test_what_multiplies_by_the_weight_of_an_embedding_is_one_feature() -> None:
    model, ids = ByWeight(), _ids()
    before = model(ids).detach()
    space = make_searchable(model)
    torch.testing.assert_close(model(ids), before)
    choice = space.sample(np.random.default_rng(0), 300)
    set_choices(model, space, [choice])
    chosen = model(ids)
    apply_allocation(model, choice)
    torch.testing.assert_close(model(ids), chosen)


def test_a_bag_and_a_head_of_one_weight() -> None:
    model = nn.ModuleDict(
        {"bag": nn.EmbeddingBag(ITEMS, WIDTH, mode="sum", padding_idx=0)}
        | {"head": nn.Linear(WIDTH, ITEMS)}
    )
    nn.init.ones_(model["bag"].weight[0])
    model["head"].weight = model["bag"].weight
    ids = _ids()
    before = model["head"](model["bag"](ids)).detach()
    space = make_searchable(model, counts={"bag": _counts(ITEMS)})
    torch.testing.assert_close(model["head"](model["bag"](ids)), before)
    apply_allocation(model, space.full())
    torch.testing.assert_close(model["head"](model["bag"](ids)), before)


@pytest.mark.parametrize("tied", [False, True])
def test_states_copies_and_pickles(tied: bool) -> None:
    ids = _ids()

    def build() -> tuple[Any, SearchSpace]:
        model = Sequential(bias=True) if tied else TwoTables()
        counts = {"item": _counts(ITEMS)} if tied else {"layers.head": _counts(ITEMS)}
        outputs = [] if tied else ["layers.head"]
        return model, make_searchable(model, counts=counts, outputs=outputs)

    for shrink in (False, True):
        (model, space), (other, _) = build(), build()
        choice = space.sample(np.random.default_rng(0), space.full_parameters // 3)
        for each in (model, other):
            set_choices(each, space, [choice])
            if shrink:
                apply_allocation(each, choice)
        assert not torch.allclose(model(ids), other(ids))
        other.load_state_dict(model.state_dict())
        for again in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(again(ids), model(ids), rtol=0, atol=0)
            # What was one weight still is.
            assert len(list(again.parameters())) == len(list(model.parameters()))


def test_a_tied_table_is_trained_by_both_of_its_ends() -> None:
    torch.manual_seed(0)
    model = Sequential(bias=True)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    space = make_searchable(model, counts={"item": _counts(ITEMS)})
    for shrink in (False, True):
        if shrink:
            choice = space.sample(np.random.default_rng(0), space.full_parameters // 2)
            apply_allocation(model, choice)
            optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        held = {id(p) for group in optimiser.param_groups for p in group["params"]}
        assert held == {id(parameter) for parameter in model.parameters()}
        ids, losses = 1 + torch.arange(50), []
        for _ in range(60):
            loss = functional.cross_entropy(model(ids), (ids + 3) % 60)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]
        # The row of padding is not trained by the head either.
        assert torch.equal(model.head.weight[0], torch.zeros(WIDTH))


def test_a_frozen_head_stays_frozen() -> None:
    model = TwoTables()
    model.layers["head"].requires_grad_(False)
    space = make_searchable(model, outputs=["layers.head"])
    apply_allocation(model, space.sample(np.random.default_rng(0), 500))
    assert not any(parameter.requires_grad for parameter in model.layers.parameters())


def test_a_head_starts_anew_as_a_linear_layer() -> None:
    model = Sequential(bias=True)
    make_searchable(model)
    model.head.reset_parameters()
    assert model.head.weight[1:].std().item() == pytest.approx((3 * WIDTH) ** -0.5, rel=0.1)


def test_parts_of_a_swapped_head() -> None:
    model = Sequential(bias=True, padding=1.0)
    space = make_searchable(model, counts={"item": _counts(ITEMS)})
    rng = np.random.default_rng(0)
    set_choices(model, space, [space.sample(rng, cost) for cost in (900, 200)])
    vectors = torch.randn(6, WIDTH)
    parts = [functional.linear(vectors[r], w, b) for r, w, b in model.head.parts(6)]
    torch.testing.assert_close(torch.cat(parts), model.head(vectors))


class Wider(nn.Linear):
    pass


@pytest.mark.parametrize("hook", ["register_hook", "register_post_accumulate_grad_hook"])
def test_weights_whose_gradients_others_change_are_not_swapped(hook: str) -> None:
    model = nn.ModuleDict({"e": nn.Embedding(60, 8), "head": nn.Linear(8, 60)})
    for name, outputs in (("e", []), ("head", ["head"])):
        handle = getattr(model[name].weight, hook)(lambda given: None)
        with pytest.raises(ValueError, match=f"'{name}' cannot be swapped: hooks of its weight"):
            make_searchable(model, outputs=outputs)
        handle.remove()
    make_searchable(model, outputs=["head"])


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_what_cannot_be_swapped_is_named() -> None:
    model = nn.ModuleDict(
        {"e": nn.Embedding(60, 8), "head": Wider(8, 60), "odd": nn.Linear(8, 60)}
    )
    with pytest.raises(ValueError, match="'head' cannot be swapped: it is a Wider, a subclass"):
        make_searchable(model, outputs=["head"])
    with pytest.raises(ValueError, match=r"`outputs` has 'no', which fits none of the linear lay"):
        make_searchable(model, outputs=["no"])
    with pytest.raises(ValueError, match=r"`outputs` must be a list of patterns, got 'odd'"):
        make_searchable(model, outputs="odd")
    with pytest.raises(ValueError, match=r"`counts` names 'odd', which is none of"):
        make_searchable(model, counts={"odd": torch.arange(60)})
    nn.utils.weight_norm(model["odd"])
    with pytest.raises(ValueError, match="'odd' cannot be swapped: its weight is computed"):
        make_searchable(model, outputs=["odd"])
    model["head"].weight = model["e"].weight
    with pytest.raises(ValueError, match=r"The weight of 'e' is tied: 'head.weight' is one of"):
        make_searchable(model)
    assert type(model["e"]) is nn.Embedding


def test_a_model_of_heads_alone() -> None:
    model = nn.Sequential(nn.Linear(ITEMS, WIDTH), nn.Linear(WIDTH, ITEMS))
    with pytest.raises(ValueError, match=r"searched on request: `outputs=\['1'\]`"):
        make_searchable(model)
    (spec,) = make_searchable(model, outputs=["1"]).specs
    assert (spec.name, spec.num_embeddings, spec.embedding_dim) == ("1", ITEMS, WIDTH)


def test_sizes_of_another_head_are_refused() -> None:
    table = TableAllocation("layers.head", ITEMS + 1, WIDTH, (Tier(10, WIDTH),))
    with pytest.raises(ValueError, match=r"must be of the 120x8 table 'layers.head', got"):
        apply_allocation(TwoTables(), Allocation([table]))
    model = Sequential()
    make_searchable(model)
    with pytest.raises(AttributeError, match="`weight` of the swapped layer 'item' cannot be set"):
        model.head.weight = nn.Parameter(torch.zeros(ITEMS, WIDTH))
    assert isinstance(model.item, SwappedEmbedding)
    assert isinstance(model.head, SwappedLinear)
