"""Compiled loops for batches on the CPU, where they were built; torch and numpy do all of it too.

Installing compiles them where there is a C compiler, and goes on without where there is none.
"""

from __future__ import annotations

from collections.abc import Sequence
import os
from typing import NamedTuple

import torch
from torch import Tensor

from optuna_nis.space.precision import CODES

try:
    from optuna_nis.nn import _kernels
except ImportError:
    _kernels = None  # type: ignore[assignment]

# Numbers of a table whose dense gradient one thread goes over.
_MOST_DENSE = 1 << 16
# Set to 1 before the import, all is done without them.
_IS_USED = _kernels is not None and os.environ.get("OPTUNA_NIS_NO_KERNELS", "") in ("", "0")


class DistinctRows(NamedTuple):
    """The distinct rows of a batch, from the first table to the last, then those beyond all.

    Attributes:
        rows: Which row of its table each is.
        sizes: How many are in each table; at last how many are beyond all.
        order: Where in the batch they are, one after the other, of shape ``(n,)``.
        starts: Where in ``order`` each of them starts.
        inverse: Which of them each place of the batch has, of shape ``(n,)``.
    """

    rows: Tensor
    sizes: list[int]
    order: Tensor
    starts: Tensor
    inverse: Tensor


def distinct(ranks: Tensor, tables: Sequence[int], highest: int) -> DistinctRows | None:
    """Find the distinct rows of a batch, and which of some tables they are in.

    Args:
        ranks: Shape ``(n,)``, int64 from 0 on, on the CPU.
        tables: Number of rows of each table, one after the other.
        highest: The highest rank there may be.

    Returns:
        None where this is not built, or numbers are too large for it.

    Raises:
        IndexError: If a rank is out of range.
    """
    n = len(ranks)
    fits = ranks.is_cpu and ranks.dtype is torch.int64 and _has_memory(ranks)
    if not (_IS_USED and fits) or highest.bit_length() + n.bit_length() > 63:
        return None
    ranks = ranks.contiguous()
    order, starts, rows, inverse = torch.empty(4, n, dtype=torch.int64, device="cpu").unbind()
    sizes = _kernels.distinct(
        ranks.data_ptr(),
        n,
        highest,
        [*tables],
        order.data_ptr(),
        starts.data_ptr(),
        rows.data_ptr(),
        inverse.data_ptr(),
    )
    found = sum(sizes)
    return DistinctRows(rows[:found], sizes, order, starts[:found], inverse)


def rowwise_adagrad(weight: Tensor, total: Tensor, grad: Tensor, lr: float, eps: float) -> bool:
    """Move the rows of a table by row-wise Adagrad, in place.

    Args:
        weight: Shape ``(rows, width)``.
        total: The sums of the mean squares of gradients, shape ``(rows,)``.
        grad: The gradient of the table, dense or sparse.
        lr: Learning rate.
        eps: Added to the root.

    Returns:
        Whether it was done. It is not, and nothing is changed, where this is not built, for other
        tensors than contiguous ones of float32 on the CPU, for large dense gradients, and where
        the rows of a sparse one do not rise.
    """
    if not _IS_USED or weight.dim() != 2 or total.shape != weight.shape[:1]:
        return False
    if grad.is_sparse:
        rows, values = grad._indices(), grad._values()
        fits = rows.shape == (1, len(values)) and values.shape[1:] == weight.shape[1:]
        fits = fits and rows.is_contiguous()
    else:
        rows, values = None, grad
        # Of large tables torch takes all threads.
        fits = grad.shape == weight.shape and weight.numel() <= _MOST_DENSE
    if not len(values):
        return False
    if not (fits and _is_plain(weight) and _is_plain(total) and _is_plain(values)):
        return False
    done = _kernels.rowwise_adagrad(
        weight.data_ptr(),
        total.data_ptr(),
        len(weight),
        0 if rows is None else rows.data_ptr(),
        values.data_ptr(),
        len(values),
        weight.shape[1],
        lr,
        eps,
    )
    if done:
        # Both at once only newer versions of torch take.
        torch.autograd.graph.increment_version(weight)
        torch.autograd.graph.increment_version(total)
    return done


