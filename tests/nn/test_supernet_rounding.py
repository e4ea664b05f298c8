from __future__ import annotations

import copy
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optuna_nis.nn import (
    SupernetEmbedding,
    SupernetLinear,
    _supernet_rounding,
    apply_allocation,
    make_searchable,
    mask_gradients,
    set_choices,
)
from optuna_nis.nn._rounding import BEST_STEPS
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec
from optuna_nis.strategy.block_values import Path

SPEC = EmbeddingSpec("t", 40, 4, row_blocks=[4, 36], precisions=(32, 16, 8, 4, 2))
SPACE = SearchSpace([SPEC])


def _layer(**options: object) -> SupernetEmbedding:
    torch.manual_seed(0)
    layer = SupernetEmbedding(SPEC, init_std=1.0, **options)  # type: ignore[arg-type]
    return layer.eval()


def _choice(widths: list[int], bits: list[int]) -> Allocation:
    return Allocation([SPEC.table(widths, bits)])


def _on_grid(rows: Tensor, weight: Tensor, bits: int) -> Tensor:
    """By hand, in double precision: the nearest level, none beyond the outermost."""
    weight, rows = weight.double(), rows.double()
    step = float((BEST_STEPS[bits] * weight.square().mean().sqrt()).half())
    levels = (torch.arange(2**bits, dtype=torch.float64) + 0.5 - 2 ** (bits - 1))[:, None, None]
    nearest = (levels * step - rows).abs().argmin(0)
    return (nearest.double() + 0.5 - 2 ** (bits - 1)) * step


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rows_are_at_the_nearest_levels_of_their_tier(bits: int) -> None:
    layer = _layer()
    with torch.no_grad():
        layer.weight[:4] *= 3.0
    layer.train().eval()
    set_choices(layer, SPACE, [_choice([4, 4], [32, bits]), _choice([4, 4], [bits, bits])])
    ids = torch.tensor([0, 3, 4, 39])
    found = layer(torch.cat([ids, ids])).double()
    weight = layer.weight.detach()
    tail, both = weight[4:40], weight[:40]
    torch.testing.assert_close(found[:2], weight[[0, 3]].double(), rtol=0, atol=0)
    for rows, own, tier in (
        (found[2:4], [0, 35], tail),
        (found[4:], [0, 3, 4, 39], both),
    ):
        torch.testing.assert_close(rows, _on_grid(tier[own], tier, bits), rtol=1e-5, atol=1e-6)


@given(
    widths=st.lists(st.integers(1, 4), min_size=2, max_size=2).map(lambda w: sorted(w)[::-1]),
    bits=st.lists(st.sampled_from([8, 4, 2]), min_size=2, max_size=2).map(
        lambda b: sorted(b)[::-1]
    ),
    size=st.sampled_from([1.0, 1e-4]),  # Steps are at least the least of float16.
)
@settings(deadline=None, max_examples=50)
def test_a_choice_is_scored_as_it_will_be_stored(
    widths: list[int], bits: list[int], size: float
) -> None:
    model = nn.ModuleDict({"t": nn.Embedding(40, 4)})
    with torch.no_grad():
        model["t"].weight[:4] *= 3.0
        model["t"].weight *= size
    space = make_searchable(model, counts={"t": torch.arange(40, 0, -1)}, precisions=(8, 4, 2))
    choice = Allocation([space.specs[0].table(widths, bits)])
    set_choices(model.eval(), space, [choice])
    ids = torch.arange(40)
    scored = model["t"](ids)
    apply_allocation(model, choice)
    torch.testing.assert_close(model["t"](ids), scored)


def test_what_is_not_rounded_is_the_same_to_the_bit() -> None:
    layer = _layer()
    ids = torch.arange(40)
    for bits in (32, 16):
        set_choices(layer, SPACE, [_choice([4, 2], [bits, bits])])
        plain = SupernetEmbedding(EmbeddingSpec("t", 40, 4, row_blocks=[4, 36]))
        plain.load_state_dict(layer.state_dict(), strict=False)
        plain.set_widths([[4, 2]])
        assert torch.equal(layer(ids), plain(ids))


@given(
    widths=st.lists(st.integers(0, 4), min_size=2, max_size=2),
    bits=st.lists(st.sampled_from([32, 16, 8, 4, 2]), min_size=2, max_size=2),
    count=st.sampled_from([2, 200]),
)
@settings(deadline=None, max_examples=30)
def test_few_and_many_ids_bags_and_outputs_see_the_same_rows(
    widths: list[int], bits: list[int], count: int
) -> None:
    choices = [_choice(widths, bits), SPACE.full()]
    layer, bag = _layer(), _layer(mode="sum")
    output = SupernetLinear(SPEC, bias=False).eval()
    output.load_state_dict({f"fields.0.{key}": v for key, v in layer.state_dict().items()})
    output.eval()
    rng = np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(0, 40, count))
    for each in (layer, bag, output):
        set_choices(each, SPACE, choices)
    found = layer(ids)
    rows = [layer.rows(choice) for choice in (0, 1)]
    half = count // 2
    wanted = torch.cat([rows[0][ids[:half]], rows[1][ids[half:]]])
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(bag(ids.unsqueeze(1)), wanted)
    vectors = torch.randn(2, 4)
    products = torch.stack([vectors[0] @ rows[0].T, vectors[1] @ rows[1].T])
    torch.testing.assert_close(output(vectors), products)


