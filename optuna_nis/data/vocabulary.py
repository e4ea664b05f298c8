"""The values of a categorical feature, and their ids."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
import json
import reprlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pandas as pd

from optuna_nis.data.cells import as_written, distinct

Value = str | int | float | bool | bytes | Decimal | date | pd.Timestamp
IntArray = NDArray[np.int64]

_JSON_VERSION = 1
_WRITE: dict[type, tuple[str, Callable[[Any], Any]]] = {
    bool: ("bool", bool),
    int: ("int", int),
    # JSON has no infinity, and a round trip through text is exact.
    float: ("float", repr),
    str: ("str", str),
    bytes: ("bytes", bytes.hex),
    Decimal: ("decimal", str),
    date: ("date", date.isoformat),
    pd.Timestamp: ("datetime", pd.Timestamp.isoformat),
}
_READ: dict[str, Callable[[Any], Value]] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "bytes": bytes.fromhex,
    "decimal": Decimal,
    "date": date.fromisoformat,
    "datetime": pd.Timestamp,
}


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
        self.values: tuple[Value, ...] = tuple(_plain(value) for value in values)
        self.counts: IntArray = np.array(list(counts), dtype=np.int64)
        self._ids = {value: index for index, value in enumerate(self.values)}
        if not self.values:
            raise ValueError("`values` must hold at least one value, got none.")
        if len(self._ids) != len(self.values):
            raise ValueError("`values` must hold each value once.")
        if self.counts.shape != (len(self.values),):
            raise ValueError(
                f"`counts` must hold {len(self.values)} numbers, one for each value, got "
                f"{self.counts.size}."
            )
        if self.counts[-1] < 1 or (np.diff(self.counts) > 0).any():
            raise ValueError("`counts` must be positive and fall with the rank.")
        self.types = frozenset(type(value) for value in self.values)

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
        kept = slice(max(size, 1))
        return Vocabulary(self.values[kept], self.counts[kept])

    @property
    def num_embeddings(self) -> int:
        """Number of known values, and the id of all others."""
        return len(self.values)

    @property
    def num_fractions(self) -> int:
        """Number of values that are numbers with a fraction."""
        return sum(
            isinstance(value, (float, Decimal)) and not float(value).is_integer()
            for value in self.values
        )

    def encode(self, values: pd.Series[Any] | Iterable[Any]) -> IntArray:
        """Look up the ids of values.

        Args:
            values: A column, with missing and unknown values or without.

        Returns:
            Ids from 0 to ``num_embeddings``, of the same length.

        Raises:
            TypeError: If a value is of a type that no vocabulary can hold.
        """
        codes, found = factorize(values, "values")
        unknown = self.num_embeddings
        ids = [self._ids.get(value, unknown) for value in found]
        # The code of a missing value is -1, which reads the last entry.
        return np.array([*ids, unknown], dtype=np.int64)[codes]

    def decode(self, ids: Iterable[int]) -> list[Value | None]:
        """Look up the values of ids.

        Returns:
            The values; None for the id ``num_embeddings``.
        """
        values = [*self.values, None]
        return [values[index] for index in ids]

    def __len__(self) -> int:
        return len(self.values)

    def __contains__(self, value: object) -> bool:
        return value in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.values)

    def __repr__(self) -> str:
        shown = ", ".join(repr(value) for value in self.values[:3])
        return f"Vocabulary({self.num_embeddings} values: {shown}{', ...' * (len(self) > 3)})"

    def to_dict(self) -> dict[str, Any]:
        """The vocabulary in types that JSON knows, to be read back by :meth:`from_dict`."""
        written = [_WRITE[type(value)] for value in self.values]
        names = [name for name, _ in written]
        return {
            "version": _JSON_VERSION,
            "types": names[0] if len(set(names)) == 1 else names,
            "values": [write(value) for (_, write), value in zip(written, self.values)],
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
            return cls((_READ[kind](value) for kind, value in zip(types, values)), data["counts"])
        except (KeyError, TypeError, ArithmeticError) as error:
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
        return cls.from_dict(json.loads(text))


def factorize(
    values: pd.Series[Any] | Iterable[Any], name: str
) -> tuple[NDArray[np.intp], list[Value]]:
    """The distinct values in order of appearance, and for every row which one it has, or -1."""
    series = values if isinstance(values, pd.Series) else pd.Series(list(values), dtype=object)
    try:
        codes, found = distinct(series)
    except TypeError as error:
        raise TypeError(
            f"The column {name!r} has several values in one row, such as {_unhashable(series)}; "
            f"if they are lists, name it as a bag: `bags={{{name!r}: None}}`, or on the command "
            f"line `--bags {name}`."
        ) from error
    return codes, [_plain(value, name) for value in found]


def _unhashable(series: pd.Series[Any]) -> str:
    cells = (each for each in series if not isinstance(each, Hashable))
    return reprlib.repr(next(cells, "a list"))


def _plain(value: Any, name: str = "values") -> Value:
    if type(value) in _WRITE:
        return value  # type: ignore[no-any-return]
    if isinstance(value, (np.datetime64, datetime)):
        return pd.Timestamp(value)
    if isinstance(value, np.generic):
        plain = as_written(value)
        return _plain(value.item() if plain is value else plain, name)
    raise TypeError(
        f"The column {name!r} must hold text, numbers, booleans, dates or bytes, got "
        f"{value!r} of type {type(value).__name__}."
    )