def adds(table: Tensor) -> bool:
    """Whether rows are added to those of such a table by :func:`add_rows`."""
    return _IS_USED and _is_float32(table)


def add_rows(total: Tensor, rows: Tensor, values: Tensor) -> bool:
    """Add rows to those of a table, in place.

    Args:
        total: The table, shape ``(num_rows, width)``.
        rows: Which row each is added to, shape ``(n,)``.
        values: Shape ``(n, width)``; the numbers of a row are next to each other.

    Returns:
        Whether it was done. It is not, and nothing is changed, where this is not built, and for
        others than int64 and float32 on the CPU.

    Raises:
        IndexError: If a row is out of range.
    """
    if not (_IS_USED and _is_rows(rows) and _is_plain(total)):
        return False
    size, width = total.shape
    if values.shape != (len(rows), width) or values.stride(1) != 1:
        return False
    if not (_is_float32(values) and _has_memory(values)):
        return False
    _kernels.add_rows(
        total.data_ptr(),
        size,
        rows.data_ptr(),
        values.data_ptr(),
        len(rows),
        width,
        values.stride(0),
    )
    torch.autograd.graph.increment_version(total)
    return True


def gather(tables: Sequence[Tensor], places: Sequence[Tensor | None]) -> Tensor | None:
    """Rows of several tables side by side.

    Args:
        tables: Each of shape ``(rows, width)``.
        places: Which row of each table each example has, shape ``(batch,)``; None where a table
            has a row for each.

    Returns:
        Shape ``(batch, tables, width)``, zeros for rows beyond a table; None where this is not
        built, and for others than int64 and float32 on the CPU.

    Raises:
        IndexError: If a row is below 0.
    """
    batch, width = len(tables[0] if places[0] is None else places[0]), tables[0].shape[1]
    if any(own is None and len(table) != batch for table, own in zip(tables, places)):
        return None
    if not _are_columns(tables, places, batch, width):
        return None
    out = torch.empty(batch, len(tables), width, dtype=torch.float32, device="cpu")
    _kernels.gather(_columns(tables, places), out.data_ptr(), batch, width)
    return out


def scatter(totals: Sequence[Tensor], places: Sequence[Tensor | None], values: Tensor) -> bool:
    """Add what examples have to rows of several tables, in place; what is beyond them to none.

    Args:
        totals: The tables, each of shape ``(rows, width)``.
        places: As in :func:`gather`.
        values: Shape ``(batch, tables, width)``.

    Returns:
        Whether it was done; it is not, and nothing is changed, where :func:`gather` gives None.

    Raises:
        IndexError: If a row is below 0.
    """
    batch, _, width = values.shape
    if not (_is_plain(values) and _are_columns(totals, places, batch, width)):
        return False
    _kernels.scatter(_columns(totals, places), values.data_ptr(), batch, width)
    for total in totals:
        torch.autograd.graph.increment_version(total)
    return True


def _are_columns(
    tables: Sequence[Tensor], places: Sequence[Tensor | None], batch: int, width: int
) -> bool:
    """Whether compiled loops are for such tables, and rows of so many examples."""
    rows = all(own is None or (_is_rows(own) and len(own) == batch) for own in places)
    return rows and multiplies(tables) and all(table.shape[1:] == (width,) for table in tables)


def _columns(
    tables: Sequence[Tensor], places: Sequence[Tensor | None]
) -> list[tuple[int, int, int]]:
    return [(table.data_ptr(), len(table), _address(own)) for table, own in zip(tables, places)]


class Taken(NamedTuple):
    """Rows of a table, and what they are multiplied by.

    Attributes:
        table: Shape ``(num_rows, width)``.
        rows: Which rows, int64 of shape ``(n,)``.
        kept: Where the rows are written, shape ``(n, width)``.
        matrix: Shape ``(width, columns)``; None where they are not multiplied.
        output: Where the product is written, shape ``(n, columns)``.
    """

    table: Tensor
    rows: Tensor
    kept: Tensor
    matrix: Tensor | None
    output: Tensor | None


