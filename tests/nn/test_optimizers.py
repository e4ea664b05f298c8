"""Optimisers that were made before a swap, or that miss what a swapped layer holds."""

from __future__ import annotations

from collections.abc import Callable
import copy
import re
from typing import Any

from lightning.pytorch import LightningModule
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from optuna_nis import Allocation, SearchSpace
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import RowwiseAdagrad, apply_allocation, make_searchable

IDS = torch.arange(100)

pytestmark = pytest.mark.filterwarnings("error:No optimiser has")


class Model(nn.Module):
    """Makes its optimiser itself, as those of some libraries do."""

    def __init__(self, kind: Callable[..., torch.optim.Optimizer] = torch.optim.Adam) -> None:
        super().__init__()
        self.e = nn.Embedding(100, 8)
        self.o = nn.Linear(8, 1)
        self.optimizer = kind(self.parameters(), lr=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.o(self.e(ids))
        return rows[:, 0]


def _step(model: Model, optimizer: torch.optim.Optimizer | None = None) -> None:
    optimizer = optimizer or model.optimizer
    optimizer.zero_grad()
    (model(IDS) - 1).square().mean().backward()
    optimizer.step()


def _choice(space: SearchSpace) -> Allocation:
    return space.sample(np.random.default_rng(0), 300)


def _searchable(model: Model, **options: Any) -> None:
    make_searchable(model, **options)


def _sized(model: Model, **options: Any) -> None:
    apply_allocation(model, _choice(make_searchable(Model(), **options)))


def _shrunk(model: Model, **options: Any) -> None:
    apply_allocation(model, _choice(make_searchable(model, **options)))


@pytest.mark.parametrize("fields", [None, {"e": [60, 40]}])
@pytest.mark.parametrize("swap", [_searchable, _sized, _shrunk])
@pytest.mark.parametrize("kind", [torch.optim.Adam, RowwiseAdagrad])
def test_an_optimiser_that_was_made_before_trains_all_of_it(
    kind: Any, swap: Callable[..., None], fields: Any
) -> None:
    torch.manual_seed(0)
    model = Model(kind)
    swap(model, fields=fields)
    held = [p for group in model.optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, held)) == sorted(map(id, model.parameters()))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _step(model)
    _step(model)
    for name, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[name]), name
    # Its state can be kept and read.
    again = Model(kind)
    swap(again, fields=fields)
    again.optimizer.load_state_dict(model.optimizer.state_dict())


def test_groups_and_names_of_parameters_stay() -> None:
    model = Model()
    named = list(model.named_parameters())
    optimizer = torch.optim.SGD(
        [{"params": [model.e.weight], "lr": 0.5}, {"params": model.o.parameters()}], 0.1
    )
    by_name = torch.optim.SGD(named, 0.1) if _takes_names() else None
    space = make_searchable(model)
    for swap in (None, _choice(space)):
        if swap is not None:
            apply_allocation(model, swap)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert list(map(id, held)) == list(map(id, model.parameters()))
        assert optimizer.param_groups[0]["lr"] == 0.5
        if by_name is not None:
            group = by_name.param_groups[0]
            found = dict(zip(group["param_names"], map(id, group["params"])))
            assert found == {name: id(p) for name, p in model.named_parameters()}


def _takes_names() -> bool:
    try:
        torch.optim.SGD(list(nn.Linear(1, 1).named_parameters()), 0.1)
    except TypeError:  # Older versions.
        return False
    return True


@pytest.mark.parametrize("swap", [_searchable, _sized, _shrunk])
def test_state_that_does_not_fit_any_more_is_told_at_the_next_step(
    swap: Callable[..., None],
) -> None:
    model = Model()
    _step(model)
    swap(model)
    with pytest.raises(RuntimeError, match="Adam has gathered state for the table of 'e'"):
        _step(model)
    # As it says.
    _step(model, torch.optim.Adam(model.parameters()))


def test_an_optimiser_that_makes_its_state_at_once_is_told_too() -> None:
    model = Model(torch.optim.Adagrad)
    make_searchable(model)
    with pytest.raises(RuntimeError, match=r"Adagrad has gathered state.*Make it anew after"):
        _step(model)


