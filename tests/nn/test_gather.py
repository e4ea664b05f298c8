from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from optuna_nis.nn import _native
from optuna_nis.nn._gather import bag_sums, gather, look_up


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


def test_a_table_may_be_there_several_times() -> None:
    one, other = _tables(4, 4)
    places = [torch.tensor([0, 3, 3]), torch.tensor([1, 3, 9]), torch.tensor([2, 2, 0])]
    rows = gather([one, other, one, one[:3] * 2], [*places, None])
    padded = functional.pad(other, (0, 0, 0, 9))
    expected = torch.stack([one[places[0]], padded[places[1]], one[places[2]], one[:3] * 2], 1)
    assert torch.equal(rows, expected)
    grad = torch.randn(rows.shape, dtype=torch.float64)
    found, wanted = (torch.autograd.grad(each, [one, other], grad) for each in (rows, expected))
    torch.testing.assert_close(found, wanted)


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


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (6, 1), (2, 0), (0, 3)])
def test_sums_of_bags_are_those_of_torch(shape: tuple[int, int], compiled: bool) -> None:
    table = _tables(4)[0].detach().float().requires_grad_()
    ids = torch.randint(4, shape, dtype=torch.int32)
    with mock.patch.object(_native, "_IS_USED", _native._IS_USED and compiled):
        found = bag_sums(ids, table)
        expected = functional.embedding(ids, table).sum(1)
        torch.testing.assert_close(found, expected)
        grad = torch.randn(len(found), 20)
        # A gradient whose rows are one row of memory, as sums have it.
        for own in (grad, torch.ones(()).expand_as(grad)):
            torch.testing.assert_close(
                torch.autograd.grad(found, table, own, retain_graph=True),
                torch.autograd.grad(expected, table, own, retain_graph=True),
            )


def test_bags_of_any_form_are_summed() -> None:
    table = _tables(4)[0].detach().float().requires_grad_()
    ids, offsets, weights = torch.tensor([3, 1, 1, 0]), torch.tensor([0, 1]), torch.rand(4)
    found = bag_sums(ids, table, offsets.int(), weights)
    expected = torch.stack([table[3] * weights[0], (table[ids[1:]].T * weights[1:]).sum(1)])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("compiled", [True, False])
def test_ids_that_are_changed_before_the_backward_pass_are_noticed(compiled: bool) -> None:
    table = _tables(4)[0].detach().float().requires_grad_()
    with mock.patch.object(_native, "_IS_USED", _native._IS_USED and compiled):
        for how in (look_up, bag_sums):
            ids = torch.tensor([[1, 3], [0, 2]])
            rows = how(ids, table)
            ids.zero_()
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                rows.sum().backward()


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("lengths", [(6, 3), (3, 6)])
def test_as_many_ids_are_wanted_of_all_tables(lengths: tuple[int, int], compiled: bool) -> None:
    tables = [own.detach().float().requires_grad_() for own in _tables(4, 5)]
    places = [torch.zeros(length, dtype=torch.int64) for length in lengths]
    with (
        mock.patch.object(_native, "_IS_USED", _native._IS_USED and compiled),
        pytest.raises(ValueError, match=rf"as many examples, got \[{lengths[0]}, {lengths[1]}\]"),
    ):
        gather(tables, places)
    assert _native.gather(tables, places) is None
    assert not _native.scatter(tables, places, torch.ones(6, 2, 20))


@pytest.mark.parametrize("compiled", [True, False])
def test_derivatives_of_derivatives_and_forwards(compiled: bool) -> None:
    tables = [own.detach().requires_grad_() for own in _tables(4, 5)]
    # Every second id, and some beyond the last row.
    ids = torch.tensor([3, 0, 1, 0, 6, 0, 3, 0])
    places = [ids[::2], torch.tensor([4, 4, 0, 1])]

    def total(*own: Tensor) -> Tensor:
        return gather([*own, own[1][:4] * 2], [*places, None]).pow(3).sum()

    with mock.patch.object(_native, "_IS_USED", _native._IS_USED and compiled):
        assert torch.autograd.gradcheck(total, tables, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(total, tables)


@pytest.mark.skipif(not _native._IS_USED, reason="needs a C compiler")
def test_columns_of_ids_are_gathered_by_compiled_loops() -> None:
    table = _tables(4)[0].detach().float().requires_grad_()
    ids = torch.randint(4, (9, 2))
    with mock.patch.object(_native, "add_rows", side_effect=AssertionError):
        rows = gather([table, table], ids.unbind(1))
        assert torch.equal(rows, table[ids])
        (grad,) = torch.autograd.grad(rows.sum(), table)
    assert grad[:, 0].tolist() == ids.flatten().bincount(minlength=4).tolist()