class Multiplied(NamedTuple):
    """Rows that were multiplied by a matrix, and the gradient of the product.

    Attributes:
        slopes: The gradient, shape ``(n, columns)``.
        kept: The rows, shape ``(n, width)``.
        matrix: Shape ``(width, columns)``.
        of_rows: Where the gradient of the rows is written; None where there is to be none.
        of_matrix: What the gradient of the matrix is added to; None where there is to be none.
    """

    slopes: Tensor
    kept: Tensor
    matrix: Tensor
    of_rows: Tensor | None
    of_matrix: Tensor | None


def multiplies(tables: Sequence[Tensor]) -> bool:
    """Whether :func:`take_rows` and :func:`multiply_back` are for such tables and matrices."""
    return _IS_USED and all(_is_plain(table) for table in tables)


def take_rows(parts: Sequence[Taken], columns: int) -> None:
    """Copy rows of some tables, and multiply them by a matrix where there is one.

    Args:
        parts: Of tensors for which :func:`multiplies` holds.
        columns: Of all matrices.

    Raises:
        IndexError: If a row is out of range.
    """
    _kernels.take_rows(
        [
            (
                part.table.data_ptr(),
                len(part.table),
                part.rows.data_ptr(),
                *part.kept.shape,
                part.kept.data_ptr(),
                _address(part.matrix),
                _address(part.output),
            )
            for part in parts
        ],
        columns,
    )


def multiply_back(parts: Sequence[Multiplied], columns: int) -> None:
    """The gradients of rows that were multiplied by a matrix, and of the matrix.

    Args:
        parts: Of tensors for which :func:`multiplies` holds.
        columns: Of all matrices.
    """
    _kernels.multiply_back(
        [
            (
                part.slopes.data_ptr(),
                *part.kept.shape,
                part.kept.data_ptr(),
                part.matrix.data_ptr(),
                _address(part.of_rows),
                _address(part.of_matrix),
            )
            for part in parts
        ],
        columns,
    )


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def unpacked(codes: Tensor, rows: Tensor, step: Tensor, bits: int, columns: int) -> Tensor | None:
    """Rows of a table of packed codes.

    Args:
        codes: As :func:`~optuna_nis.nn.packed.pack` gives them, on the CPU.
        rows: Shape ``(n,)``.
        step: Shape ``(1,)``.
        bits: Bits of a code, 8, 4 or 2.
        columns: Codes of a row.

    Returns:
        Shape ``(n, columns)``, of type float32; None where this is not built.

    Raises:
        IndexError: If a row is out of range.
    """
    width = -(-columns * bits // 8)
    fits = codes.dtype is torch.uint8 and codes.shape[1:] == (width,) and codes.is_contiguous()
    if not (_IS_USED and fits and codes.is_cpu and rows.is_cpu and _has_memory(codes)):
        return None
    assert bits in CODES
    rows = rows.long().contiguous()
    out = torch.empty(len(rows), columns, dtype=torch.float32, device="cpu")
    _kernels.unpack(
        out.data_ptr(),
        codes.data_ptr(),
        len(codes),
        rows.data_ptr(),
        len(rows),
        columns,
        bits,
        step.item(),
    )
    return out


def _is_rows(rows: Tensor) -> bool:
    """Whether a tensor is nothing but int64 numbers on the CPU, one after the other."""
    fits = rows.is_cpu and rows.dtype is torch.int64 and rows.is_contiguous()
    return fits and _has_memory(rows)


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but its numbers, in float32, one after the other."""
    return tensor.is_contiguous() and _is_float32(tensor) and _has_memory(tensor)


def _is_float32(tensor: Tensor) -> bool:
    """Whether a tensor is nothing but its numbers, in float32."""
    return (
        tensor.dtype is torch.float32
        and tensor.is_cpu
        and type(tensor) in (Tensor, torch.nn.Parameter)
        # Of these, what is in memory is not what they are.
        and not tensor.is_neg()
        and not tensor._is_zerotensor()
    )


def _has_memory(tensor: Tensor) -> bool:
    """Whether its numbers are there; sharding gives back what is elsewhere for a while."""
    end = (tensor.storage_offset() + tensor.numel()) * tensor.element_size()
    return not tensor.numel() or tensor.untyped_storage().nbytes() >= end
