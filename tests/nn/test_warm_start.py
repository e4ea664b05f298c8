"""Models of chosen sizes start with the weights of the supernet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from optuna_nis.nn import (
    MultiSizeEmbedding,
    apply_allocation,
    freeze,
    make_searchable,
    set_choices,
    warm_start,
)
from optuna_nis.strategy.baselines import uniform

COUNTS = {"items": torch.tensor([1, 5, 2, 9, 4, 4])}


class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.items = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, width)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.items(ids)))


def test_it_predicts_what_the_supernet_does_under_the_choice() -> None:
    torch.manual_seed(0)
    supernet = Net()
    space = make_searchable(supernet, counts=COUNTS, budget="50%")
    ids = torch.arange(6)
    supernet(ids)  # Statistics other than those of a new layer.
    supernet.eval()
    sizes = uniform(space, projected=True)
    set_choices(supernet, space, [sizes])
    model = apply_allocation(Net(), sizes, counts=COUNTS).eval()
    assert not torch.allclose(model(ids), supernet(ids))
    warm_start(model, supernet)
    torch.testing.assert_close(model(ids), supernet(ids))


@pytest.mark.parametrize("compiled", ["head", "norm"])
def test_parts_of_either_model_may_be_compiled(compiled: str) -> None:
    supernet = Net()
    space = make_searchable(supernet, counts=COUNTS)
    nn.init.normal_(supernet.norm.bias)
    supernet.norm.running_mean.add_(1)  # type: ignore[operator, union-attr]
    model = apply_allocation(Net(), space.full(), counts=COUNTS)
    part = torch.compile(getattr(supernet, compiled), backend="eager")
    setattr(supernet, compiled, part)
    warm_start(model, supernet)
    ids = torch.arange(6)
    torch.testing.assert_close(model.eval()(ids), supernet.eval()(ids))


def test_what_does_not_fit_is_refused_before_anything_is_changed() -> None:
    supernet = Net()
    space = make_searchable(supernet, counts=COUNTS)
    sizes = space.full()
    before = {name: weight.clone() for name, weight in supernet.state_dict().items()}
    narrow = apply_allocation(Net(3), sizes, counts=COUNTS)
    with pytest.raises(ValueError, match="parameters of the supernet outside its embeddings"):
        warm_start(narrow, supernet)
    other = apply_allocation(Net(), sizes, counts={"items": torch.arange(6)})
    with pytest.raises(ValueError, match="sort the ids of 'items' as the supernet does"):
        warm_start(other, supernet)
    renamed = Net()
    renamed.items = MultiSizeEmbedding(type(sizes["items"])("users", 6, 4, sizes["items"].tiers))
    with pytest.raises(ValueError, match=r"features \['items'\] of the supernet, got"):
        warm_start(renamed, supernet)
    with pytest.raises(ValueError, match=r"differ in \['items.weight'\]"):
        warm_start(Net(), supernet)
    for name, weight in supernet.state_dict().items():
        assert torch.equal(weight, before[name])


def test_a_frozen_model_is_given_nothing() -> None:
    supernet, model = Net(), Net()
    space = make_searchable(supernet, counts=COUNTS)
    apply_allocation(model, space.full(), counts=COUNTS)
    freeze(model)
    before = model.head.weight.clone()
    told = "The table 'items' of `model` is frozen and cannot be given weights"
    with pytest.raises(ValueError, match=told):
        warm_start(model, supernet)
    assert torch.equal(model.head.weight, before)


class Padded(nn.Module):
    """Has a constant row of padding that is not zero, and statistics of its own."""

    def __init__(self, padding: float) -> None:
        super().__init__()
        self.items = nn.Embedding(6, 4, padding_idx=2)
        with torch.no_grad():
            self.items.weight[2] = padding
        self.register_buffer("mean", torch.rand(4))

    def forward(self, ids: Tensor) -> Tensor:
        return self.items(ids) - self.mean


@pytest.mark.parametrize("before", [0.0, 1.0])
@pytest.mark.parametrize("after", [0.0, 2.0])
def test_what_is_not_trained_is_that_of_the_supernet(before: float, after: float) -> None:
    supernet = Padded(before)
    space = make_searchable(supernet)
    model = apply_allocation(Padded(after), space.full())
    warm_start(model, supernet)
    ids = torch.tensor([0, 2, 5])
    torch.testing.assert_close(model(ids), supernet(ids))
    assert (model.items(torch.tensor([2])) == before).all()