def test_optimisers_of_other_models_are_left_alone() -> None:
    other, model = Model(), Model()
    held = list(other.optimizer.param_groups[0]["params"])
    _step(other)
    make_searchable(model)
    _step(other)
    assert all(a is b for a, b in zip(held, other.optimizer.param_groups[0]["params"]))
    copied = copy.deepcopy(model)
    _step(copied)


def test_an_optimiser_that_was_refused_does_no_harm() -> None:
    model = Model()
    with pytest.raises(ValueError, match="learning rate") as caught:
        torch.optim.SGD(model.parameters(), lr=-1.0)
    half_made = torch.optim.SGD.__new__(torch.optim.SGD)
    make_searchable(model)
    _step(model)
    assert caught.traceback
    assert not hasattr(half_made, "param_groups")


class Owner(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Model()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.net(batch[0]) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.net.optimizer


@pytest.mark.parametrize("trained", [False, True])
def test_in_a_trainer_without_our_callback(trained: bool) -> None:
    model, data = Owner(), DataLoader(TensorDataset(IDS), 50)
    if trained:
        quiet_trainer(max_epochs=1).fit(model, data)
    space = make_searchable(Owner())
    apply_allocation(model, _choice(space))
    before = [p.detach().clone() for p in model.parameters()]
    if trained:
        with pytest.raises(RuntimeError, match=r"table of 'net\.e'.*`configure_optimizers`"):
            quiet_trainer(max_epochs=1).fit(model, data)
    else:
        quiet_trainer(max_epochs=1).fit(model, data)
        assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def _by_layer_type(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of a list of layer types whose names end in weight, as minGPT sorts them."""
    return [
        parameter
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.Linear)
        for name, parameter in module.named_parameters()
        if name.endswith(("weight", "bias"))
    ]


def _by_exact_type(model: nn.Module) -> list[nn.Parameter]:
    return [
        parameter
        for module in model.modules()
        if type(module) in (nn.Linear, nn.Embedding)
        for parameter in module.parameters(recurse=False)
    ]


@pytest.mark.parametrize(
    ("collect", "missing"),
    [
        (_by_layer_type, "e.fields.0._dense.projection"),
        (lambda model: model.o.parameters(), "e.fields.0.weight, e.fields.0._dense.projection"),
    ],
)
def test_parameters_that_no_optimiser_has_are_named(collect: Any, missing: str) -> None:
    model = Model()
    del model.optimizer
    make_searchable(model)
    found = {id(p): p for p in collect(model)}
    optimizer = torch.optim.SGD(list(found.values()), 0.1)
    with pytest.warns(UserWarning, match=f"No optimiser has {re.escape(missing)}, which stay"):
        _step(model, optimizer)
    _step(model, optimizer)  # Once is enough.


def test_groups_by_the_exact_type_of_layers_lose_nothing_in_silence() -> None:
    model = Model()
    del model.optimizer
    make_searchable(model)
    optimizer = torch.optim.SGD(_by_exact_type(model), 0.1)
    with pytest.warns(UserWarning, match=r"No optimiser has .*e\.fields\.0\._dense\.projection"):
        _step(model, optimizer)


def test_what_another_optimiser_has_and_what_is_frozen_is_not_missing() -> None:
    model = Model()
    del model.optimizer
    make_searchable(model)
    tables = torch.optim.SGD(model.e.parameters(), 0.1)
    _step(model, torch.optim.SGD(model.o.parameters(), 0.1))
    del tables
    frozen = Model()
    del frozen.optimizer
    make_searchable(frozen)
    frozen.e.requires_grad_(False)
    _step(frozen, torch.optim.SGD(frozen.o.parameters(), 0.1))


@pytest.mark.parametrize("sized", [False, True])
def test_a_group_that_has_a_parameter_twice_is_refused(sized: bool) -> None:
    model = Model()
    space = make_searchable(model)
    if sized:
        apply_allocation(model, space.full())
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Embedding)]
    parameters = [p for layer in layers for p in layer.parameters()]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = torch.optim.SGD([{"params": parameters}], lr=1.0)
    optimizer.add_param_group({"params": list(model.o.parameters())})
    with pytest.raises(RuntimeError, match=r"SGD holds 'e\.fields\.0\..*weight' more than once"):
        _step(model, optimizer)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])
    _step(model, torch.optim.SGD([*dict.fromkeys(parameters), *model.o.parameters()], lr=1.0))
