"""What the text in a cell means: a number, a yes or no, a time, or itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pandas as pd

# Without leading zeros: 007 is not the number 7.
_PLAIN = re.compile(
    r"\s*-?(?:(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf)\s*"
)
_ANY = re.compile(r"\s*[+-]?(?:(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|inf)\s*")
# As pandas writes them; a hash may look like other ways to write a number.
_INTEGER_AS_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)\.0+|-?[1-9](\.[0-9]+)?e\+[0-9]{2,}")
_INTEGER = re.compile(r"\s*[+-]?[0-9]+\s*")
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"(?:[ T][0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?)?"
)
_YES_OR_NO = {"true": True, "false": False}
_NUMBERS = frozenset({bool, int, float, Decimal})
_HEAD = 1000

USUAL_MARKERS = frozenset(
    {"NA", "N/A", "n/a", "#N/A", "<NA>", "NaN", "nan", "null", "NULL", "None", "\\N", "-", "?"}
)
"""Texts that often stand for a missing value."""


def infer(column: pd.Series[Any]) -> pd.Series[Any]:
    """Turn a column of text into numbers, booleans or times if that loses nothing.

    It does if every cell is one, and no two different cells would become the same (``1`` and
    ``1.0`` aside, which are one number). Numbers have no leading zeros; times are those of ISO
    8601, all with an offset from UTC or all without.

    Args:
        column: Text and missing values.

    Returns:
        A column of another type, or the same.
    """
    if any(map(is_text, column.iloc[:_HEAD].dropna())):
        return column
    codes, texts = distinct(column)
    if not texts:
        return column
    typed: Any = None
    for kind in (_numbers, _booleans, _times):
        if (typed := kind(texts)) is not None:
            break
    if typed is None:
        return column
    missing = codes < 0
    taken = typed.take(codes)
    if typed.dtype == np.int64:
        taken = pd.arrays.IntegerArray(taken, missing)
    elif typed.dtype == np.bool_:
        taken = pd.arrays.BooleanArray(taken, missing)
    elif missing.any():
        taken = pd.Series(taken).mask(missing)
    return pd.Series(taken, index=column.index, name=column.name)


def is_text(cell: str) -> bool:
    """Whether a cell is neither a number nor a boolean nor a time."""
    known = _PLAIN.fullmatch(cell) or _TIME.fullmatch(cell) or cell.strip().lower() in _YES_OR_NO
    return not known


def _numbers(texts: Sequence[str]) -> Any:
    if not all(map(_PLAIN.fullmatch, texts)):
        return None
    whole = all(map(_INTEGER.fullmatch, texts))
    numbers: list[Any] = [int(text) if whole else float(text) for text in texts]
    if len(set(numbers)) < len({_spelling(text) for text in texts}):
        return None
    if whole and not all(-(2**63) <= number < 2**63 for number in numbers):
        return pd.Series(numbers, dtype=object).to_numpy()
    return np.array(numbers)


def _spelling(text: str) -> str:
    """The same for 1 and 1.0, which are the same number to everybody, not for 1.1 and 1.10."""
    text = text.removesuffix(".0")
    return "0" if text == "-0" else text


def _booleans(texts: Sequence[str]) -> Any:
    lowered = [text.strip().lower() for text in texts]
    if len(set(lowered)) < len(lowered) or not _YES_OR_NO.keys() >= set(lowered):
        return None
    return np.array([_YES_OR_NO[text] for text in lowered])


def _times(texts: Sequence[str]) -> pd.DatetimeIndex | None:
    matches = [_TIME.fullmatch(text) for text in texts]
    zoned = {match is not None and match[1] is not None for match in matches}
    if not all(matches) or len(zoned) > 1:
        return None
    try:
        times = pd.to_datetime(list(texts), format="ISO8601", utc=zoned == {True})
    except ValueError:
        return None
    return times if times.is_unique else None


def integer_of_float(text: str) -> str | None:
    """The integer that a text spells as a float, or None if it does not.

    Example:
        >>> [integer_of_float(text) for text in ("5.0", "1e+16", "5", "5.5", "05.0", "1e3")]
        ['5', '10000000000000000', None, None, None, None]
    """
    if not _INTEGER_AS_FLOAT.fullmatch(text) or not float(text).is_integer():
        return None
    # A decimal has all digits that are written.
    return str(int(Decimal(text)))


def are_integers_as_floats(column: pd.Series[Any]) -> bool:
    """Whether each cell that is there is a text such as 5.0, which pandas writes beside gaps."""
    return all(isinstance(text, str) and integer_of_float(text) for text in distinct(column)[1])


def numbers_but_for(column: pd.Series[Any]) -> list[str]:
    """The usual markers of missing values without which a column of text would be numbers."""
    texts = set(column.dropna().unique())
    markers = texts & USUAL_MARKERS
    rest = texts - markers
    numeric = markers and rest and all(map(_PLAIN.fullmatch, rest))
    return sorted(markers) if numeric else []


def without(column: pd.Series[Any], markers: Iterable[str]) -> pd.Series[Any]:
    """Make cells missing that are one of the texts, or the number or time that one spells.

    A column of lists stays as it is.
    """
    markers = list(markers)
    if not markers or column.dtype in ("bool", "boolean"):
        return column
    typed = (value for text in markers for value in infer(pd.Series([text])).tolist())
    # No yes or no, which equals a number.
    missing = {*markers, *(value for value in typed if not isinstance(value, bool))}
    try:
        codes, found = distinct(column)
    except TypeError:
        return column
    marked = np.array([*(_is_in(value, missing) for value in found), False])[codes]
    return column.mask(marked) if marked.any() else column


def check_na_values(na_values: Sequence[str]) -> tuple[str, ...]:
    """Check the texts that stand for a missing value.

    Raises:
        ValueError: If they are not a list of texts.
    """
    if isinstance(na_values, str) or not all(isinstance(each, str) for each in na_values):
        raise ValueError(f"`na_values` must be a list of texts, got {na_values!r}.")
    return tuple(na_values)


def _is_in(value: Any, values: set[Any]) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    # A day is the time at which it begins.
    return (pd.Timestamp(value) if type(value) is date else value) in values


def like(column: pd.Series[Any], types: frozenset[type]) -> pd.Series[Any]:
    """Read cells as values of the types that a vocabulary has, one by one.

    Args:
        column: Cells of any type.
        types: Types of the values of the vocabulary.

    Returns:
        A column in which a text that spells such a value has become it, and the other way round;
        other cells, lists among them, stay as they are.
    """
    convert = _converter(types)
    if convert is None or (_NUMBERS & types and column.dtype.kind in "iufb"):
        return column
    try:
        codes, found = distinct(column)
    except TypeError:
        return column
    values = pd.Series([*map(convert, found), None], dtype=object).to_numpy()
    return pd.Series(values[codes], index=column.index, name=column.name, dtype=object)


def _converter(types: frozenset[type]) -> Callable[[Any], Any] | None:
    if types == {str}:
        return _to_text
    if bool in types and not types & {str, Decimal}:
        return _to_boolean_or_number
    if bool in types and not types & {int, float, Decimal}:
        return _to_boolean
    if Decimal in types and float not in types:
        return _to_decimal
    if types & _NUMBERS:
        return _to_number
    if types & {pd.Timestamp, date}:
        return _to_time if pd.Timestamp in types else _to_date
    return _to_bytes if bytes in types else None


def _to_text(value: Any) -> Any:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    # In lists they are as others have written them, in columns as pandas has them.
    if isinstance(value, (np.datetime64, datetime)):
        value = pd.Timestamp(value)
    if isinstance(value, (np.timedelta64, timedelta)):
        value = pd.Timedelta(value)
    if isinstance(value, pd.Timestamp) and value.tz is None and value == value.normalize():
        return str(value.date())
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return str(value)


def _to_boolean(value: Any) -> Any:
    return _YES_OR_NO.get(value.strip().lower(), value) if isinstance(value, str) else value


def _to_boolean_or_number(value: Any) -> Any:
    found = _to_boolean(value)
    return _to_number(value) if found is value else found


def _to_number(value: Any) -> Any:
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else float(value)
    if not isinstance(value, str) or not _ANY.fullmatch(value):
        return value
    return int(value) if _INTEGER.fullmatch(value) else float(value)


def _to_decimal(value: Any) -> Any:
    if isinstance(value, Decimal):
        return value
    number = _to_number(value)
    return Decimal(repr(number)) if isinstance(number, float) else number


def _to_time(value: Any) -> Any:
    if isinstance(value, date) and not isinstance(value, pd.Timestamp):
        return pd.Timestamp(value)
    if not isinstance(value, str) or not (match := _TIME.fullmatch(value)):
        return value
    try:
        return pd.to_datetime(value, format="ISO8601", utc=match[1] is not None)
    except ValueError:
        return value


def _to_date(value: Any) -> Any:
    time = _to_time(value)
    midnight = isinstance(time, pd.Timestamp) and time.tz is None and time == time.normalize()
    return time.date() if midnight else value


def _to_bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def distinct(column: pd.Series[Any]) -> tuple[NDArray[np.intp], list[Any]]:
    """The distinct values in order of appearance, and for every row which one it has, or -1.

    Raises:
        TypeError: If a cell is a list or another thing that cannot be looked up.
    """
    if column.dtype == object:
        # As an array: a series would turn the distinct values 1 and 2.5 into floats.
        codes, found = pd.factorize(column.to_numpy())
    else:
        codes, found = pd.factorize(column)  # type: ignore[assignment]
    return codes, list(map(as_written, _scalars(found, column.dtype)))


def as_written(value: Any) -> Any:
    """A float of less than 64 bits as the number that it is written as: 0.1, not 0.10000000149."""
    return float(str(value)) if isinstance(value, (np.float16, np.float32)) else value


def _scalars(found: Any, dtype: Any) -> list[Any]:
    dtype = getattr(dtype, "numpy_dtype", dtype)
    few_bits = dtype in (np.float16, np.float32)
    return list(found.to_numpy().astype(dtype)) if few_bits else found.tolist()
