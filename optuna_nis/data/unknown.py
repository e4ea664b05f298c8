"""Ids of their own for values that a vocabulary does not know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
import pyarrow
from pyarrow import compute

from optuna_nis.data.lookup import hashes_of
from optuna_nis.data.values import (
    ARROW_TYPES,
    Value,
    as_real,
    as_stored,
    as_text,
    as_whole,
    in_type,
    series_of,
)
from optuna_nis.space.spec import SHARES, EmbeddingSpec, Oov

IntArray = NDArray[np.int64]

_KINDS: Final = (int, float, str, bytes)


@dataclass(frozen=True)
class UnknownIds:
    """A run of ids for values that a vocabulary does not know, by a hash of what they are.

    Ids are ranks by frequency, and so are these: together they occur in training as often as the
    values that were too rare for the vocabulary. Padding and missing values have another id, the
    last. To a search and a model they are ids like any other: they have rows of their own, or
    share some with other ids that have none.

    Attributes:
        first: The first id: as many values are more frequent than it.
        number: How many ids.
        count: Occurrences of rare values in the training data.

    Example:
        >>> unknown = UnknownIds(first=2, number=3, count=40)
        >>> unknown.ids_of_positions(np.array([0, 1, 2, 3])).tolist()
        [0, 1, 5, 6]
        >>> unknown.counts_of_ids(np.array([90, 20, 9, 5])).tolist()
        [90, 20, 14, 13, 13, 9, 5]
    """

    first: int
    number: int
    count: int

    @classmethod
    def for_values(cls, kept: IntArray, left_out: IntArray, oov: Oov) -> UnknownIds | None:
        """What a vocabulary needs so that what it does not know may have a row.

        A hash tells rare values apart in as many ids as a table may have shared rows, but in fewer
        than there are such values. New values look alike to a model, so one id is enough for them.

        Args:
            kept: Occurrences of the values of the vocabulary, falling.
            left_out: Those of the values that are too rare for it.
            oov: What ids without a row give.

        Returns:
            None where ``oov`` is ``"zero"``, or where such an id could never be trained: training
            has none, and the table has one row block, so that no ids share a row.
        """
        if oov == "zero":
            return None
        number = max([1, *(each for each in SHARES[oov] if each < len(left_out))])
        count = int(left_out.sum())
        found = cls(int(np.count_nonzero(kept > count // number)), number, count)
        ids = EmbeddingSpec.from_counts("ids", found.counts_of_ids(kept), 1)
        return found if count or len(ids.row_blocks) > 1 else None

    @classmethod
    def of_numbers(cls, numbers: Sequence[int] | None) -> UnknownIds | None:
        """Read what :meth:`numbers` gave, or nothing.

        Raises:
            ValueError: If it is something else.
        """
        if numbers is None:
            return None
        if len(numbers) != 3 or not all(type(each) is int and each >= 0 for each in numbers):
            raise ValueError(f"`unknown` must be three numbers of 0 or more, got {numbers!r}.")
        return cls(*numbers)

    def numbers(self) -> tuple[int, ...]:
        """The attributes, to be written."""
        return astuple(self)

    def ids_of_positions(self, positions: IntArray) -> IntArray:
        """The ids of known values, from their places among these."""
        return np.where(positions >= self.first, positions + self.number, positions)

    def positions_of_ids(self, ids: NDArray[np.integer[Any]], num_values: int) -> IntArray:
        """The other way round: behind the last where an id is of no known value."""
        later = np.where(ids >= self.first + self.number, ids - self.number, num_values)
        return np.where(ids < self.first, ids, later)

    def counts_of_ids(self, counts: IntArray) -> IntArray:
        """How often each id occurs, from the occurrences of known values."""
        least, more = divmod(self.count, self.number)
        own = np.full(self.number, least, dtype=np.int64)
        own[:more] += 1
        return np.concatenate([counts[: self.first], own, counts[self.first :]])

    def ids_of(self, values: pyarrow.Array | Sequence[Value]) -> IntArray:
        """The ids of values that are not known, none of them missing."""
        if self.number == 1:
            return np.full(len(values), self.first, dtype=np.int64)
        hashes = content_hashes(values) % np.uint64(self.number)
        return self.first + hashes.astype(np.int64)


def content_hashes(values: pyarrow.Array | Sequence[Value]) -> NDArray[np.uint64]:
    """Hashes of values that are the same wherever they are read: of equal values they are equal.

    Example:
        >>> a, b, c = content_hashes([1, 1.0, "1"]).tolist()
        >>> a == b, a == c
        (True, False)
        >>> content_hashes(pyarrow.array([1.0])).tolist() == [a]
        True
    """
    if not isinstance(values, pyarrow.Array):
        return _hashes_of_objects(values)
    if pyarrow.types.is_boolean(values.type):
        values = values.cast(pyarrow.int64())
    array = as_stored(values)
    if array is None:
        return _hashes_of_objects(series_of(values).tolist())
    hashes = hashes_of(array)
    if not pyarrow.types.is_floating(array.type):
        return hashes
    integers = in_type(array, int)
    assert integers is not None
    is_whole = compute.is_valid(integers).to_numpy(zero_copy_only=False)
    return np.where(is_whole, hashes_of(integers.fill_null(0)), hashes)


def _hashes_of_objects(values: Sequence[Value]) -> NDArray[np.uint64]:
    hashes = np.zeros(len(values), dtype=np.uint64)
    places: dict[type, list[int]] = {kind: [] for kind in _KINDS}
    found: dict[type, list[Value]] = {kind: [] for kind in _KINDS}
    for place, value in enumerate(values):
        written = _written(value)
        places[type(written)].append(place)
        found[type(written)].append(written)
    for kind in _KINDS:
        if places[kind]:
            hashes[places[kind]] = hashes_of(pyarrow.array(found[kind], ARROW_TYPES[kind]))
    return hashes


def _written(value: Value) -> int | float | str | bytes:
    """A value as bytes, a number of 64 bits or text that only its equals have."""
    if isinstance(value, bytes):
        return value
    for read in (as_text, as_whole, as_real):
        found: int | float | str | None = read(value)
        if found is not None:
            return found
    if isinstance(value, date):
        if isinstance(value, datetime) and value.tzinfo is not None:
            value = value.astimezone(timezone.utc)
        return value.isoformat()
    if isinstance(value, (int, Decimal)):
        # Equal numbers have the same in Python, whatever their types.
        return hash(value)
    return ascii(value)
