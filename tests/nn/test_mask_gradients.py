"""Gradients with respect to soft masks, compared with differences of the loss."""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.nn import (
    SupernetEmbedding,
    SupernetLinear,
    make_searchable,
    mask_gradients,
    set_choices,
    supernet_layers,
)
from optuna_nis.strategy.block_values import Path

LOW = {"user": (4, 1, 0), "item": (2, 2)}
HIGH = {"user": (6, 3, 2), "item": (6, 2)}


class Model(nn.Module):
    """Every way in which a table may be used."""

    def __init__(self) -> None:
        super().__init__()
        user = EmbeddingSpec("user", 30, 6, row_blocks=[5, 10, 15])
        item = EmbeddingSpec("item", 20, 6, row_blocks=[8, 12])
        self.space = SearchSpace([user, item])
        self.user = SupernetEmbedding(user, mode="mean", init_std=1.0)
        self.item = SupernetLinear(item, init_std=1.0)
        self.dropout = nn.Dropout(0.5)
        generator = torch.Generator().manual_seed(0)
        self.bags = torch.randint(0, 30, (40, 3), generator=generator)
        self.others = torch.randint(0, 30, (40, 1), generator=generator)
        self.labels = torch.randint(0, 20, (40,), generator=generator)

    def loss(self) -> Tensor:
        vectors = self.dropout(self.user(self.bags)).tanh() + 0.1 * self.user(self.others)
        return nn.functional.cross_entropy(self.item(vectors), self.labels)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


def loss_under(model: Model, widths: dict[str, tuple[int, ...]]) -> float:
    choice = model.space.allocation(
        {
            name: width
            for spec in model.space.specs
            for name, width in zip(
                [n for n in model.space.choices if n.startswith(spec.name)], widths[spec.name]
            )
        }
    )
    set_choices(model, model.space, [choice])
    with torch.no_grad():
        return float(model.eval().loss())


def test_along_a_path_they_add_up_to_the_difference_of_the_loss(model: Model) -> None:
    shares, weights = np.polynomial.legendre.leggauss(12)
    total = 0.0
    for share, weight in zip((shares + 1) / 2, weights / 2):
        path = Path(LOW, HIGH, share)
        (gradients,) = mask_gradients(model, [path], model.loss)
        total += weight * sum(
            float(own[path.changed(name, 6)].sum()) for name, own in gradients.items()
        )
    assert total == pytest.approx(loss_under(model, HIGH) - loss_under(model, LOW), rel=1e-4)


def test_several_paths_share_a_batch_as_each_would_see_its_run_alone(model: Model) -> None:
    paths = [Path(LOW, HIGH, 0.2), Path(LOW, LOW | {"user": (4, 4, 4)}, 0.9)]
    together = mask_gradients(model, paths, model.loss)
    for run, (path, found) in enumerate(zip(paths, together)):
        part = slice(20 * run, 20 * run + 20)

        def loss() -> Tensor:
            vectors = model.user(model.bags[part]).tanh() + 0.1 * model.user(model.others[part])  # noqa: B023
            return nn.functional.cross_entropy(model.item(vectors), model.labels[part])  # noqa: B023

        (alone,) = mask_gradients(model, [path], loss)
        for name, own in alone.items():
            np.testing.assert_allclose(found[name], own, rtol=1e-4, atol=1e-6)


def test_what_is_computed_again_on_the_way_back_sees_the_masks(model: Model) -> None:
    path = Path(LOW, HIGH, 0.3)
    (expected,) = mask_gradients(model, [path], model.loss)

    def loss() -> Tensor:
        found: Tensor = checkpoint(model.loss, use_reentrant=False)
        return found

    (found,) = mask_gradients(model, [path], loss)
    for name, own in expected.items():
        np.testing.assert_allclose(found[name], own, rtol=1e-6)


