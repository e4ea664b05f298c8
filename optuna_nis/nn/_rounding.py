"""Rows in few bits: what is trained is rounded as it will be stored.

A number of 8, 4 or 2 bits is one of the levels ``(code + 1/2 - 2**(bits - 1)) * step``, with
``code`` from 0 to ``2**bits - 1``. The rows of a tier share a step, which is trained with them
(Esser et al., 2020, "Learned Step Size Quantization"): what is trained is how far their numbers
are taken to be spread, of which the step is a fixed part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from optuna_nis.nn._tracing import is_scripted, is_traced
from optuna_nis.space.precision import CODES

# Of numbers that are spread as a bell curve with a standard deviation of 1, the step with which
# least is lost (Max, 1960, "Quantizing for Minimum Distortion", table II).
BEST_STEPS = {8: 0.0308, 4: 0.3352, 2: 0.9957}


def spread_of(rows: Tensor) -> Tensor:
    """The root of the mean square of all numbers, with which a spread starts.

    Returns:
        Shape ``(1,)``, in floats of 32 bits or more, above zero.
    """
    exact = torch.promote_types(rows.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(rows.detach(), dtype=exact)
    # At zero it would have no gradient.
    return norm.div(rows.numel() ** 0.5).clamp(min=torch.finfo(torch.float16).tiny).view(1)


def step_of(spread: Tensor, bits: int) -> Tensor:
    """The step of codes as it is stored.

    Args:
        spread: Shape ``(1,)``; its sign says nothing.
        bits: Bits of a number, 8, 4 or 2.

    Returns:
        Shape ``(1,)``, in float16 and above zero.
    """
    return stored_steps((spread.detach().float() * BEST_STEPS[bits]).abs_())


def stored_steps(steps: Tensor) -> Tensor:
    """Steps above zero as float16 has them."""
    half = torch.finfo(torch.float16)
    return steps.clamp(half.tiny, half.max).half()


def rounded(rows: Tensor, spread: Tensor | None, bits: int, scale: float | None = None) -> Tensor:
    """Rows as they will be stored, with gradients as if they were not rounded.

    Args:
        rows: Shape ``(*, columns)``.
        spread: Shape ``(1,)``, from which the step comes; None where numbers are floats.
        bits: Bits of a number.
        scale: What a gradient of the step is multiplied by to give that of the spread; None if
            it has none.
    """
    if bits == 32:
        return rows
    if is_scripted():
        # The same operations with and without gradients, whose traces torch compares.
        return _straight_through(rows, spread, bits, scale)
    if has_tangent(rows) or has_tangent(spread):
        return _straight_through(rows, spread, bits, scale)
    if not torch.is_grad_enabled() or not (rows.requires_grad or scale is not None):
        return as_stored(rows, spread, bits)[0]
    if is_traced() and not torch.compiler.is_compiling():
        return _straight_through(rows, spread, bits, scale)
    found: Tensor = _Rounded.apply(rows, spread, bits, scale)  # type: ignore[no-untyped-call]
    return found


def has_tangent(tensor: Tensor | None) -> bool:
    """Whether derivatives are carried along with the numbers, forwards."""
    if tensor is None:
        return False
    found = forward_ad.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return found.tangent is not None


def _straight_through(
    rows: Tensor, spread: Tensor | None, bits: int, scale: float | None
) -> Tensor:
    """As :class:`_Rounded`, of nothing but operations of torch: zeros carry the gradients."""
    found, slopes = as_stored(
        rows.detach(), None if spread is None else spread.detach(), bits, sloped=scale is not None
    )
    found = found + (rows - rows.detach())
    if spread is None or slopes is None or scale is None:
        return found
    change = (spread - spread.detach()) * spread.detach().sign() * scale
    return found + slopes * change.to(rows.dtype)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, spread: Tensor | None, bits: int, scale: float | None
    ) -> Tensor:
        found, slopes = as_stored(rows, spread, bits, sloped=scale is not None)
        ctx.scale = scale
        ctx.save_for_backward(spread, slopes)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        of_spread = None
        if ctx.scale is not None:
            spread, slopes = ctx.saved_tensors
            of_spread = spread_gradient(grad, slopes, spread, ctx.scale)
        return grad, of_spread, None, None


def as_stored(
    rows: Tensor, spread: Tensor | None, bits: int, *, sloped: bool = False
) -> tuple[Tensor, Tensor | None]:
    """What :func:`rounded` gives, without gradients, and what its gradients need.

    Returns:
        The rows, and if they are wanted, how each number changes with the step.
    """
    if spread is None:
        return (rows if bits == 32 else rows.half().to(rows.dtype)), None
    step = step_of(spread, bits).to(rows.dtype)
    low, high = _codes(bits)
    parts = rows / step
    # Not clamped in place, which has no rule for batches (torch.func.vmap).
    # Both bounds are floats: ONNX has no operator for a whole number beside one.
    levels = parts.clamp(float(low), high + 0.5).floor_().add_(0.5)
    slopes = None
    if sloped:
        # Numbers between two levels stay where they are, those beyond all follow the outermost.
        slopes = functional.hardshrink(parts, high + 1.0).sub_(parts).add_(levels)
    return levels.mul_(step), slopes


def spread_gradient(grad: Tensor, slopes: Tensor, spread: Tensor, scale: float) -> Tensor:
    """The gradient of a spread.

    Args:
        grad: That of the rounded rows.
        slopes: As :func:`as_stored` gives them.
        spread: Shape ``(1,)``.
        scale: As in :func:`rounded`.
    """
    exact = torch.promote_types(grad.dtype, torch.float32)
    total = torch.dot(grad.reshape(-1).to(exact), slopes.reshape(-1).to(exact))
    return spread.sign().mul_(total.mul_(scale))


def codes_of(rows: Tensor, step: Tensor, bits: int) -> Tensor:
    """The codes of rows, of type uint8 and the shape of the rows."""
    low, high = _codes(bits)
    return ((rows / step.to(rows.dtype)).floor_().clamp_(low, high) - low).to(torch.uint8)


def rows_of(codes: Tensor, step: Tensor, bits: int) -> Tensor:
    """The rows of codes, of the type of the steps."""
    return codes.to(step.dtype, copy=True).add_(offset_of(bits)).mul_(step)


def offset_of(bits: int) -> float:
    """What is added to a code to give the multiple of the step that it stands for."""
    low, _ = _codes(bits)
    return low + 0.5


def _codes(bits: int) -> tuple[int, int]:
    """The lowest and the highest code, as whole numbers around zero."""
    assert bits in CODES
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
