"""The values of a categorical feature, and their ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import io
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pandas as pd
import pyarrow

from optuna_nis._checks import check_integer
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
from optuna_nis.data.vocabulary_file import COUNT, JSON, read_packed, write_packed
from optuna_nis.data.written import read, written

_JSON_VERSION = 1
# Equal vocabularies have these in common.
_HASHED = 100


class Vocabulary:
    """The known values of one categorical feature, most frequent first.

    The id of a value is its rank. Missing and unknown values share the id ``num_embeddings``,
    one past the last, which the embedding layers map to zeros and which also pads bags.

    Values that compare equal, such as ``1`` and ``1.0``, are one value; ``1`` and ``"1"`` are
    two.

    Args:
        values: The values, each once, most frequent first.
        counts: Occurrences of each in the training data.

    Raises:
        TypeError: If a value is of a type that cannot be written down as an id.
        ValueError: If there is no value, a value comes twice, or the counts do not fit.

    Example:
        >>> cities = Vocabulary.from_values(["Rome", "Oslo", None, "Rome"])
        >>> cities.values, cities.counts.tolist()
        (('Rome', 'Oslo'), [2, 1])
        >>> cities.encode(["Oslo", "Lima", None]).tolist()
        [1, 2, 2]
        >>> Vocabulary.from_json(cities.to_json()) == cities
        True
    """

    def __init__(self, values: Iterable[Value], counts: Iterable[int]) -> None:
        self._set(values_of(tuple(map(plain, values))), counts)

    def _set(self, values: ArrowValues | ObjectValues, counts: Iterable[int]) -> None:
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

    @classmethod
    def _of(cls, values: ArrowValues | ObjectValues, counts: Iterable[int]) -> Vocabulary:
        vocabulary = cls.__new__(cls)
        vocabulary._set(values, counts)
        return vocabulary

    @classmethod
    def from_arrow(
        cls, values: pyarrow.Array | pyarrow.ChunkedArray, counts: NDArray[np.int64]
    ) -> Vocabulary:
        """Take millions of values without a Python object for each.

        Args:
            values: The values, each once, most frequent first.
            counts: Occurrences of each in the training data.

        Raises:
            TypeError: If a value is of a type that cannot be written down as an id.
            ValueError: If there is no value, one is missing, or the counts do not fit. Of a text,
                number or bytes that comes twice, :meth:`encode` says so.

        Example:
            >>> Vocabulary.from_arrow(pyarrow.array(["Rome", "Oslo"]), np.array([2, 1]))
            Vocabulary(2 values: 'Rome', 'Oslo')
        """
        return cls._of(values_of_arrow(values), counts)

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
            size: Number of values to keep. One is kept in any case.
        """
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
        """Number of known values, and the id of all others."""
        return len(self._values)

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
            found = None if array is None else self._values.find_arrow(array)
            if found is not None:
                return self._as_ids(found)
        codes, distinct_values = factorize(values, "values")
        # The code of a missing value is -1, which reads the last entry.
        return self._as_ids(np.append(self._values.find(distinct_values), -1)[codes])

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
            found = self._values.find_arrow(values)
            if found is not None:
                return self._as_ids(found)
        return self.encode(series_of(values))

    def _as_ids(self, found: IntArray) -> IntArray:
        found[found < 0] = self.num_embeddings
        return found

    def forget_lookup(self) -> None:
        """Free the memory by which millions of values are found; the next :meth:`encode` needs it.

        A dozen bytes a value, made in a second for 5 million.
        """
        if isinstance(self._values, ArrowValues):
            self._values.forget_lookup()

    def decode(self, ids: Iterable[int]) -> list[Value | None]:
        """Look up the values of ids.

        Returns:
            The values; None for the id ``num_embeddings``.
        """
        return self._values.at(ids)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, value: object) -> bool:
        return value in self._values

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary) or not np.array_equal(self.counts, other.counts):
            return False
        if isinstance(self._values, ArrowValues) or isinstance(other._values, ArrowValues):
            return self._values == other._values
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(tuple(self._values.head(_HASHED)))

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self._values.head(3)))
        return f"Vocabulary({self.num_embeddings} values: {shown}{', ...' * (len(self) > 3)})"

    def to_dict(self) -> dict[str, Any]:
        """The vocabulary in types that JSON knows, to be read back by :meth:`from_dict`."""
        types, values = zip(*written(self._values))
        return {
            "version": _JSON_VERSION,
            "types": types[0] if len(set(types)) == 1 else list(types),
            "values": list(values),
            "counts": self.counts.tolist(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Vocabulary:
        """Read what :meth:`to_dict` returned.

        Raises:
            ValueError: If it is not such a vocabulary.
        """
        try:
            if data["version"] != _JSON_VERSION:
                raise ValueError(
                    f"A vocabulary must be of version {_JSON_VERSION}, got {data['version']!r}."
                )
            values, types = data["values"], data["types"]
            if isinstance(types, str):
                types = [types] * len(values)
            if len(types) != len(values):
                raise ValueError(
                    f"A vocabulary of {len(values)} values must have as many types, got "
                    f"{len(types)}."
                )
            return cls(read(zip(types, values)), data["counts"])
        except (KeyError, TypeError, ArithmeticError) as error:
            raise ValueError(f"This vocabulary is malformed: {error!r}.") from error

    def to_table(self) -> pyarrow.Table:
        """The vocabulary as an Arrow table, to be read back by :meth:`from_table`.

        Returns:
            A column of the counts beside one of the values, ``json`` for few or a mixture, or
            named after their type.

        Example:
            >>> Vocabulary(["Rome", 7], [2, 1]).to_table().to_pydict()
            {'json': ['["str", "Rome"]', '["int", 7]'], 'count': [2, 1]}
        """
        if isinstance(self._values, ArrowValues):
            (kind,) = self.types
            return pyarrow.table({kind.__name__: self._values.array, COUNT: self.counts})
        pairs = list(map(json.dumps, written(self._values)))
        return pyarrow.table({JSON: pairs, COUNT: self.counts})

    @classmethod
    def from_table(cls, table: pyarrow.Table) -> Vocabulary:
        """Read what :meth:`to_table` returned.

        Raises:
            ValueError: If it is not such a vocabulary.
        """
        try:
            name, counts = table.column_names[0], table[COUNT].fill_null(0).to_numpy()
            if name != JSON:
                return cls.from_arrow(table[name], counts)
            return cls(read(map(json.loads, table[name].to_pylist())), counts)
        except (LookupError, TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(f"This vocabulary is malformed: {error!r}.") from error

    def to_bytes(self) -> bytes:
        """Write as a Parquet file, a few bytes a value, to be read back by :meth:`from_bytes`.

        Example:
            >>> cities = Vocabulary(["Rome", "Oslo"], [2, 1])
            >>> Vocabulary.from_bytes(cities.to_bytes()) == cities
            True
        """
        file = io.BytesIO()
        write_packed({"": self.to_table()}, file)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Vocabulary:
        """Read what :meth:`to_bytes` wrote. Nothing in it is executed.

        Raises:
            ValueError: If the bytes are not such a vocabulary.
        """
        tables = read_packed(io.BytesIO(data))
        if len(tables) != 1:
            raise ValueError(f"The bytes must hold one vocabulary, got {len(tables)}.")
        return cls.from_table(*tables.values())

    def to_json(self) -> str:
        """Write as JSON, to be read back by :meth:`from_json`."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Vocabulary:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: If the text is not such a vocabulary.
        """
        return cls.from_dict(json.loads(text))
