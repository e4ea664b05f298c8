"""Packed rows on the CPU by the kernels that torch has for quantised embeddings.

They turn codes back, and add rows up, in one pass. The factor and the offset that they want after
the codes of each row are written for the rows of a batch alone: tables have one step for a tier.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from optuna_nis.nn._rounding import offset_of
from optuna_nis.nn._tracing import is_traced

_KERNELS = {
    8: "embedding_bag_byte_rowwise_offsets",
    4: "embedding_bag_4bit_rowwise_offsets",
    2: "embedding_bag_2bit_rowwise_offsets",
}


# The bytes of the numbers that make of a code the multiple of the step that it stands for.
_EXACT = {
    bits: torch.tensor(
        [1.0, offset_of(bits)], dtype=torch.float32 if bits == 8 else torch.half, device="cpu"
    ).view(torch.uint8)
    for bits in _KERNELS
}


def has_kernel(codes: Tensor, dtype: torch.dtype) -> bool:
    """Whether :func:`dequantized` is for some codes, and rows of some type."""
    return (
        codes.device.type == "cpu" and dtype is torch.float32 and not is_traced() and _has_fbgemm()
    )


@cache
def _has_fbgemm() -> bool:
    return "fbgemm" in torch.backends.quantized.supported_engines


def dequantized(
    codes: Tensor,
    ids: Tensor,
    step: Tensor,
    bits: int,
    columns: int,
    starts: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Rows of a table of packed codes, or the sums of bags of them.

    Rows are to the bit what unpacking and :func:`~optuna_nis.nn._rounding.rows_of` give: codes and
    steps have so few bits that their products need no rounding.

    Args:
        codes: As :func:`~optuna_nis.nn.packed.pack` gives them.
        ids: Shape ``(n,)``.
        step: Shape ``(1,)``.
        bits: Bits of a code, 8, 4 or 2.
        columns: Codes of a row.
        starts: Where each bag starts, shape ``(bags,)``; None for a row of each id.
        weights: What rows are multiplied by, shape ``(n,)``; it gets no gradient.

    Returns:
        Shape ``(n, columns)`` or ``(bags, columns)``, of type float32.
    """
    # Whole words are copied several times as fast as bytes.
    word = torch.int32 if codes.shape[1] % 4 == 0 else torch.uint8
    table, more = codes.view(word), _EXACT[bits].view(word)
    width = table.shape[1]
    rows = table.new_empty(ids.shape[0], width + more.shape[0])
    rows[:, width:] = more
    torch.index_select(table, 0, ids, out=rows[:, :width])
    factors = step.float().expand(ids.shape) if weights is None else weights.float() * step.float()
    places = torch.arange(ids.shape[0], dtype=torch.int32, device=codes.device)
    kernel = getattr(torch.ops.quantized, _KERNELS[bits])
    found: Tensor = kernel(
        rows.view(torch.uint8),
        places,
        places if starts is None else starts.int(),
        per_sample_weights=factors.contiguous(),
    )
    return found[:, :columns]
