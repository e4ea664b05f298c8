"""Rows in few bits: what is trained is rounded as it will be stored.

A number of 8, 4 or 2 bits is one of the levels ``(code + 1/2 - 2**(bits - 1)) * step``, with
``code`` from 0 to ``2**bits - 1``; each column of a tier has a step of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from optuna_nis.space.precision import CODES

# Of a column whose numbers are spread as a bell curve with a standard deviation of 1, the step
# with which least is lost (Max, 1960, "Quantizing for Minimum Distortion", table II).
_BEST_STEPS = {8: 0.0308, 4: 0.3352, 2: 0.9957}


def step_of(weight: Tensor, bits: int) -> Tensor:
    """The steps with which rows are rounded, as exact as they are stored.

    Args:
        weight: The rows, shape ``(rows, columns)``.
        bits: Bits of a number, 8, 4 or 2.

    Returns:
        Shape ``(columns,)``, numbers that float16 has, in the type of the rows.
    """
    spread = weight.detach().float().square().mean(0).sqrt()
    step = (_BEST_STEPS[bits] * spread).half()
    # A column of zeros has no spread, and one next to it none that float16 knows.
    return step.clamp(min=torch.finfo(torch.float16).tiny).to(weight.dtype)


def rounded(rows: Tensor, step: Tensor | None, bits: int) -> Tensor:
    """Rows as they will be stored, with gradients as if they were not rounded.

    Args:
        rows: Shape ``(*, columns)``.
        step: Of each column; None where numbers are floats.
        bits: Bits of a number.
    """
    if bits == 32:
        return rows
    with torch.no_grad():
        if step is None:
            difference = rows.half().to(rows.dtype) - rows
        else:
            low, high = _codes(bits)
            levels = (rows / step).floor_().clamp_(low, high).add_(0.5)
            difference = levels.mul_(step).sub_(rows)
    return rows + difference


def codes_of(rows: Tensor, step: Tensor, bits: int) -> Tensor:
    """The codes of rows, of type uint8 and the shape of the rows."""
    low, high = _codes(bits)
    return ((rows / step).floor_().clamp_(low, high) - low).to(torch.uint8)


def rows_of(codes: Tensor, step: Tensor, bits: int) -> Tensor:
    """The rows of codes, of the type of the steps."""
    low, _ = _codes(bits)
    return codes.to(step.dtype, copy=True).add_(low + 0.5).mul_(step)


def _codes(bits: int) -> tuple[int, int]:
    """The lowest and the highest code, as whole numbers around zero."""
    assert bits in CODES
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
