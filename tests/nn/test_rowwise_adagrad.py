from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optuna_nis.nn import RowwiseAdagrad


def _plain(weight: Tensor, grads: list[Tensor], lr: float, eps: float) -> Tensor:
    total = torch.zeros(len(weight))
    weight = weight.clone()
    for grad in grads:
        for row in range(len(weight)):
            total[row] += (grad[row] ** 2).mean()
            if grad[row].any():
                weight[row] -= lr * grad[row] / (total[row].sqrt() + eps)
    return weight


@pytest.mark.parametrize("sparse", [False, True])
def test_steps_are_those_of_a_plain_loop(sparse: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(6, 3, sparse=sparse)
    start = layer.weight.detach().clone()
    optimizer = RowwiseAdagrad(layer.parameters(), lr=0.1, eps=1e-8)
    grads = []
    for ids in ([0, 1, 1], [1, 5], [2, 2, 2]):
        optimizer.zero_grad()
        (layer(torch.tensor(ids)) * torch.randn(3)).sum().backward()
        grad = layer.weight.grad
        assert grad is not None
        grads.append(grad.to_dense().clone())
        optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), _plain(start, grads, 0.1, 1e-8))


def test_one_number_for_each_row_and_for_each_bias() -> None:
    layer = nn.Linear(4, 5)
    optimizer = RowwiseAdagrad(layer.parameters())
    layer(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    assert {tuple(s["sum"].shape) for s in optimizer.state.values()} == {(5,)}


def test_state_goes_on_where_it_was() -> None:
    torch.manual_seed(0)
    layer = nn.Embedding(5, 2, sparse=True)
    optimizer = RowwiseAdagrad(layer.parameters(), lr=0.1)

    def step(layer: nn.Embedding, optimizer: RowwiseAdagrad) -> None:
        optimizer.zero_grad()
        layer(torch.tensor([0, 3])).square().sum().backward()
        optimizer.step()

    step(layer, optimizer)
    twin = copy.deepcopy(layer)
    other = RowwiseAdagrad(twin.parameters(), lr=1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(layer, optimizer)
    step(twin, other)
    torch.testing.assert_close(twin.weight, layer.weight)


@pytest.mark.parametrize("state", [{}, {"state": {}}, [1]])
def test_what_is_no_state_is_refused(state: Any) -> None:
    with pytest.raises(ValueError, match="`state_dict` must be what an optimiser's"):
        RowwiseAdagrad(nn.Linear(1, 1).parameters()).load_state_dict(state)


@pytest.mark.parametrize("name", ["lr", "eps", "initial_accumulator_value"])
def test_settings_must_not_be_negative(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must not be negative"):
        RowwiseAdagrad(nn.Linear(1, 1).parameters(), **{name: -1.0})
