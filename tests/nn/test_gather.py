from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from optuna_nis.nn._gather import gather, look_up


def _tables(*rows: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 20, generator=generator).double().requires_grad_() for n in rows]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_rows_and_their_gradients_are_those_of_lookups_side_by_side(dtype: torch.dtype) -> None:
    tables = _tables(7, 5, 1, 6)
    places = [torch.tensor([0, 6, 6, 6, 2]), torch.tensor([5, 0, 9, 4, 5]), torch.zeros(5)]
    places = [own.to(dtype) for own in places]
    found = gather([*tables, tables[0][:5] * 2], [*places, places[0] % 6, None])
    # Ids beyond the last row have zeros.
    padded = [functional.pad(table, (0, 0, 0, 9)) for table in tables]
    pairs = zip([*places, places[0] % 6], padded)
    expected = [functional.embedding(own, table) for own, table in pairs]
    expected_rows = torch.stack([*expected, tables[0][:5] * 2], 1)
    assert torch.equal(found, expected_rows)
    grad = torch.randn(found.shape, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(found, tables, grad), torch.autograd.grad(expected_rows, tables, grad)
    )


def test_what_is_not_trained_has_no_gradient() -> None:
    trained, fixed = _tables(3, 4)
    places = [torch.tensor([0, 2]), torch.tensor([1, 1])]
    found = gather([trained, fixed.detach()], places).sum()
    (grad,) = torch.autograd.grad(found, [trained])
    assert grad[:, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize("shape", [(6,), (2, 3), (0,), ()])
def test_a_lookup_keeps_the_shape_of_ids(shape: tuple[int, ...]) -> None:
    (table,) = _tables(4)
    ids = torch.randint(4, shape)
    found, expected = look_up(ids, table), functional.embedding(ids, table)
    assert torch.equal(found, expected)
    grad = torch.randn_like(found)
    torch.testing.assert_close(
        torch.autograd.grad(found, table, grad), torch.autograd.grad(expected, table, grad)
    )
