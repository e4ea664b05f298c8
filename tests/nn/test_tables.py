"""Tables that are not swapped are named, with what helps."""

from __future__ import annotations

from typing import Any
import warnings

from lightning.pytorch import LightningModule
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optuna_nis.nn import apply_allocation, count_ids, make_searchable


class Scaled(nn.Linear):
    """An output layer that does something of its own with its weight."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / 8


class Recommender(nn.Module):
    """An item table that an output layer has too."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.user = nn.Embedding(200, 8)
        self.item = nn.Embedding(100, 8)
        self.layers = nn.ModuleList([Scaled(8, 100, bias=False)])
        if tied:
            self.layers[0].weight = self.item.weight

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.layers[0](self.user(ids) + self.item(ids))
        return scores


def test_a_tied_table_is_named_with_lines_that_help() -> None:
    model = Recommender(tied=True)
    with pytest.raises(ValueError, match="The weight of 'item' is tied") as caught:
        make_searchable(model)
    message = str(caught.value)
    assert "'layers.0.weight'" in message
    assert "`exclude=['item']`" in message
    assert type(model.user) is nn.Embedding
    # The lines work.
    assert [s.name for s in make_searchable(model, exclude=["item"]).specs] == ["user"]
    model = Recommender(tied=True)
    line = "model.layers[0].weight = nn.Parameter(model.layers[0].weight.detach().clone())"
    assert f"`{line}`" in message
    before = model(torch.arange(100)).detach()
    exec(line, {"model": model, "nn": nn})
    assert [s.name for s in make_searchable(model).specs] == ["user", "item"]
    torch.testing.assert_close(model(torch.arange(100)), before)


def test_of_layers_of_two_kinds_all_are_to_be_left_alone() -> None:
    model = nn.ModuleDict({"item": nn.Embedding(50, 8), "user": nn.Embedding(50, 8)})
    model["history"] = nn.EmbeddingBag(50, 8)
    model["history"].weight = model["item"].weight
    for exclude in ([], ["item"], ["history"]):
        with pytest.raises(ValueError, match=r"`exclude=\['item', 'history'\]`"):
            make_searchable(model, exclude=exclude)
    space = make_searchable(model, exclude=["item", "history"])
    assert [spec.name for spec in space.specs] == ["user"]


