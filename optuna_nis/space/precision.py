"""Bits of a number in a table, and the bytes that its parts take when they are stored.

A number of 32 or 16 bits is a float. In 8, 4 or 2 bits it is a code, one of ``2**bits`` levels at
equal steps around zero; codes of a row lie side by side, and a row begins at a whole byte.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

PRECISIONS = (32, 16, 8, 4, 2)
#: The precisions in which numbers are codes, with a step beside them.
CODES = (8, 4, 2)

# Of numbers that are spread as a bell curve: the mean square of what the best equal steps round
# away, as a share of their own (Max, 1960, "Quantizing for Minimum Distortion", table II).
_ROUNDED_AWAY = {32: 0.0, 16: 0.0, 8: 1.2e-4, 4: 0.01154, 2: 0.1188}
# So much of that is lost for good: a model trained with rounded rows makes up for the rest.
_NOT_MADE_UP_FOR = 0.1

_Number = TypeVar("_Number", int, NDArray[np.int64])


def check_precisions(precisions: int | Iterable[int], name: str | None = None) -> tuple[int, ...]:
    """Precisions of a feature or of all, the most exact first.

    Raises:
        ValueError: If there is none, one comes twice or is unknown.
    """
    if isinstance(precisions, str) or not isinstance(precisions, Iterable):
        precisions = [precisions]
    found = tuple(precisions)
    known = [bits for bits in PRECISIONS if bits in found]
    if not found or len(known) < len(found):
        of = "" if name is None else f" of {name!r}"
        raise ValueError(
            f"`precisions`{of} must hold some of {list(PRECISIONS)}, the bits that a number may "
            f"have, each once, got {list(found)}."
        )
    return tuple(known)


def row_nbytes(embedding_dim: _Number, bits: int) -> _Number:
    """Bytes of a row."""
    return -(-embedding_dim * bits // 8)


def step_nbytes(bits: int) -> int:
    """Bytes of the step that rows of one width and precision share: a float16."""
    return 2 if bits in CODES else 0


def projection_nbytes(widest: _Number, embedding_dim: int, bits: int) -> _Number:
    """Bytes of a projection by the precision of the first rows that need one."""
    return widest * embedding_dim * (4 if bits == 32 else 2)


def kept_share(bits: int) -> float:
    """The part of what rows are worth that is left when their numbers are rounded."""
    return 1.0 - _NOT_MADE_UP_FOR * _ROUNDED_AWAY[bits]
