"""Whether the cells of a column are of the kind that training has seen, and of use as ids."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pandas as pd

from optuna_nis.data import cells
from optuna_nis.data.few_digits import warn_of_few_digits
from optuna_nis.data.vocabulary import Vocabulary

# What pandas calls the kinds of values that a column holds, and what people do.
_KINDS = {
    "string": "text",
    "bytes": "bytes",
    **dict.fromkeys(
        ("integer", "floating", "mixed-integer-float", "boolean", "decimal"), "numbers"
    ),
    **dict.fromkeys(("date", "datetime", "datetime64"), "times"),
}
_KIND_OF_TYPE = {
    str: "text",
    bytes: "bytes",
    **dict.fromkeys((bool, int, float, Decimal), "numbers"),
    **dict.fromkeys((date, pd.Timestamp), "times"),
}
_MANY_VALUES = 100


def as_seen(
    column: pd.Series[Any], vocabulary: Vocabulary, name: str, *, advice: str = ""
) -> pd.Series[Any]:
    """Cells in the types of a vocabulary, one by one where kinds mix.

    Args:
        column: The cells.
        vocabulary: What training has seen.
        name: Name of the column in errors.
        advice: What else to say where the column is refused.

    Raises:
        ValueError: If the whole column is of another kind: all of it would be unknown.
    """
    column = _plain(column, vocabulary)
    kind, seen = _kind(column), {_KIND_OF_TYPE[each] for each in vocabulary.types}
    found = _in_types(column, vocabulary)
    if kind is None or not column.notna().any():
        return found
    if kind == "times" and seen == {"times"}:
        _check_zone(found, vocabulary, name)
    if kind in seen:
        return found
    if kind == "text":
        fits = [not isinstance(value, str) for value in found[column.notna()]]
        # Text that spells numbers alone is another column, or was read as another one.
        if any(fits) and ("times" in seen or not all(fits)):
            return found
    wanted = "booleans" if vocabulary.types == {bool} else " or ".join(sorted(seen))
    raise ValueError(
        f"The column {name!r} must be of the type seen in training, {wanted} such as "
        f"{vocabulary.values[0]!r}, got {kind} such as {column.dropna().iloc[0]!r}."
        f"{advice}"
    )


def types_of_cells(vocabulary: Vocabulary) -> frozenset[type]:
    """The types that cells are read as: those of a vocabulary, booleans where it is 0 and 1."""
    types = vocabulary.types
    if len(vocabulary) <= 2 and types <= {int, float} and {0, 1}.issuperset(vocabulary.values):
        return types | {bool}
    return types


def converted(column: pd.Series[Any], vocabulary: Vocabulary) -> pd.Series[Any]:
    """Cells that spell a value of the types of a vocabulary, as such values."""
    return _in_types(_plain(column, vocabulary), vocabulary)


def _in_types(column: pd.Series[Any], vocabulary: Vocabulary) -> pd.Series[Any]:
    kind = _kind(column)
    exact = kind in {_KIND_OF_TYPE[each] for each in vocabulary.types} and kind != "times"
    if exact or str in vocabulary.types:
        return column
    return cells.like(column, types_of_cells(vocabulary))


def integers_of_floats(column: pd.Series[Any], vocabulary: Vocabulary) -> pd.Series[Any]:
    """Texts such as 5.0 as 5, if a vocabulary of texts does not have them as they are."""
    codes, texts = cells.distinct(column)
    known = vocabulary.knows(vocabulary.encode(pd.Series(texts, dtype=object)))
    found = [text if own else cells.integer_of_float(text) for text, own in zip(texts, known)]
    values = pd.Series([*found, None], dtype=object).to_numpy()
    return pd.Series(values[codes], index=column.index, name=column.name, dtype=object)


def warn_of_rounded(column: pd.Series[Any], vocabulary: Vocabulary, name: str) -> None:
    """Warn of ids that pandas has made floats of, which cannot hold all of them."""
    if int not in vocabulary.types:
        return
    if column.dtype == object:
        column = pd.Series([value for value in column if isinstance(value, float)], dtype=float)
    if column.dtype.kind == "f":
        kind = {"float16": "halffloat", "float32": "float"}.get(str(column.dtype), "double")
        warn_of_few_digits(
            column,
            kind,
            "`frame`",
            name,
            advice="Beside missing values pandas makes floats of integers; `read_table(path, "
            "like=features)` does not.",
        )


def _plain(column: pd.Series[Any], vocabulary: Vocabulary) -> pd.Series[Any]:
    """Decimals as what rows of files have in their place, unless training has seen decimals."""
    is_decimal = pd.api.types.infer_dtype(column, skipna=True) == "decimal"
    if not is_decimal or Decimal in vocabulary.types:
        return column
    return cells.like(column.astype(object), vocabulary.types)


def _check_zone(column: pd.Series[Any], vocabulary: Vocabulary, name: str) -> None:
    """Refuse times with a zone where training has seen some without, and the other way round."""
    seen = getattr(vocabulary.values[0], "tz", None)
    zone = getattr(column.dropna().iloc[0], "tz", None)
    if (seen is None) != (zone is None):
        how = "without" if seen is None else "with"
        raise ValueError(
            f"The column {name!r} must hold times {how} a zone as in training, such as "
            f"{vocabulary.values[0]!r}, got {column.dropna().iloc[0]!r}."
        )


def _kind(column: pd.Series[Any]) -> str | None:
    return _KINDS.get(pd.api.types.infer_dtype(column, skipna=True))


def check_continuous(vocabulary: Vocabulary, name: str) -> None:
    """Refuse a column of measurements, each of which would become a row of a table."""
    values, rows = len(vocabulary), int(vocabulary.counts.sum())
    few = values < _MANY_VALUES or 2 * values < rows
    if few or 2 * vocabulary.num_fractions < values:
        return
    raise ValueError(
        f"The column {name!r} is continuous: its {rows:,} values in the training part are "
        f"{values:,} different numbers, most with a fraction, such as "
        f"{vocabulary.values[0]!r}, and a categorical feature has a row for each. Name it as "
        f"numeric in place of a feature, `numeric=[{name!r}]`, on the command line `--numeric "
        f"{name}`, or leave it out."
    )