class QuotientRemainder(nn.Module):
    """The bag of DLRM that adds two small tables, which are bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_q = nn.Parameter(torch.randn(250, 4))
        self.weight_r = nn.Parameter(torch.randn(4, 4))


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(200, 8)
        # That of a feature with few values is among them.
        sizes = (150, 20, 150)
        self.tables = nn.ParameterList([nn.Parameter(torch.randn(n, 8)) for n in sizes])
        self.named = nn.ParameterDict({"city": nn.Parameter(torch.randn(120, 8))})
        self.bags = nn.ModuleList([QuotientRemainder()])
        self.codes = nn.Parameter(torch.randn(300, 8))
        # None of these is a table.
        self.head = nn.Linear(8, 1000)
        self.rnn = nn.GRU(8, 200)
        self.scale = nn.Parameter(torch.ones(500))
        self.square = nn.Parameter(torch.randn(128, 128))
        self.queries = nn.ParameterList([nn.Parameter(torch.randn(20, 8)) for _ in range(2)])
        self.scaled = Scaled(8, 1000)


def test_tables_that_are_bare_parameters_are_named() -> None:
    names = "'codes', 'tables.0', 'tables.1', 'tables.2', 'named.city', 'bags.0.weight_q'"
    with pytest.warns(UserWarning, match=rf"The parameters \[{names}\] may be tables") as caught:
        make_searchable(Bare())
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_searchable(Bare(), exclude=["tables.*", "named.*", "bags.*", "codes"])
        make_searchable(Bare(), include=["user"])
        make_searchable(Recommender(tied=False))


def test_tables_without_counts_are_named() -> None:
    counts = {"user": torch.arange(200)}
    with pytest.warns(UserWarning, match=r"`counts` has none for \['item'\], whose ids are taken"):
        make_searchable(Recommender(tied=False), counts=counts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_searchable(Recommender(tied=False), counts=counts, exclude=["item"])
        make_searchable(Recommender(tied=False))


class Late(LightningModule):
    """Makes its layers in a hook."""

    def __init__(self, hook: str) -> None:
        super().__init__()
        self.hook = hook

    def _make(self) -> None:
        if not hasattr(self, "e"):
            self.e = nn.Embedding(100, 8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.e(batch).mean()  # type: ignore[no-any-return]


class LateSetup(Late):
    def setup(self, stage: str) -> None:
        self._make()


class LateConfigure(Late):
    def configure_model(self) -> None:
        self._make()


@pytest.mark.parametrize(
    ("model", "call"),
    [
        (LateSetup("setup"), r"call `model\.setup\('fit'\)` first"),
        (LateConfigure("configure_model"), r"call `model\.configure_model\(\)` first"),
    ],
)
def test_layers_that_are_made_in_a_hook(model: Any, call: str) -> None:
    space = make_searchable(nn.ModuleDict({"e": nn.Embedding(100, 8)}))
    with pytest.raises(ValueError, match=call):
        make_searchable(model)
    with pytest.raises(ValueError, match=call):
        count_ids([torch.arange(5)], model, progress=False)
    with pytest.raises(ValueError, match=call):
        apply_allocation(model, space.full())
    model._make()
    assert count_ids([torch.arange(5)], model, progress=False)["e"].sum() == 5
    make_searchable(model)


def test_a_model_is_swapped_once() -> None:
    model = Recommender(tied=False)
    counts = {"user": torch.arange(200), "item": torch.arange(100)}
    options: dict[str, Any] = {"counts": counts, "exclude": ["item"]}
    space = make_searchable(model, **options)
    again = r"no embedding layer to swap: those of Recommender, \['user'\], were swapped before"
    for each in (options, {"include": ["user"]}, {"counts": counts, "include": ["user"]}):
        with pytest.raises(ValueError, match=again):
            make_searchable(model, **each)
    with pytest.raises(ValueError, match=r"to count for: .*\['user'\], were swapped before"):
        count_ids([torch.arange(5)], model, exclude=["item"], progress=False)
    choice = space.sample(np.random.default_rng(0), 300)
    apply_allocation(model, choice)
    with pytest.raises(ValueError, match=r"The layers \['user'\] of `model` were given sizes"):
        apply_allocation(model, choice)
    with pytest.raises(ValueError, match=again):
        make_searchable(model, **options)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_frozen_table_may_be_sparse(sparse: bool) -> None:
    layer = nn.Embedding.from_pretrained(torch.randn(100, 8), freeze=True, sparse=sparse)
    model = nn.Sequential(layer, nn.Linear(8, 1))
    space = make_searchable(model)
    model(torch.arange(100)).sum().backward()
    apply_allocation(model, space.full())
    model(torch.arange(100)).sum().backward()


@pytest.mark.parametrize("name", ["one", "other"])
def test_embeddings_that_are_tied_go_by_either_name(name: str) -> None:
    def build() -> nn.ModuleDict:
        model = nn.ModuleDict({"one": nn.Embedding(100, 8), "other": nn.Embedding(100, 8)})
        model["other"].weight = model["one"].weight
        return model

    model = build()
    space = make_searchable(model, budget="50%", include=[name])
    assert [spec.name for spec in space.specs] == ["one"]
    ids = torch.tensor([3, 99])
    assert torch.equal(model["one"](ids), model["other"](ids))
    rest = {"one": "other", "other": "one"}[name]
    with pytest.raises(ValueError, match=f"leaves '{name}' alone, .* the weight of '{rest}'"):
        make_searchable(build(), exclude=[name])


@pytest.mark.parametrize(
    ("layer", "name"),
    [(nn.LazyLinear(4), "LazyLinear '1.0'"), (nn.LazyBatchNorm1d(affine=False), "'1.0'")],
)
def test_layers_without_a_shape_are_named(layer: Any, name: str) -> None:
    model = nn.Sequential(nn.Embedding(20, 8), nn.Sequential(layer))
    batches = [torch.arange(20)]
    for refused in (make_searchable, lambda model: count_ids(batches, model, progress=False)):
        with pytest.raises(ValueError, match=f"{name}.* before its first batch") as error:
            refused(model)
        assert "`model(batch)`" in str(error.value)
    model(batches[0])
    make_searchable(model, counts=count_ids(batches, model, progress=False))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(20, 4)

    def parameters(self) -> Any:  # type: ignore[override]
        return (each for each in super().parameters() if each.requires_grad)

    def forward(self, ids: Tensor) -> Tensor:
        return torch.as_tensor(self.user(ids))


def test_models_may_give_their_parameters_in_a_way_of_their_own() -> None:
    model = Whole()
    counts = count_ids([torch.arange(20)], model, progress=False)
    assert [spec.name for spec in make_searchable(model, counts=counts).specs] == ["user"]
