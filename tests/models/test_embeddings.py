"""The rows of all features, looked up together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace
from optuna_nis.models.embeddings import FeatureEmbeddings
from optuna_nis.nn import set_choices, supernet_layers

SPACE = SearchSpace(
    [
        EmbeddingSpec("user", 90, 8, row_blocks=[10, 20, 60]),
        EmbeddingSpec("city", 5, 8),
        EmbeddingSpec("tag", 9, 8, oov="hash", precisions=(32, 4)),
    ]
)
NARROW = Allocation(
    [
        SPACE.specs[0].table([8, 2]),
        SPACE.specs[1].table([3]),
        SPACE.specs[2].table([4], 4),
    ]
)
GONE = Allocation([spec.table([0]) for spec in SPACE.specs[:2]] + [SPACE.specs[2].table([8])])


def _batch(size: int = 32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)

    def ids(number: int) -> Tensor:
        return torch.randint(number + 1, (size,), generator=generator)

    return {spec.name: ids(spec.num_embeddings) for spec in SPACE.specs}


@pytest.mark.parametrize("tables", [SPACE, SPACE.full(), NARROW, GONE])
@pytest.mark.parametrize("size", [32, 256])
def test_rows_and_gradients_are_those_of_each_feature_alone(
    tables: SearchSpace | Allocation, size: int
) -> None:
    torch.manual_seed(0)
    model = FeatureEmbeddings(tables, init_std=0.5)
    if isinstance(tables, SearchSpace):
        set_choices(model, SPACE, [SPACE.full(), NARROW])
        for layer in supernet_layers(model).values():
            nn.init.normal_(layer.projection)
    batch = _batch(size)
    together = model(batch)
    alone = torch.stack([f(batch[n]) for n, f in zip(model.names, model.layers)], 1)
    torch.testing.assert_close(together, alone)
    grad = torch.randn_like(together)
    parameters = [*model.parameters()]
    torch.testing.assert_close(
        *(
            torch.autograd.grad(rows, parameters, grad, allow_unused=True)
            for rows in (together, alone)
        )
    )


@pytest.mark.parametrize("tables", [SPACE, NARROW])
def test_whoever_watches_a_layer_sees_its_rows(tables: SearchSpace | Allocation) -> None:
    model = FeatureEmbeddings(tables, init_std=0.5)
    seen: list[Tensor] = []
    handle = model.layers[0].register_forward_hook(lambda layer, args, rows: seen.append(rows))
    rows = model(_batch())
    (watched,) = seen
    assert torch.equal(watched, rows[:, 0])
    handle.remove()
    model(_batch())
    assert len(seen) == 1


@pytest.mark.parametrize("size", [16, 256])
def test_under_autocast_tables_are_as_precise_as_they_are(size: int) -> None:
    model = FeatureEmbeddings(SPACE, init_std=0.5)
    set_choices(model, SPACE, [SPACE.full(), NARROW])
    for layer in supernet_layers(model).values():
        nn.init.normal_(layer.projection)
    batch = _batch(size)
    expected = model(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = model(batch)
        rows.sum().backward()
    assert torch.equal(rows, expected)
    assert all(p.grad is None or p.grad.dtype == p.dtype for p in model.parameters())


def test_those_that_share_a_table_are_looked_up_together() -> None:
    torch.manual_seed(0)
    space = SearchSpace(SPACE.specs[:2])
    model = FeatureEmbeddings(space, share={"home": "city"}, init_std=0.5)
    choices = [space.full(), Allocation([NARROW["user"], NARROW["city"]])]
    set_choices(model, space, choices)
    batch = {n: ids for n, ids in _batch().items() if n != "tag"}
    rows = model(batch | {"home": batch["city"].flip(0)})
    user, city = model.layers
    assert torch.equal(rows[:, 1], city(batch["city"]))
    assert torch.equal(rows[:, 2], city(batch["city"].flip(0)))
    grad = torch.randn_like(rows)
    expected = torch.stack([user(batch["user"]), city(batch["city"]), rows[:, 2] * 0], 1)
    (found,) = torch.autograd.grad(rows, [city.weight], grad, retain_graph=True)
    (first,) = torch.autograd.grad(expected, [city.weight], grad)
    other = city(batch["city"].flip(0))
    (second,) = torch.autograd.grad(other, [city.weight], grad[:, 2])
    torch.testing.assert_close(found, first + second)
