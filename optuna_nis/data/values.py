"""The values of a vocabulary: Python objects, or an Arrow array if they are many of one type."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property
import operator
import re
import reprlib
from typing import Any, Final, get_args
from uuid import UUID

import numpy as np
from numpy.typing import NDArray
import pandas as pd
import pyarrow
from pyarrow import compute

from optuna_nis.data.cells import as_written, distinct
from optuna_nis.data.lookup import TWICE, Lookup

Value = str | int | float | bool | bytes | Decimal | date | pd.Timestamp
IntArray = NDArray[np.int64]

VALUE_TYPES: Final = frozenset(get_args(Value))
# So few are found faster in a dictionary, above all for a few rows.
_FEW: Final = 5000
_LEAST: Final = -(2**63)
_MOST: Final = 2**63 - 1
_MOST_BYTES: Final = 2**31 - 1
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# Offsets into text are of 32 bits where that is enough.
_WIDE: Final = {
    pyarrow.string(): pyarrow.large_string(),
    pyarrow.binary(): pyarrow.large_binary(),
}
_NARROW: Final = {wide: narrow for narrow, wide in _WIDE.items()}
ARROW_TYPES: Final = {
    str: pyarrow.string(),
    bytes: pyarrow.binary(),
    int: pyarrow.int64(),
    float: pyarrow.float64(),
}
_PYTHON_TYPES: Final = {kind: each for each, kind in ARROW_TYPES.items()}


class ArrowValues:
    """Different values of one type: text, bytes, 64-bit integers or floats.

    Args:
        array: The values.

    Example:
        >>> values = ArrowValues(pyarrow.array([30, 10, 20]))
        >>> values.find([20, 20.5, True, 3e1]).tolist()
        [2, -1, -1, 0]
    """

    def __init__(self, array: pyarrow.Array) -> None:
        self.array = array
        self._type = _PYTHON_TYPES[_NARROW.get(array.type, array.type)]
        self.types: frozenset[type] = frozenset({self._type})

    @cached_property
    def objects(self) -> tuple[Value, ...]:
        """The values as Python objects."""
        return tuple(self)

    @property
    def num_fractions(self) -> int:
        """Number of values that are numbers with a fraction."""
        if self._type is not float:
            return 0
        numbers = self.array.to_numpy()
        return int(np.count_nonzero((numbers != np.floor(numbers)) | np.isinf(numbers)))

    def head(self, size: int) -> ArrowValues | ObjectValues:
        """The first values alone, without the memory of the others."""
        return _kept(self.array.take(pyarrow.array(np.arange(min(size, len(self))))))

    def at(self, positions: Iterable[int]) -> list[Value | None]:
        """The values at positions, None at the one behind the last."""
        size = len(self) + 1
        places = np.array([operator.index(each) for each in positions], dtype=np.int64)
        if ((places < -size) | (places >= size)).any():
            raise IndexError("list index out of range")
        places %= size
        taken = self.array.take(pyarrow.array(places, mask=places == size - 1))
        values: list[Value | None] = taken.to_pylist()
        return values

    def find(self, values: Sequence[Value]) -> IntArray:
        """The positions of values, -1 where one is none of these."""
        alike = list(map(_ALIKE_OBJECT[self._type], values))
        return self._lookup.find(pyarrow.array(alike, self.array.type))

    def find_arrow(self, values: pyarrow.Array) -> IntArray | None:
        """The same for an Arrow array, None if its values must be looked at one by one."""
        if pyarrow.types.is_dictionary(values.type):
            if len(values) < len(values.dictionary):
                return self.find_arrow(values.dictionary_decode())
            known = self.find_arrow(values.dictionary)
            codes = values.indices.cast(pyarrow.int64()).fill_null(-1).to_numpy()
            return None if known is None else np.append(known, -1).astype(np.int64)[codes]
        alike = in_type(values, self._type)
        return None if alike is None else self._lookup.find(alike)

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.array)

    def forget_lookup(self) -> None:
        """Free the table of hashes, which is made anew at the next look-up."""
        self.__dict__.pop("_lookup", None)

    def __iter__(self) -> Iterator[Value]:
        return iter(self.array.to_pylist())

    def __len__(self) -> int:
        return len(self.array)

    def __contains__(self, value: object) -> bool:
        plain = value.item() if isinstance(value, np.generic) else value
        if type(plain) in VALUE_TYPES:
            return bool(self.find([plain])[0] >= 0)  # type: ignore[list-item]
        # Other things may be equal to a value too, such as Fraction(3).
        return value in frozenset(self.objects)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ArrowValues) or self.array.type != other.array.type:
            return False
        if self._type is float:
            # To the bit, as they are written: -0.0 is not 0.0.
            return np.array_equal(
                self.array.to_numpy().view(np.int64), other.array.to_numpy().view(np.int64)
            )
        return bool(self.array.equals(other.array))

    __hash__ = None  # type: ignore[assignment]


class ObjectValues:
    """Different values of any types.

    Args:
        objects: The values.

    Example:
        >>> ObjectValues((3, "3")).find(["3", 3.0, 4]).tolist()
        [1, 0, -1]
    """

    def __init__(self, objects: tuple[Value, ...]) -> None:
        self.objects = objects
        self._positions = {value: index for index, value in enumerate(objects)}
        self.types: frozenset[type] = frozenset(map(type, objects))

    @property
    def num_fractions(self) -> int:
        """Number of values that are numbers with a fraction."""
        return sum(
            isinstance(value, (float, Decimal)) and not float(value).is_integer()
            for value in self.objects
        )

    def head(self, size: int) -> ArrowValues | ObjectValues:
        """The first values alone."""
        return values_of(self.objects[:size])

    def at(self, positions: Iterable[int]) -> list[Value | None]:
        """The values at positions, None at the one behind the last."""
        values = [*self.objects, None]
        return [values[index] for index in positions]

    def find(self, values: Sequence[Value]) -> IntArray:
        """The positions of values, -1 where one is none of these."""
        return np.array([self._positions.get(value, -1) for value in values], dtype=np.int64)

    def __iter__(self) -> Iterator[Value]:
        return iter(self.objects)

    def __len__(self) -> int:
        return len(self.objects)

    def __contains__(self, value: object) -> bool:
        return value in self._positions


def values_of(objects: tuple[Value, ...]) -> ArrowValues | ObjectValues:
    """Keep values in as few bytes as their number and types allow.

    Raises:
        ValueError: If a value comes twice.
    """
    if len(set(objects)) < len(objects):
        raise ValueError(TWICE)
    array = _array_of_objects(objects) if len(objects) > _FEW else None
    return ObjectValues(objects) if array is None else ArrowValues(array)


def values_of_arrow(values: pyarrow.Array | pyarrow.ChunkedArray) -> ArrowValues | ObjectValues:
    """The same for an Arrow array, without a Python object for each of many values.

    Raises:
        TypeError: If a value is of a type that cannot be written down as an id.
        ValueError: If a value is missing, or one comes twice; of many texts, bytes or numbers,
            the latter is seen when the first value is looked up.
    """
    if pyarrow.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if isinstance(values, pyarrow.ChunkedArray):
        values = values.cast(_WIDE.get(values.type, values.type)).combine_chunks()
    is_float = pyarrow.types.is_floating(values.type)
    if values.null_count or (is_float and compute.any(compute.is_nan(values)).as_py()):
        raise ValueError("`values` must not hold missing values.")
    stored = as_stored(values)
    if stored is not None:
        return _kept(stored)
    _, found = distinct(series_of(values))
    if len(found) < len(values):
        raise ValueError(TWICE)
    return values_of(tuple(map(plain, found)))


def _kept(stored: pyarrow.Array) -> ArrowValues | ObjectValues:
    if len(stored) <= _FEW:
        return values_of(tuple(stored.to_pylist()))
    return ArrowValues(_narrowed(stored))


def _array_of_objects(objects: tuple[Value, ...]) -> pyarrow.Array | None:
    arrow_types = {ARROW_TYPES.get(kind) for kind in set(map(type, objects))}
    arrow_type = arrow_types.pop() if len(arrow_types) == 1 else None
    if arrow_type is None or any(value != value for value in objects):
        return None
    try:
        return _narrowed(pyarrow.array(objects, _WIDE.get(arrow_type, arrow_type)))
    except (OverflowError, UnicodeEncodeError, pyarrow.ArrowInvalid):
        # Integers of more than 64 bits, and text that is no Unicode.
        return None


def series_of(values: pyarrow.Array) -> pd.Series[Any]:
    """An Arrow array as a pandas column, whole numbers staying whole beside missing ones."""
    if pyarrow.types.is_nested(values.type) or pyarrow.types.is_null(values.type):
        # Lists give the errors that people know, and pandas 2.2 has no type of missing values.
        return pd.Series(values.to_pandas(), dtype=object)
    if pyarrow.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return pd.Series(values, dtype=pd.ArrowDtype(values.type))


def array_of(column: pd.Series[Any]) -> pyarrow.Array | None:
    """A pandas column as an Arrow array, None if it takes a Python object for each value."""
    dtype = column.dtype
    if isinstance(dtype, np.dtype):
        plain_numbers = (dtype.kind in "iu" and dtype.isnative) or dtype in (bool, np.float64)
        return pyarrow.array(column.to_numpy()) if plain_numbers else None
    if isinstance(dtype, pd.ArrowDtype) or getattr(dtype, "storage", None) == "pyarrow":
        array = pyarrow.array(column.array)
        return array.combine_chunks() if isinstance(array, pyarrow.ChunkedArray) else array
    return None


def plain(value: Any, name: str = "values") -> Value:
    """A value as what a vocabulary holds.

    Raises:
        TypeError: If it is of a type that cannot be written down as an id.
    """
    if type(value) in VALUE_TYPES:
        return value  # type: ignore[no-any-return]
    if isinstance(value, (np.datetime64, datetime)):
        return pd.Timestamp(value)
    if isinstance(value, (timedelta, np.timedelta64)):
        return str(pd.Timedelta(value))
    if isinstance(value, (UUID, time)):
        # What has no other form in a text file is text from elsewhere, too.
        return str(value)
    if isinstance(value, np.generic):
        written = as_written(value)
        return plain(value.item() if written is value else written, name)
    raise TypeError(
        f"The column {name!r} must hold text, numbers, booleans, dates or bytes, got "
        f"{value!r} of type {type(value).__name__}."
    )


def factorize(
    values: pd.Series[Any] | Iterable[Any], name: str
) -> tuple[NDArray[np.intp], list[Value]]:
    """The distinct values in order of appearance, and for every row which one it has, or -1."""
    series = values if isinstance(values, pd.Series) else pd.Series(list(values), dtype=object)
    try:
        codes, found = distinct(series)
    except TypeError as error:
        for cell in series:
            check_no_struct(cell, name)
        raise TypeError(
            f"The column {name!r} has several values in one row, such as {_unhashable(series)}; "
            f"if they are lists, name it as a bag: `bags={{{name!r}: None}}`, or on the command "
            f"line `--bags {name}`."
        ) from error
    return codes, [plain(value, name) for value in found]


def check_no_struct(cell: object, name: str) -> None:
    """Raise a TypeError if a cell holds named fields, which no feature can be made of."""
    if isinstance(cell, Mapping):
        raise TypeError(
            f"The column {name!r} holds structs, such as {reprlib.repr(cell)}: make columns of "
            "the fields that are wanted."
        )


def _unhashable(series: pd.Series[Any]) -> str:
    cells = (each for each in series if not isinstance(each, Hashable))
    return reprlib.repr(next(cells, "a list"))


def as_stored(values: pyarrow.Array) -> pyarrow.Array | None:
    """Values in one of the types that are kept in Arrow, None if theirs is like none."""
    kind, types = values.type, pyarrow.types
    if kind in _PYTHON_TYPES or kind in _NARROW:
        return values
    if types.is_fixed_size_binary(kind):
        return values.cast(pyarrow.binary())
    if types.is_integer(kind) and kind != pyarrow.uint64():
        return values.cast(pyarrow.int64())
    return None


def _narrowed(values: pyarrow.Array) -> pyarrow.Array:
    narrow = _NARROW.get(values.type)
    if narrow is None or (compute.sum(compute.binary_length(values)).as_py() or 0) > _MOST_BYTES:
        return values
    return values.cast(narrow)


def in_type(values: pyarrow.Array, wanted: type) -> pyarrow.Array | None:
    """The equal values of a type, missing where there is none; None if that takes objects."""
    if pyarrow.types.is_null(values.type):
        return values.cast(ARROW_TYPES[wanted])
    if pyarrow.types.is_boolean(values.type):
        values = values.cast(pyarrow.int64())
    stored = as_stored(values)
    if stored is None:
        return None
    kind = _PYTHON_TYPES[_NARROW.get(stored.type, stored.type)]
    if kind is wanted:
        return stored
    if {kind, wanted} != {int, float}:
        return None
    numbers = stored.fill_null(0).to_numpy(zero_copy_only=False)
    floats = numbers.astype(np.float64)
    fits = (floats == np.floor(floats)) & (floats >= _LEAST) & (floats < -_LEAST)
    whole = np.where(fits, floats, 0).astype(np.int64)
    exact = fits & (whole == numbers) & ~stored.is_null().to_numpy(zero_copy_only=False)
    return pyarrow.array(whole if wanted is int else floats, mask=~exact)


def as_text(value: Value) -> str | None:
    """A value that is text of Unicode, otherwise None."""
    fits = type(value) is str and (value.isascii() or not _SURROGATE.search(value))
    return value if fits else None  # type: ignore[return-value]


def _bytes(value: Value) -> bytes | None:
    return value if type(value) is bytes else None


def as_whole(value: Value) -> int | None:
    """The integer of 64 bits that equals a value, or None."""
    if not isinstance(value, (bool, int, float, Decimal)):
        return None
    try:
        number = int(value)
    except (OverflowError, ValueError):
        # Infinity, and what is no number.
        return None
    return number if number == value and _LEAST <= number <= _MOST else None


def as_real(value: Value) -> float | None:
    """The float that equals a value, or None."""
    if not isinstance(value, (bool, int, float, Decimal)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if number == value else None


_ALIKE_OBJECT: Final[dict[type, Callable[[Value], Any]]] = {
    str: as_text,
    bytes: _bytes,
    int: as_whole,
    float: as_real,
}
