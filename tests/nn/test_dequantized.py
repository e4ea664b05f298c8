"""Rows that a kernel of torch turns back are those that are turned back number by number."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from optuna_nis import TableAllocation, Tier
from optuna_nis.nn import MultiSizeEmbeddingBag, freeze, packed
from optuna_nis.nn._dequantized import dequantized, has_kernel
from optuna_nis.nn._rounding import rows_of
from optuna_nis.nn.packed import pack
from optuna_nis.space.precision import CODES


def _table(bits: int, columns: int, step: float) -> tuple[Tensor, Tensor, Tensor]:
    """Packed codes, their step, and the rows that they stand for."""
    codes = torch.randint(0, 2**bits, (50, columns), dtype=torch.uint8)
    steps = torch.tensor([step]).clamp(min=torch.finfo(torch.half).tiny).half()
    return pack(codes, bits), steps, rows_of(codes, steps.float(), bits)


@settings(deadline=None, max_examples=60)
@given(
    bits=st.sampled_from(CODES),
    columns=st.integers(1, 70),
    step=st.floats(1e-4, 60_000),
    number=st.integers(0, 40),
    seed=st.integers(0, 99),
)
def test_rows_are_the_same_to_the_bit(
    bits: int, columns: int, step: float, number: int, seed: int
) -> None:
    torch.manual_seed(seed)
    table, steps, rows = _table(bits, columns, step)
    ids = torch.randint(0, 50, (number,))
    found = dequantized(table, ids, steps, bits, columns)
    assert torch.equal(found, rows[ids])


@pytest.mark.parametrize("bits", CODES)
@pytest.mark.parametrize("columns", [3, 8, 64])
@pytest.mark.parametrize("weighted", [False, True])
def test_bags_are_their_sums(bits: int, columns: int, weighted: bool) -> None:
    table, steps, rows = _table(bits, columns, 0.25)
    # The second and the last are empty.
    ids, starts = torch.randint(0, 50, (9,)), torch.tensor([0, 4, 4, 9])
    weights = torch.rand(9) if weighted else None
    expected = functional.embedding_bag(ids, rows, starts, mode="sum", per_sample_weights=weights)
    found = dequantized(table, ids, steps, bits, columns, starts, weights)
    torch.testing.assert_close(found, expected)
    assert not found[[1, 3]].any()


def test_where_there_is_no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not has_kernel(torch.empty(3, 2, dtype=torch.uint8, device="meta"), torch.float32)
    assert not has_kernel(torch.empty(3, 2, dtype=torch.uint8), torch.float64)
    table = TableAllocation("f", 50, 8, (Tier(20, 8, 8), Tier(30, 5, 4)))
    layer = freeze(MultiSizeEmbeddingBag(table, mode="sum", init_std=1.0)).eval()
    ids = torch.randint(0, 51, (7, 4))
    expected = layer(ids)
    monkeypatch.setattr(packed, "has_kernel", lambda codes, dtype: False)
    torch.testing.assert_close(layer(ids), expected)


@pytest.mark.parametrize("bits", CODES)
def test_weights_get_their_gradients(bits: int) -> None:
    table = TableAllocation("f", 50, 8, (Tier(20, 8), Tier(30, 5, bits)))
    layer = MultiSizeEmbeddingBag(table, mode="sum", init_std=1.0).eval()
    ids, gradients = torch.randint(0, 51, (7, 4)), []
    for each in (layer, freeze(layer).eval()):
        weights = torch.rand(7, 4, generator=torch.manual_seed(0)).requires_grad_()
        each(ids, per_sample_weights=weights).sum().backward()
        gradients.append(weights.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("bits", CODES)
def test_another_default_device_changes_nothing(bits: int) -> None:
    table, steps, rows = _table(bits, 8, 0.25)
    ids = torch.randint(0, 50, (9,))
    with torch.device("meta"):
        found = dequantized(table, ids, steps, bits, 8)
    assert torch.equal(found, rows[ids])
