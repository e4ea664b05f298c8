from __future__ import annotations

from collections.abc import Callable
import copy
import pickle

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from optuna_nis.nn import AdamAndRowwiseAdagrad, RowwiseAdagrad


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(9, 4, sparse=True)
        self.head = nn.Linear(4, 1)

    def backward(self, *ids: int) -> None:
        self.zero_grad()
        loss = self.head(self.table(torch.tensor(ids))).square().sum()
        loss.backward()


def _optimizer(model: Model, lr: float = 0.01, tables_lr: float = 0.1) -> AdamAndRowwiseAdagrad:
    return AdamAndRowwiseAdagrad(model.head.parameters(), [model.table.weight], lr, tables_lr)


def _assert_same(found: Model, expected: Model) -> None:
    for own, other in zip(found.parameters(), expected.parameters()):
        assert torch.equal(own, other)


def test_each_part_is_moved_as_by_an_optimiser_of_its_own() -> None:
    model, other = Model(), Model()
    optimizer = _optimizer(model)
    apart = [
        torch.optim.Adam(other.head.parameters(), lr=0.01, fused=True),
        RowwiseAdagrad([other.table.weight], lr=0.1),
    ]
    for ids in ((1, 1, 2), (2, 8), (0, 1)):
        model.backward(*ids)
        optimizer.step()
        other.backward(*ids)
        for each in apart:
            each.step()
        _assert_same(model, other)
    untouched = Model().table.weight[[3, 4, 5, 6, 7]]
    assert torch.equal(model.table.weight[[3, 4, 5, 6, 7]], untouched)


def _loaded(model: Model, optimizer: AdamAndRowwiseAdagrad) -> AdamAndRowwiseAdagrad:
    other = _optimizer(model, 1.0, 1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return other


def _copied(model: Model, optimizer: AdamAndRowwiseAdagrad) -> AdamAndRowwiseAdagrad:
    other = copy.deepcopy(optimizer)
    _take(model, other)
    return other


def _pickled(model: Model, optimizer: AdamAndRowwiseAdagrad) -> AdamAndRowwiseAdagrad:
    other: AdamAndRowwiseAdagrad = pickle.loads(pickle.dumps(optimizer))
    _take(model, other)
    return other


def _take(model: Model, optimizer: AdamAndRowwiseAdagrad) -> None:
    """Give a model the parameters of an optimiser."""
    dense, tables = (group["params"] for group in optimizer.param_groups)
    model.head.weight, model.head.bias = dense
    (model.table.weight,) = tables


@pytest.mark.parametrize("again", [_loaded, _copied, _pickled])
def test_it_goes_on_where_it_was(
    again: Callable[[Model, AdamAndRowwiseAdagrad], AdamAndRowwiseAdagrad],
) -> None:
    model = Model()
    optimizer = _optimizer(model)
    for ids in ((1, 2), (2, 3)):
        model.backward(*ids)
        optimizer.step()
    other = Model()
    other.load_state_dict(model.state_dict())
    optimizers = [optimizer, again(other, optimizer)]
    for each, its in zip((model, other), optimizers):
        each.backward(2, 3, 5)
        its.step()
    _assert_same(other, model)
    # A rate that is lowered, as where validation stops improving, is that of both parts.
    for each, its in zip((model, other), optimizers):
        for group in its.param_groups:
            group["lr"] *= 0.2
        each.backward(1, 1)
        its.step()
    _assert_same(other, model)
    before = [parameter.detach().clone() for parameter in other.parameters()]
    for group in optimizers[1].param_groups:
        group["lr"] = 0.0
    other.backward(1, 2)
    optimizers[1].step()
    assert all(torch.equal(own, was) for own, was in zip(other.parameters(), before))


def test_schedules_and_closures() -> None:
    model = Model()
    optimizer = _optimizer(model)
    schedule = StepLR(optimizer, 1, gamma=0.5)

    def closure() -> float:
        model.backward(4)
        return 3.0

    assert optimizer.step(closure) == 3.0
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.05])
    assert torch.equal(model.table.weight[0], Model().table.weight[0])
    assert not torch.equal(model.table.weight[4], Model().table.weight[4])
    assert not torch.equal(model.head.weight, Model().head.weight)


def test_rates_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match="Invalid learning rate: -1"):
        _optimizer(Model(), lr=-1.0)
    with pytest.raises(ValueError, match=r"`lr` must not be negative, got -1\.0"):
        _optimizer(Model(), tables_lr=-1.0)


def test_a_step_is_one_to_those_who_look() -> None:
    RowwiseAdagrad([nn.Parameter(torch.ones(2, 2))])  # Torch wraps the steps of its class.
    model = Model()
    optimizer, seen = _optimizer(model), []
    optimizer.register_step_pre_hook(lambda *_: seen.append(model.head.weight.clone()))
    optimizer.register_step_post_hook(lambda *_: seen.append(model.head.weight.clone()))
    model.backward(4)
    optimizer.step()
    assert len(seen) == 2
    assert not torch.equal(*seen)


def test_groups_that_are_added_are_trained() -> None:
    model, dense, table = Model(), nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, 2))
    optimizer = _optimizer(model)
    optimizer.add_param_group({"params": [dense], "betas": (0.9, 0.99)})
    optimizer.add_param_group({"params": [table], "lr": 0.5})
    (dense.sum() + table[1].sum()).backward()
    optimizer.step()
    torch.testing.assert_close(
        dense.detach(), torch.full((3,), 1 - optimizer.param_groups[0]["lr"])
    )
    assert torch.equal(table[[0, 2]], torch.ones(2, 2))
    torch.testing.assert_close(table[1].detach(), torch.full((2,), 0.5))
    again = _optimizer(Model())
    again.add_param_group({"params": [nn.Parameter(torch.ones(3))], "betas": (0.9, 0.99)})
    again.add_param_group({"params": [nn.Parameter(torch.ones(3, 2))], "lr": 0.5})
    again.load_state_dict(optimizer.state_dict())
