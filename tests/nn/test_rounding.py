"""Numbers in few bits are the levels they will be stored as; gradients are as if they were not."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch
from torch import Tensor

from optuna_nis import TableAllocation, Tier
from optuna_nis.nn import MultiSizeEmbedding, MultiSizeEmbeddingBag
from optuna_nis.nn._rounding import (
    BEST_STEPS,
    codes_of,
    rounded,
    rows_of,
    spread_of,
    step_of,
)

_BITS = sorted(BEST_STEPS)


@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from(_BITS),
    std=st.sampled_from([1e-6, 1e-3, 1.0, 300.0]),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_numbers_are_at_the_nearest_level(
    bits: int, std: float, seed: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(seed)
    rows = (torch.randn(30, 5) * std).to(dtype)
    spread = spread_of(rows)
    found = rounded(rows, spread, bits)
    assert found.dtype == dtype
    step = step_of(spread, bits)
    assert step.dtype == torch.float16
    codes = codes_of(rows, step, bits)
    assert int(codes.max()) < 2**bits
    # To the bit, in the type of the model.
    assert torch.equal(rows_of(codes, step.to(dtype), bits), found)
    levels = (torch.arange(2**bits) + 0.5 - 2 ** (bits - 1)).double() * step.double()
    nearest = (rows.double().unsqueeze(-1) - levels).abs().min(-1).values
    tolerance = torch.finfo(dtype).eps * 2**bits * step.double()
    assert bool(((rows.double() - found.double()).abs() <= nearest + tolerance).all())


@pytest.mark.parametrize("bits", _BITS)
def test_the_steps_are_the_best_of_bell_curves(bits: int) -> None:
    torch.manual_seed(0)
    rows = torch.randn(100_000, 1)
    errors = [
        float((rounded(rows, torch.tensor([spread]), bits) - rows).square().mean())
        for spread in (0.8, 1.0, 1.25)
    ]
    assert errors[1] == min(errors)


def test_halves_are_those_of_float16() -> None:
    rows = torch.randn(50, requires_grad=True)
    found = rounded(rows, None, 16)
    assert torch.equal(found, rows.detach().half().float())
    assert not torch.equal(found, rows)
    found.backward(torch.arange(50.0))
    assert rows.grad is not None
    assert torch.equal(rows.grad, torch.arange(50.0))


@pytest.mark.parametrize("bits", _BITS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradients(bits: int, sign: float) -> None:
    torch.manual_seed(0)
    rows = torch.randn(40, 3, requires_grad=True)
    # Half the numbers are beyond the outermost levels.
    spread = torch.tensor([sign * 0.67 / 2 ** (bits - 1) / BEST_STEPS[bits]], requires_grad=True)
    weights = torch.randn(40, 3)
    found = rounded(rows, spread, bits, scale=1.0)
    (found * weights).sum().backward()
    assert torch.equal(rows.grad, weights)  # type: ignore[arg-type]
    step = step_of(spread, bits).float()
    parts, levels = rows.detach() / step, found.detach() / step
    beyond = parts.abs() > 2 ** (bits - 1)
    assert 0.3 < float(beyond.float().mean()) < 0.7
    slopes = torch.where(beyond, levels, levels - parts)
    assert spread.grad is not None
    torch.testing.assert_close(spread.grad, sign * (weights * slopes).sum().view(1))


def test_rows_of_zeros_can_be_left() -> None:
    rows = torch.zeros(4, 2)
    spread = spread_of(rows).requires_grad_()
    found = rounded(rows, spread, 4, scale=1.0)
    assert bool(found.isfinite().all())
    found.sum().backward()
    assert spread.grad is not None
    assert float(spread.grad) == pytest.approx(4.0)


def test_nothing_is_kept_where_nothing_is_trained() -> None:
    rows, spread = torch.randn(4, 2), torch.ones(1)
    assert not rounded(rows, spread, 2).requires_grad
    rows.requires_grad_()
    assert rounded(rows, spread, 32) is rows
    with torch.no_grad():
        assert not rounded(rows, spread, 2).requires_grad
    found = rounded(rows, spread, 2)
    found.sum().backward()
    assert torch.equal(rows.grad, torch.ones(4, 2))  # type: ignore[arg-type]
    assert spread.grad is None


@pytest.mark.parametrize("like", [torch.empty(3, 4, device="meta"), torch.empty(3, 4).half()])
def test_spreads_of_other_tensors(like: Tensor) -> None:
    spread = spread_of(like)
    assert (spread.shape, spread.device, spread.dtype) == ((1,), like.device, torch.float32)


@pytest.mark.parametrize("bits", [32, 16, 8, 4, 2])
@pytest.mark.parametrize("kind", [MultiSizeEmbedding, MultiSizeEmbeddingBag])
def test_derivatives_are_the_same_forwards_and_backwards(kind: Any, bits: int) -> None:
    torch.manual_seed(0)
    tiers = (Tier(3, 5, bits), Tier(9, 3, bits))
    layer = kind(TableAllocation("user", 40, 5, tiers), init_std=1.0)
    ids = torch.randint(0, 12, (6, 3))
    weights = {name: own.detach() for name, own in layer.named_parameters()}
    changes = {name: torch.randn_like(own) for name, own in weights.items()}

    def total(own: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, own, (ids,)).pow(2).sum()

    slopes = torch.func.grad(total)(weights)
    expected = sum((slopes[name] * change).sum() for name, change in changes.items())
    _, found = torch.func.jvp(total, (weights,), (changes,))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