def test_gradients_pass_as_if_nothing_were_rounded() -> None:
    layer = _layer()
    ids = torch.tensor([1, 7, 7])
    grads = []
    for bits in ([2, 2], [32, 32]):
        layer.zero_grad()
        set_choices(layer, SPACE, [_choice([4, 3], bits)])
        (layer(ids) * torch.arange(12.0).view(3, 4)).sum().backward()
        assert layer.weight.grad is not None
        grads.append(layer.weight.grad.clone())
    assert torch.equal(*grads)


def test_the_spread_is_measured_now_and_then_and_before_an_evaluation() -> None:
    layer = _layer().train()
    set_choices(layer, SPACE, [_choice([4, 4], [2, 2])])
    ids = torch.arange(40)
    layer(ids)
    before = layer(ids)
    with torch.no_grad():
        layer.weight.mul_(4.0)
    # The grid is still the old one: nothing lies beyond its outermost level.
    torch.testing.assert_close(layer(ids).abs().amax(), before.abs().amax())
    layer.eval()
    torch.testing.assert_close(layer(ids), 4 * before)
    again = copy.deepcopy(layer)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again(ids), layer(ids))
    layer.train()
    with torch.no_grad():
        layer.weight.mul_(2.0)
    for _ in range(20):
        last = layer(ids)
    torch.testing.assert_close(last, 8 * before)


@pytest.mark.parametrize("measured", [36, 35, 12, 5])
def test_of_many_rows_some_are_measured(monkeypatch: pytest.MonkeyPatch, measured: int) -> None:
    monkeypatch.setattr(_supernet_rounding, "_MEASURED", measured)
    layer = _layer()
    distance = math.ceil(36 / measured)
    with torch.no_grad():
        # The head is measured as a whole.
        layer.weight[:4], layer.weight[4:] = 2.0, 100.0
        layer.weight[4:40:distance] = 3.0
    layer.train().eval()
    assert layer._spread is not None
    expected = torch.tensor([2.0, 3.0]).unsqueeze(1).expand(2, 4)
    torch.testing.assert_close(layer._spread.spread[:2], expected)


def test_the_step_is_that_of_the_columns_that_are_kept() -> None:
    layer = _layer()
    with torch.no_grad():
        layer.weight[:, 2:] *= 10.0
    layer.train().eval()
    set_choices(layer, SPACE, [_choice([3, 2], [4, 4]), _choice([4, 4], [8, 4])])
    ids = torch.arange(4, 40)
    narrow, wide = layer(torch.cat([ids, ids])).detach().split(36)
    rows = layer.weight.detach()[4:40]
    torch.testing.assert_close(narrow[:, :2].double(), _on_grid(rows[:, :2], rows[:, :2], 4))
    torch.testing.assert_close(wide.double(), _on_grid(rows, rows, 4))


def test_rows_of_zeros_stay_zero() -> None:
    layer = _layer()
    with torch.no_grad():
        layer.weight.zero_()
    layer.train().eval()
    set_choices(layer, SPACE, [_choice([4, 4], [2, 2])])
    assert not layer(torch.arange(40)).any()


def test_blocks_are_priced_without_rounding_and_it_goes_on_afterwards() -> None:
    layer = _layer()
    set_choices(layer, SPACE, [_choice([4, 4], [2, 2])])
    ids = torch.tensor([0, 5])
    before = layer(ids)
    path = Path({"t": (2, 1)}, {"t": (4, 4)}, share=0.5)
    (found,) = mask_gradients(layer, [path], lambda: layer(ids).sum())
    rows = layer.weight.detach()[[0, 5]]
    np.testing.assert_allclose(found["t"], rows.double().numpy(), rtol=1e-6)
    assert torch.equal(layer(ids), before)


def test_a_supernet_of_float32_is_not_given_codes() -> None:
    layer = SupernetEmbedding(EmbeddingSpec("t", 40, 4, row_blocks=[4, 36]))
    set_choices(layer, SPACE, [_choice([4, 4], [32, 16])])
    with pytest.raises(ValueError, match="The layer 't' was made for float32 alone"):
        set_choices(layer, SPACE, [_choice([4, 4], [4, 2])])


def test_a_swapped_layer_that_starts_anew_is_rounded_by_its_new_rows() -> None:
    model = nn.Embedding(40, 4)
    with torch.no_grad():
        model.weight.mul_(1000)
    space = make_searchable(model, precisions=(2,))
    model.eval()
    set_choices(model, space, [space.full()])
    model.reset_parameters()
    assert model(torch.arange(40)).abs().max() < 3
