"""Finding millions of values by their hashes, in arrays instead of objects."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
import pyarrow
from pyarrow import compute

IntArray = NDArray[np.int64]
_Hashes = NDArray[np.uint64]

TWICE: Final = "`values` must hold each value once."
"""Of a value that comes twice."""

_WORD: Final = 8
# By the number of bytes left in a text: what of the next eight belongs to it.
_MASKS: Final = np.array([2 ** (8 * size) - 1 for size in range(_WORD + 1)], dtype=np.uint64)
_ROWS_AT_ONCE: Final = 1 << 18
_PLACES: Final = np.uint64(2**32 - 1)
# Of splitmix64, which spreads the least difference over all bits.
_MULTIPLIERS: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS: Final = (np.uint64(30), np.uint64(27), np.uint64(31))


class Lookup:
    """The positions of the values of an Arrow array, for as many queries as one likes.

    Arrow builds a hash table anew for each call, and that of pandas takes 30 bytes a value, or
    Python objects. This one takes 8: positions sorted by the first bits of the hash, and where
    those of each bucket begin. What is found there is compared with what is asked for.

    Args:
        values: Text, bytes, int64 or float64, none missing.

    Raises:
        ValueError: If a value comes twice.

    Example:
        >>> lookup = Lookup(pyarrow.array(["Rome", "Oslo"]))
        >>> lookup.find(pyarrow.array(["Oslo", None, "Lima", "Rome"])).tolist()
        [1, -1, -1, 0]
    """

    def __init__(self, values: pyarrow.Array) -> None:
        self._values = values
        # A bucket holds one value or less, on average.
        bits = max(1, int(len(values) - 1).bit_length())
        self._shift = np.uint64(64 - bits)
        # Numbers are sorted several times as fast as places: these go behind the hashes.
        placed = (hashes_of(values) & ~_PLACES) | np.arange(len(values), dtype=np.uint64)
        placed.sort()
        self._order = placed.astype(np.uint32).astype(np.int32, copy=False)
        self._check_unique(placed)
        sizes = np.bincount((placed >> self._shift).astype(np.int64), minlength=1 << bits)
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)

    def find(self, values: pyarrow.Array) -> IntArray:
        """The position of each value, -1 if it is missing or unknown.

        Args:
            values: Of the type of those that are known.
        """
        found = np.full(len(values), -1, dtype=np.int64)
        buckets = (hashes_of(values) >> self._shift).astype(np.int64)
        places, ends = self._starts[buckets], self._starts[buckets + 1]
        rows = np.flatnonzero(places < ends)
        while rows.size:
            positions = self._order[places[rows]]
            same = self._equal(positions, values.take(pyarrow.array(rows)))
            found[rows[same]] = positions[same]
            rows = rows[~same]
            places[rows] += 1
            rows = rows[places[rows] < ends[rows]]
        return found

    def _equal(self, positions: NDArray[Any], values: pyarrow.Array) -> NDArray[np.bool_]:
        same = compute.equal(self._values.take(pyarrow.array(positions)), values)
        equal: NDArray[np.bool_] = same.fill_null(False).to_numpy(zero_copy_only=False)
        return equal

    def _check_unique(self, placed: _Hashes) -> None:
        hashes = placed & ~_PLACES
        again = np.append(hashes[1:] == hashes[:-1], False)
        shared = self._order[again | np.roll(again, 1)]
        alike = self._values.take(pyarrow.array(shared))
        if pyarrow.types.is_floating(alike.type):
            # Arrow tells -0.0 from 0.0 here.
            alike = compute.add(alike, 0.0)
        if compute.count_distinct(alike).as_py() < len(shared):
            raise ValueError(TWICE)


def hashes_of(values: pyarrow.Array) -> _Hashes:
    """A hash of each value of an Arrow array of text, bytes, int64 or float64."""
    if not len(values):
        return np.empty(0, dtype=np.uint64)
    if pyarrow.types.is_integer(values.type) or pyarrow.types.is_floating(values.type):
        return _mixed(_numbers(values).view(np.uint64))
    starts = range(0, len(values), _ROWS_AT_ONCE)
    return np.concatenate([_text_hashes(values.slice(start, _ROWS_AT_ONCE)) for start in starts])


def _numbers(values: pyarrow.Array) -> NDArray[Any]:
    dtype = values.type.to_pandas_dtype()
    numbers = np.frombuffer(values.buffers()[1], dtype)[values.offset :][: len(values)]
    # So that -0.0 has the bits of 0.0.
    return numbers + np.zeros(1, dtype)


def _text_hashes(values: pyarrow.Array) -> _Hashes:
    wide = values.type in (pyarrow.large_string(), pyarrow.large_binary())
    _, ends, data = values.buffers()
    offsets = np.frombuffer(ends, np.int64 if wide else np.int32)[values.offset :]
    offsets = offsets[: len(values) + 1].astype(np.int64)
    first, last = offsets[[0, -1]].tolist()
    # With zeros behind, so that eight bytes can be read from where the last one stands.
    text = np.zeros(last - first + _WORD, dtype=np.uint8)
    if last > first:
        text[:-_WORD] = np.frombuffer(data, np.uint8)[first:last]
    words: NDArray[Any] = np.ndarray(last - first + 1, "<u8", text.data, strides=(1,))
    places, left = offsets[:-1] - first, np.diff(offsets)
    hashes = _mixed(left.astype(np.uint64))
    rows = np.flatnonzero(left)
    while rows.size:
        read = words[places[rows]] & _MASKS[np.minimum(left[rows], _WORD)]
        hashes[rows] = _mixed(hashes[rows] ^ read)
        places[rows] += _WORD
        left[rows] -= _WORD
        rows = rows[left[rows] > 0]
    return hashes


def _mixed(words: _Hashes) -> _Hashes:
    words = words + np.uint64(0x9E3779B97F4A7C15)
    for shift, multiplier in zip(_SHIFTS, _MULTIPLIERS):
        words ^= words >> shift
        words *= multiplier
    words ^= words >> _SHIFTS[-1]
    return words
