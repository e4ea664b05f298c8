"""Rows of tables times what projects them, and back: by compiled loops, or torch where many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from optuna_nis.nn import _native
from optuna_nis.nn._native import Multiplied, Taken

# Multiplications from which on torch takes less time, with all threads.
_MANY = 1 << 21


def project(parts: Sequence[Taken], columns: int) -> None:
    """Copy rows of some tables, and multiply them by a matrix where there is one.

    Args:
        parts: Of tensors for which :func:`~optuna_nis.nn._native.multiplies` holds.
        columns: Of all matrices.
    """
    few, many = [], []
    for part in parts:
        if part.matrix is not None and part.output is not None and _are_many(part.kept, columns):
            many.append((part.kept, part.matrix, part.output))
            part = part._replace(matrix=None, output=None)
        few.append(part)
    _native.take_rows(few, columns)
    for kept, matrix, output in many:
        torch.mm(kept, matrix, out=output)


def project_back(parts: Sequence[Multiplied], columns: int) -> None:
    """The gradients of rows that :func:`project` multiplied, and of the matrices.

    Args:
        parts: As there.
        columns: Of all matrices.
    """
    few = []
    for part in parts:
        if not _are_many(part.kept, columns):
            few.append(part)
            continue
        if part.of_rows is not None:
            torch.mm(part.slopes, part.matrix.t(), out=part.of_rows)
        if part.of_matrix is not None:
            part.of_matrix.addmm_(part.kept.t(), part.slopes)
    _native.multiply_back(few, columns)


def _are_many(rows: Tensor, columns: int) -> bool:
    return rows.numel() * columns > _MANY
