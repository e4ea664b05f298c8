"""Rows of pretrained tables: what narrower ones keep of them, and that frozen ones stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.nn import apply_allocation, make_searchable, set_choices, supernet_layers
from optuna_nis.nn._directions import principal_directions

IDS = torch.arange(100)
SIZES = (Tier(10, 4), Tier(50, 2))


def _trained(rank: int, noise: float = 0.0, rows: int = 100, dim: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(rows, rank, generator=generator) @ torch.randn(
        rank, dim, generator=generator
    )
    return table + noise * torch.randn(rows, dim, generator=generator)


def _model(table: Tensor, freeze: bool, bag: bool = False, **options: Any) -> nn.ModuleDict:
    kind: Any = nn.EmbeddingBag if bag else nn.Embedding
    return nn.ModuleDict({"e": kind.from_pretrained(table.clone(), freeze=freeze, **options)})


def _sizes(*tiers: Tier, dim: int = 8) -> Allocation:
    return Allocation([TableAllocation("e", 100, dim, tiers)])


def _best(table: Tensor, dim: int) -> Tensor:
    left, values, right = torch.linalg.svd(table, full_matrices=False)
    return left[:, :dim] * values[:dim] @ right[:dim]


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("bag", [True, False])
def test_narrow_rows_start_from_the_table(freeze: bool, bag: bool) -> None:
    table = _trained(2)
    model = apply_allocation(_model(table, freeze, bag), _sizes(*SIZES))
    rows = model["e"].weight
    torch.testing.assert_close(rows[:60], table[:60], rtol=1e-4, atol=1e-4)
    assert torch.equal(rows[60:], torch.zeros(40, 8))
    assert {p.requires_grad for p in model.parameters()} == {not freeze}


@pytest.mark.parametrize("dim", [1, 3, 7])
def test_narrow_rows_are_the_best_of_their_width(dim: int) -> None:
    table = _trained(8, 0.1)
    model = apply_allocation(_model(table, True), _sizes(Tier(100, dim)))
    torch.testing.assert_close(model["e"](IDS), _best(table, dim), rtol=1e-4, atol=1e-4)
    # Any other projection of that width is further away.
    tiers = apply_allocation(_model(table, True), _sizes(Tier(30, 8), Tier(70, dim)))
    torch.testing.assert_close(tiers["e"](IDS)[30:], _best(table, dim)[30:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tiers["e"](IDS)[:30], table[:30], rtol=1e-4, atol=1e-4)


def test_counts_order_the_rows_of_a_pretrained_table() -> None:
    table, counts = _trained(2), torch.arange(100)
    model = apply_allocation(_model(table, True), _sizes(*SIZES), counts={"e": counts})
    torch.testing.assert_close(model["e"](IDS)[40:], table[40:], rtol=1e-4, atol=1e-4)
    assert torch.equal(model["e"](IDS)[:40], torch.zeros(40, 8))


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("fields", [None, [40, 60]])
def test_a_searched_table_starts_from_its_directions(freeze: bool, fields: Any) -> None:
    table = _trained(2, 0.01)
    model = _model(table, freeze)
    space = make_searchable(model, fields=None if fields is None else {"e": fields})
    torch.testing.assert_close(model["e"](IDS), table, rtol=1e-4, atol=1e-4)
    narrow = Allocation(
        TableAllocation(s.name, s.num_embeddings, 8, (Tier(s.num_embeddings, 2),))
        for s in space.specs
    )
    set_choices(model, space, [narrow])
    assert (model["e"](IDS) - table).norm() < 0.02 * table.norm()
    assert {p.requires_grad for p in model.parameters()} == {not freeze}
    chosen = model["e"](IDS).detach()
    apply_allocation(model, narrow)
    torch.testing.assert_close(model["e"](IDS), chosen)
    assert {p.requires_grad for p in model.parameters()} == {not freeze}


def test_what_a_choice_leaves_of_a_frozen_table_never_changes() -> None:
    model = nn.Sequential(nn.Embedding.from_pretrained(_trained(2)), nn.Linear(8, 1))
    space = make_searchable(model)
    choice = space.sample(np.random.default_rng(0), 300)
    for step in range(3):
        if step == 1:
            set_choices(model, space, [choice])
        before = model[0](IDS).clone()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 0.1)
        model(IDS).sum().backward()
        optimizer.step()
        assert torch.equal(model[0](IDS), before)
        if step == 1:
            apply_allocation(model, choice)


def test_a_row_of_padding_has_no_say_in_the_directions() -> None:
    table = _trained(2)
    table[5] = torch.linspace(-50, 50, 8)
    model = apply_allocation(_model(table, True, padding_idx=5), _sizes(Tier(100, 2)))
    torch.testing.assert_close(model["e"](IDS), table, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_of_a_pretrained_table_stays(kind: torch.dtype) -> None:
    table = _trained(2).to(kind)
    model = apply_allocation(_model(table, True), _sizes(*SIZES))
    rows = model["e"].weight
    assert {p.dtype for p in model.parameters()} == {kind}
    assert (rows.double()[:60] - table.double()[:60]).abs().max() < 0.05 * table.double().std()


@pytest.mark.parametrize(
    "init", [nn.init.normal_, nn.init.uniform_, nn.init.xavier_uniform_, nn.init.zeros_]
)
@pytest.mark.parametrize("shape", [(3, 8), (60, 8), (300, 16), (5000, 4), (40, 64)])
def test_random_rows_have_no_directions(init: Any, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    table = torch.empty(shape)
    init(table) if init is not nn.init.uniform_ else init(table, -1, 1)
    assert principal_directions(table, frozen=False) is None
    layer = nn.Embedding.from_pretrained(table, freeze=False)
    before = layer(torch.arange(len(table))).clone()
    make_searchable(layer)
    assert torch.equal(layer(torch.arange(len(table))), before)
    assert torch.equal(supernet_layers(layer)["embedding"].projection, torch.eye(shape[1]))


def test_rows_that_are_no_numbers_are_left_as_they_are() -> None:
    table = _trained(2)
    table[3, 3] = torch.nan
    assert principal_directions(table, frozen=True) is None
    model = _model(table, True)
    make_searchable(model)
    torch.testing.assert_close(model["e"](IDS[4:]), table[4:])


def test_the_best_rows_of_a_large_table_come_from_all_of_it() -> None:
    table = torch.zeros(70000, 2)
    table[-1] = torch.tensor([0.0, 2.0])
    table[0] = torch.tensor([1.0, 0.0])
    directions = principal_directions(table, frozen=True)
    assert directions is not None
    assert directions[:, 0].abs().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("searched", [True, False])
def test_wider_rows_of_few_bits_are_no_worse(bits: int, searched: bool) -> None:
    # Word vectors have few directions that matter: the steps of codes must suit the others too.
    torch.manual_seed(0)
    table = torch.randn(2000, 4) @ torch.randn(4, 16)
    best = []
    for width in (1, 2, 4, 8, 12):
        sizes = Allocation([TableAllocation("e", 2000, 16, (Tier(2000, width, bits),))])
        model = _model(table, True)
        if searched:
            counts = {"e": torch.arange(2000, 0, -1)}
            make_searchable(model, counts=counts, precisions=(32, bits))
        rows = apply_allocation(model, sizes)["e"](torch.arange(2000))
        best.append(float((rows - table).norm() / table.norm()))
    assert best[0] > 1.2 * best[1] > 1.4 * best[2]
    assert best[2:] == pytest.approx([best[2]] * 3, rel=0.05)
    # That of a bell curve, rounded by itself.
    assert best[2] ** 2 == pytest.approx({8: 8.4e-5, 4: 0.01154, 2: 0.1188}[bits], rel=0.1)
