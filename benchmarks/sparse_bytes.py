"""Bytes of tables of which some numbers or some ids are left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_HALF, _POINTER = 2, 4
# Numbers between two counts of a bit map, by which a place is found in it.
_COUNTED = 512


def sparse_nbytes(mask: NDArray[np.bool_]) -> int:
    """Bytes of the numbers of a table that are kept, in float16, and of their places.

    By the shortest of three ways to say which they are: their columns row by row, their rows
    column by column, or a bit for each number.

    Args:
        mask: Which numbers are kept, of shape ``(rows, columns)``.
    """
    rows, columns = mask.shape
    kept = int(np.count_nonzero(mask))
    if kept == 0:
        return 0
    by_row = kept * _index_nbytes(columns) + _POINTER * (rows + 1)
    by_column = kept * _index_nbytes(rows) + _POINTER * (columns + 1)
    places = min(by_row, by_column, _bit_map_nbytes(mask.size))
    return _HALF * kept + (0 if kept == mask.size else places)


def kept_nbytes(num_ids: int, kept: int, width: int) -> int:
    """Bytes of the ids of a table that are kept, in float16, and of which these are."""
    if kept == 0:
        return 0
    places = 0 if kept == num_ids else min(_bit_map_nbytes(num_ids), kept * _index_nbytes(num_ids))
    return _HALF * kept * width + places


def mixed_nbytes(bits: NDArray[np.int64], width: int) -> int:
    """Bytes of the rows of a feature whose ids have so many bits a number, by rank.

    A run of ids with the same bits is told by where it ends and by its bits, in 5 bytes.
    """
    rows = int((-(-width * bits // 8)).sum())
    runs = 1 + int(np.count_nonzero(np.diff(bits)))
    return rows + (_POINTER + 1) * runs


def _index_nbytes(number: int) -> int:
    return 1 if number <= 2**8 else 2 if number <= 2**16 else 4


def _bit_map_nbytes(number: int) -> int:
    return -(-number // 8) + _POINTER * -(-number // _COUNTED)