def test_nothing_stays_behind(model: Model) -> None:
    set_choices(model, model.space, [model.space.full(), model.space.full()])
    model.item.bias.requires_grad_(False)
    model.user.weight.grad = torch.ones_like(model.user.weight)
    masks = {name: layer._mask for name, layer in supernet_layers(model).items()}
    asked = {name: p.requires_grad for name, p in model.named_parameters()}
    model.train()
    model.item.eval()
    mask_gradients(model, [Path(LOW, HIGH, 0.3)], model.loss)
    assert all(layer._mask is masks[name] for name, layer in supernet_layers(model).items())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == asked
    assert (model.training, model.dropout.training, model.item.training) == (True, True, False)
    assert model.user.weight.grad is not None
    assert bool((model.user.weight.grad == 1).all())
    assert model.item.fields[0].weight.grad is None


def test_an_error_of_the_loss_leaves_nothing_behind(model: Model) -> None:
    masks = {name: layer._mask for name, layer in supernet_layers(model).items()}

    def broken() -> Tensor:
        raise RuntimeError("no labels")

    with pytest.raises(RuntimeError, match="no labels"):
        mask_gradients(model, [Path(LOW, HIGH, 0.3)], broken)
    assert all(layer._mask is masks[name] for name, layer in supernet_layers(model).items())
    assert all(p.requires_grad for p in model.parameters())


def test_a_weight_that_is_shared_gets_the_gradients_of_all_its_uses() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"item": nn.Embedding(50, 4), "out": nn.Linear(4, 50, bias=False)})
    model["out"].weight = model["item"].weight
    space = make_searchable(model, budget="50%", outputs=["out"])
    (name,) = (spec.name for spec in space.specs)
    blocks = len(space.specs[0].row_blocks)
    ids = torch.arange(50)
    low, high = {name: (0,) * blocks}, {name: (4,) * blocks}

    def looked_up() -> Tensor:
        return model["item"](ids).square().sum()

    def compared() -> Tensor:
        logits: Tensor = model["out"](torch.ones(1, 4))
        return logits.sum()

    def both() -> Tensor:
        return looked_up() + compared()

    path = Path(low, high, 0.5)
    one, other, two = (
        mask_gradients(model, [path], loss)[0][name] for loss in (looked_up, compared, both)
    )
    np.testing.assert_allclose(one + other, two, rtol=1e-4, atol=1e-5)


def test_a_table_that_is_not_looked_up_is_worth_nothing(model: Model) -> None:
    path = Path(LOW, HIGH, 0.5)
    (gradients,) = mask_gradients(model, [path], lambda: model.user(model.bags).sum())
    assert not gradients["item"].any()
    assert gradients["user"].any()


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda model: 0.5, "got float"),
        (lambda model: model.user(model.bags), r"got a tensor of shape \(40, 6\)"),
        (lambda model: model.user(model.bags).sum().detach(), "depends on none of them"),
        (lambda model: torch.ones((), requires_grad=True) * 2, "depends on none of .'item'"),
    ],
)
def test_losses_without_gradients(
    model: Model, loss: Callable[[Model], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mask_gradients(model, [Path(LOW, HIGH, 0.5)], lambda: loss(model))


def test_paths_of_other_tables(model: Model) -> None:
    with pytest.raises(ValueError, match=r"`paths` must have widths for each of .'item', 'user'."):
        mask_gradients(model, [Path({"user": (1, 1, 1)}, {"user": (2, 2, 2)}, 0.5)], model.loss)
    with pytest.raises(ValueError, match="must hold 3 widths for each choice"):
        mask_gradients(model, [Path(LOW | {"user": (1,)}, HIGH, 0.5)], model.loss)
    with pytest.raises(ValueError, match="`paths` must hold at least one path"):
        mask_gradients(model, [], model.loss)


def test_the_share_is_how_much_of_the_columns_in_between_is_seen() -> None:
    layer = SupernetEmbedding(EmbeddingSpec("user", 4, 2, row_blocks=[4]), init_std=1.0)
    seen: list[float] = []

    def loss() -> Tensor:
        rows = layer(torch.arange(4))
        seen.append(float((rows[:, 1] / layer.weight[:-1, 1]).detach().mean()))
        return rows.sum()

    for share in (0.0, 0.25, 1.0):
        mask_gradients(layer, [Path({"user": (1,)}, {"user": (2,)}, share)], loss)
    assert all(map(math.isclose, seen, (0.0, 0.25, 1.0)))
