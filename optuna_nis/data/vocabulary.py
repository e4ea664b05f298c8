"""The values of a categorical feature, and their ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import json
import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pandas as pd
import pyarrow
from pyarrow import compute

from optuna_nis._checks import check_integer
from optuna_nis._json import read_json
from optuna_nis.data.unknown import UnknownIds
from optuna_nis.data.values import (
    ArrowValues,
    IntArray,
    ObjectValues,
    Value,
    array_of,
    factorize,
    plain,
    series_of,
    values_of,
    values_of_arrow,
)
from optuna_nis.data.vocabulary_file import COUNT, JSON
from optuna_nis.data.written import read, written

# The later one where unknown values have ids; in between is that of a file, in `keeping`.
_JSON_VERSION, _WITH_UNKNOWN = 1, 3
_UNKNOWN = b"unknown"
# Equal vocabularies have these in common.
_HASHED = 100


class Vocabulary:
    """The known values of one categorical feature, most frequent first.

    The id of a value is its rank. Missing and unknown values share the id ``num_embeddings``,
    one past the last, which the embedding layers map to zeros and which also pads bags. Or unknown
    values have ids among the others, so that they may have rows.

    Values that compare equal, such as ``1`` and ``1.0``, are one value; ``1`` and ``"1"`` are
    two.

    Args:
        values: The values, each once, most frequent first.
        counts: Occurrences of each in the training data.
        unknown: The ids of unknown values, if they have some of their own.

    Raises:
        TypeError: If a value is of a type that cannot be written down as an id.
        ValueError: If there is no value, a value comes twice, or the counts or ids of unknown
            values do not fit.

    Example:
        >>> cities = Vocabulary.from_values(["Rome", "Oslo", None, "Rome"])
        >>> cities.values, cities.counts.tolist()
        (('Rome', 'Oslo'), [2, 1])
        >>> cities.encode(["Oslo", "Lima", None]).tolist()
        [1, 2, 2]
        >>> Vocabulary.from_json(cities.to_json()) == cities
        True
        >>> rare = cities.with_unknown(UnknownIds(first=1, number=1, count=1))
        >>> rare.encode(["Rome", "Oslo", "Lima", None]).tolist(), rare.id_counts.tolist()
        ([0, 2, 1, 3], [2, 1, 1])
    """

    def __init__(
        self,
        values: Iterable[Value],
        counts: Iterable[int],
        unknown: UnknownIds | None = None,
    ) -> None:
        self._set(values_of(tuple(map(plain, values))), counts, unknown)

    def _set(
        self,
        values: ArrowValues | ObjectValues,
        counts: Iterable[int],
        unknown: UnknownIds | None = None,
    ) -> None:
        self.unknown = unknown
        counts = counts if isinstance(counts, np.ndarray) else list(counts)
        self._values = values
        self.counts: IntArray = np.array(counts, dtype=np.int64)
        if not len(values):
            raise ValueError("`values` must hold at least one value, got none.")
        if self.counts.shape != (len(values),):
            raise ValueError(
                f"`counts` must hold {len(values)} numbers, one for each value, got "
                f"{self.counts.size}."
            )
        if self.counts[-1] < 1 or (np.diff(self.counts) > 0).any():
            raise ValueError("`counts` must be positive and fall with the rank.")
        if unknown is not None and not (unknown.first <= len(values) and unknown.number >= 1):
            raise ValueError(
                f"`unknown` must be ids among those of {len(values)} values, got {unknown!r}."
            )

    @classmethod
    def _of(
        cls,
        values: ArrowValues | ObjectValues,
        counts: Iterable[int],
        unknown: UnknownIds | None = None,
    ) -> Vocabulary:
        vocabulary = cls.__new__(cls)
        vocabulary._set(values, counts, unknown)
        return vocabulary

    def with_unknown(self, unknown: UnknownIds | None) -> Vocabulary:
        """The same values, with ids for unknown ones or without."""
        return self._of(self._values, self.counts, unknown)

    @classmethod
    def from_arrow(
        cls,
        values: pyarrow.Array | pyarrow.ChunkedArray,
        counts: NDArray[np.int64],
        unknown: UnknownIds | None = None,
    ) -> Vocabulary:
        """Take millions of values without a Python object for each.

        Args:
            values: The values, each once, most frequent first.
            counts: Occurrences of each in the training data.
            unknown: The ids of unknown values, if they have some of their own.

        Raises:
            TypeError: If a value is of a type that cannot be written down as an id.
            ValueError: If there is no value, one is missing, or the counts do not fit. Of a text,
                number or bytes that comes twice, :meth:`encode` says so.

        Example:
            >>> Vocabulary.from_arrow(pyarrow.array(["Rome", "Oslo"]), np.array([2, 1]))
            Vocabulary(2 values: 'Rome', 'Oslo')
        """
        return cls._of(values_of_arrow(values), counts, unknown)

    @classmethod
    def from_values(
        cls,
        values: pd.Series[Any] | Iterable[Any],
        *,
        name: str = "values",
        max_size: int | None = None,
    ) -> Vocabulary:
        """Count the values of a column of the training data.

        Equally frequent values keep the order in which they first occur.

        Args:
            values: The column: text, numbers, booleans, dates, bytes, or a mixture.
            name: Name of the column in errors.
            max_size: Keep only so many of the most frequent values.

        Raises:
            TypeError: If a value is of another type, such as a list.
            ValueError: If the column has no row or only missing values, or ``max_size`` is not
                positive.
        """
        if max_size is not None and (isinstance(max_size, bool) or max_size < 1):
            raise ValueError(f"`max_size` of {name!r} must be at least 1, got {max_size!r}.")
        codes, found = factorize(values, name)
        if not codes.size:
            raise ValueError(f"The column {name!r} is empty: it has no row.")
        if not found:
            raise ValueError(
                f"The column {name!r} is empty: all {codes.size} values are missing. Leave it out."
            )
        ids: dict[Value, int] = {}
        distinct = np.array([ids.setdefault(value, len(ids)) for value in found], dtype=np.int64)
        counts = np.bincount(distinct[codes[codes >= 0]], minlength=len(ids))
        order = np.argsort(-counts, kind="stable")[:max_size]
        unordered = list(ids)
        return cls((unordered[index] for index in order.tolist()), counts[order])

    def cut(self, size: int) -> Vocabulary:
        """The most frequent values only; the others become unknown.

        Args:
            size: Number of values to keep. One is kept in any case; all are where it goes beyond
                the ids of unknown values, from which the others could not be told any more.
        """
        if self.unknown is not None and size > self.unknown.first:
            return self
        size = max(size, 1)
        return self._of(self._values.head(size), self.counts[:size])

    def at_least(self, min_count: int) -> Vocabulary:
        """The values that occur so often; the others become unknown.

        Args:
            min_count: The fewest occurrences of a value to keep. The most frequent one is kept in
                any case.

        Raises:
            ValueError: If ``min_count`` is no integer of at least 1.

        Example:
            >>> Vocabulary(["Rome", "Oslo", "Lima"], [7, 2, 1]).at_least(2).values
            ('Rome', 'Oslo')
        """
        check_integer("min_count", min_count, 1)
        return self.cut(int(np.count_nonzero(self.counts >= min_count)))

    @property
    def values(self) -> tuple[Value, ...]:
        """The values as Python objects, most frequent first.

        Of millions, these take a hundred bytes each from the first use on; :meth:`decode` gives
        some of them.
        """
        return self._values.objects

    @property
    def types(self) -> frozenset[type]:
        """The Python types of the values."""
        return self._values.types

    @property
    def num_embeddings(self) -> int:
        """Number of ids, and the id of missing values, and of unknown ones without an own."""
        return len(self._values) + (0 if self.unknown is None else self.unknown.number)

    @property
    def id_counts(self) -> IntArray:
        """Occurrences of every id in the training data, falling."""
        return self.counts if self.unknown is None else self.unknown.counts_of_ids(self.counts)

    def knows(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
        """Which ids are those of known values."""
        if self.unknown is None:
            return ids < len(self)
        return self.unknown.positions_of_ids(ids, len(self)) < len(self)

    @property
    def num_fractions(self) -> int:
        """Number of values that are numbers with a fraction."""
        return self._values.num_fractions

    def encode(self, values: pd.Series[Any] | Iterable[Any]) -> IntArray:
        """Look up the ids of values.

        Args:
            values: A column, with missing and unknown values or without.

        Returns:
            Ids from 0 to ``num_embeddings``, of the same length.

        Raises:
            TypeError: If a value is of a type that no vocabulary can hold.
        """
        if isinstance(self._values, ArrowValues) and isinstance(values, pd.Series):
            array = array_of(values)
            ids = None if array is None else self._ids_of_array(self._values, array)
            if ids is not None:
                return ids
        codes, found = factorize(values, "values")
        ids = self._values.find(found)
        if self.unknown is not None:
            new = np.flatnonzero(ids < 0)
            ids = self.unknown.ids_of_positions(ids)
            ids[new] = self.unknown.ids_of([found[place] for place in new.tolist()])
        # The code of a missing value is -1, which reads the last entry.
        return self._without_gaps(np.append(ids, -1)[codes])

    def encode_arrow(self, values: pyarrow.Array | pyarrow.ChunkedArray) -> IntArray:
        """Look up the ids of values in an Arrow array, as :meth:`encode` does.

        Text, bytes and numbers take no Python objects where the vocabulary is of one type.

        Args:
            values: The values, with missing and unknown ones or without; NaN counts as missing.

        Returns:
            Ids from 0 to ``num_embeddings``, of the same length.

        Raises:
            TypeError: If a value is of a type that no vocabulary can hold.

        Example:
            >>> cities = Vocabulary(["Rome", "Oslo"], [2, 1])
            >>> cities.encode_arrow(pyarrow.array(["Oslo", "Lima", None])).tolist()
            [1, 2, 2]
        """
        if isinstance(values, pyarrow.ChunkedArray):
            parts = [np.empty(0, dtype=np.int64), *map(self.encode_arrow, values.chunks)]
            return np.concatenate(parts)
        if isinstance(self._values, ArrowValues):
            ids = self._ids_of_array(self._values, values)
            if ids is not None:
                return ids
        return self.encode(series_of(values))

    def _ids_of_array(self, known: ArrowValues, values: pyarrow.Array) -> IntArray | None:
        """The ids of an Arrow array, None if its values must be looked at one by one."""
        ids = known.find_arrow(values)
        if ids is None or self.unknown is None:
            return None if ids is None else self._without_gaps(ids)
        there = ~compute.is_null(values, nan_is_null=True).to_numpy(zero_copy_only=False)
        new = np.flatnonzero((ids < 0) & there)
        ids = self.unknown.ids_of_positions(ids)
        taken = values.take(pyarrow.array(new))
        if pyarrow.types.is_dictionary(taken.type):
            taken = taken.dictionary_decode()
        ids[new] = self.unknown.ids_of(taken)
        return self._without_gaps(ids)

    def _without_gaps(self, ids: IntArray) -> IntArray:
        ids[ids < 0] = self.num_embeddings
        return ids

    def forget_lookup(self) -> None:
        """Free the memory by which millions of values are found; the next :meth:`encode` needs it.

        A dozen bytes a value, made in a second for 5 million.
        """
        if isinstance(self._values, ArrowValues):
            self._values.forget_lookup()

    def decode(self, ids: Iterable[int]) -> list[Value | None]:
        """Look up the values of ids.

        Returns:
            The values; None for the id ``num_embeddings``, and for those of unknown values.
        """
        if self.unknown is not None:
            numbers = np.array([operator.index(each) for each in ids], dtype=np.int64)
            ids = self.unknown.positions_of_ids(numbers, len(self)).tolist()
        return self._values.at(ids)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, value: object) -> bool:
        return value in self._values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary) or self.unknown != other.unknown:
            return False
        if not np.array_equal(self.counts, other.counts):
            return False
        if isinstance(self._values, ArrowValues) or isinstance(other._values, ArrowValues):
            return self._values == other._values
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(tuple(self._values.head(_HASHED)))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self._values.head(3)))
        return f"Vocabulary({len(self)} values: {shown}{', ...' * (len(self) > 3)})"

    def to_dict(self) -> dict[str, Any]:
        """The vocabulary in types that JSON knows, to be read back by :meth:`from_dict`."""
        types, values = zip(*written(self._values))
        data = {
            "version": _JSON_VERSION,
            "types": types[0] if len(set(types)) == 1 else list(types),
            "values": list(values),
            "counts": self.counts.tolist(),
        }
        if self.unknown is not None:
            data |= {"version": _WITH_UNKNOWN, "unknown": list(self.unknown.numbers())}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Vocabulary:
        """Read what :meth:`to_dict` returned.

        Raises:
            ValueError: If it is not such a vocabulary.
        """
        try:
            if data["version"] not in (_JSON_VERSION, _WITH_UNKNOWN):
                raise ValueError(
                    f"A vocabulary must be of version {_JSON_VERSION} or {_WITH_UNKNOWN}, got "
                    f"{data['version']!r}."
                )
            values, types = data["values"], data["types"]
            if isinstance(types, str):
                types = [types] * len(values)
            if len(types) != len(values):
                raise ValueError(
                    f"A vocabulary of {len(values)} values must have as many types, got "
                    f"{len(types)}."
                )
            unknown = UnknownIds.of_numbers(data.get("unknown"))
            return cls(read(zip(types, values)), data["counts"], unknown)
        except (KeyError, TypeError, ArithmeticError) as error:
            raise ValueError(f"This vocabulary is malformed: {error!r}.") from error

    def to_table(self) -> pyarrow.Table:
        """The vocabulary as an Arrow table, to be read back by :meth:`from_table`.

        Returns:
            A column of the counts beside one of the values, ``json`` for few or a mixture, or
            named after their type. The ids of unknown values are among the schema's metadata.

        Example:
            >>> Vocabulary(["Rome", 7], [2, 1]).to_table().to_pydict()
            {'json': ['["str", "Rome"]', '["int", 7]'], 'count': [2, 1]}
        """
        if isinstance(self._values, ArrowValues):
            (kind,) = self.types
            table = pyarrow.table({kind.__name__: self._values.array, COUNT: self.counts})
        else:
            pairs = list(map(json.dumps, written(self._values)))
            table = pyarrow.table({JSON: pairs, COUNT: self.counts})
        if self.unknown is None:
            return table
        return table.replace_schema_metadata({_UNKNOWN: json.dumps(self.unknown.numbers())})

    @classmethod
    def from_table(cls, table: pyarrow.Table) -> Vocabulary:
        """Read what :meth:`to_table` returned.

        Raises:
            ValueError: If it is not such a vocabulary.
        """
        try:
            name, counts = table.column_names[0], table[COUNT].fill_null(0).to_numpy()
            about = (table.schema.metadata or {}).get(_UNKNOWN, b"null")
            unknown = UnknownIds.of_numbers(json.loads(about))
            if name != JSON:
                return cls.from_arrow(table[name], counts, unknown)
            return cls(read(map(json.loads, table[name].to_pylist())), counts, unknown)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"This vocabulary is malformed: {error!r}.") from error

    def to_json(self) -> str:
        """Write as JSON, to be read back by :meth:`from_json`."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: If the text is not such a vocabulary.
        """
        return cls.from_dict(read_json(text))
