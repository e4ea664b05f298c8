"""Read a CSV or Parquet file without loss, so that the same rows give the same ids from each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
import re
from typing import Any
import warnings

import numpy as np
import pandas as pd
import pyarrow
from pyarrow import parquet

from optuna_nis.data import cells
from optuna_nis.data.arrow_types import plain_column
from optuna_nis.data.features import Features

_SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
_PARQUET = (".parquet", ".pq")
_HEADER_ROWS = 1000
# Up to two to the power of so much, floats can hold every whole number.
_DIGITS = {"halffloat": 11, "float": 24, "double": 53}
_UNREADABLE = (ValueError, OSError, EOFError, pyarrow.ArrowException)
# A number, a hash or a UUID.
_LIKE_A_VALUE = re.compile(
    r"-?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?|(?=.*[0-9])[0-9a-fA-F]{8,}|"
    r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
)


def read_table(
    path: str | Path,
    columns: Sequence[str] | None = None,
    *,
    text: Sequence[str] = (),
    na_values: Sequence[str] = (),
    like: Features | None = None,
) -> pd.DataFrame:
    """Read a CSV or Parquet file without loss, so that the same rows give the same ids from each.

    Only the empty cell is missing, be it null or the empty text; ``NA``, ``null`` and the like are
    text. A column of a CSV file is numbers, booleans or ISO 8601 times where every cell is one and
    no two different cells would become the same; elsewhere it is text: ``007`` stays ``007``, and
    ``11`` beside ``guest`` is text too. Integers stay integers beside missing values. What has no
    other form in CSV becomes text or numbers from Parquet as well: UUIDs, times of day, decimals.

    Args:
        path: File named ``.csv``, ``.tsv``, either of them with ``.gz``, or ``.parquet``.
        columns: Columns to read, by default all, or those of ``like``.
        text: Columns of a CSV file that are text even where they look like numbers.
        na_values: Further texts, such as ``NA``, and numbers written as text, such as ``-1``, that
            stand for a missing value.
        like: Features of a model: their columns are read as the training rows were read, cell by
            cell, with the same ``na_values``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, has no row, or lacks a column.

    Example:
        >>> import tempfile
        >>> rows = pd.DataFrame({"region": ["NA", "EU"], "zip": ["02134", "10115"]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rows.to_csv(f"{folder}/rows.csv", index=False)
        ...     read_table(f"{folder}/rows.csv").values.tolist()
        [['NA', '02134'], ['EU', '10115']]
    """
    path = Path(path)
    kind = file_type(path)
    na_values = cells.check_na_values(na_values)
    known_types: dict[str, frozenset[type]] = {}
    if like is not None:
        known_types = {name: each.types for name, each in like.vocabularies.items()}
        na_values = (*na_values, *like.na_values)
        text = (*text, *(name for name in like.names if like.separators.get(name) is not None))
        columns = like.names if columns is None else columns
    known = column_names(path)
    columns = known if columns is None else list(columns)
    if absent := [name for name in columns if name not in known]:
        raise ValueError(
            f"The file {path.name!r} has no column {', '.join(map(repr, absent))}; it has "
            f"{', '.join(map(repr, known))}.{'' if kind in _PARQUET else _without_header(path)}"
        )
    with _readable(path):
        if kind in _PARQUET:
            frame = _read_parquet(path, columns)
        else:
            frame = _read_text(path, usecols=columns, na_values=[""])
    if frame.empty:
        raise ValueError(f"The file {path.name!r} is empty: it has no row.")
    for name in columns:
        column = cells.without(frame[name], na_values)
        if name not in text and name in known_types:
            column = cells.like(column, known_types[name])
        elif name not in text and kind not in _PARQUET:
            column = _inferred(column, f"{path.name}: the column {name!r}")
        # A marker such as -1 is a number by now.
        frame[name] = cells.without(column, na_values)
    if kind not in _PARQUET and (advice := _without_header(path)):
        warnings.warn(f"{path.name}:{advice}", stacklevel=2)
    return frame[columns]


def column_names(path: str | Path) -> list[str]:
    """Names of the columns of a CSV or Parquet file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    path = Path(path)
    kind = file_type(path)
    if path.is_dir():
        raise FileNotFoundError(
            f"`path` must be a file, got the folder {str(path)!r}; write its parts into one file: "
            "`pandas.read_parquet(folder).to_parquet(file)`."
        )
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a file, got {str(path)!r}, which is none.")
    with _readable(path):
        if kind in _PARQUET:
            return list(parquet.read_schema(path).names)
        return list(_read_text(path, nrows=0).columns)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise ValueError(f"The file {str(path)!r} cannot be read: {error}") from error


def _read_text(path: Path, **options: Any) -> pd.DataFrame:
    separator = _SEPARATORS[file_type(path)]
    frame: pd.DataFrame = pd.read_csv(
        path, sep=separator, dtype=str, keep_default_na=False, **options
    )
    return frame


def _inferred(column: pd.Series[Any], name: str) -> pd.Series[Any]:
    typed = cells.infer(column)
    if typed is column and (markers := cells.numbers_but_for(column)):
        warnings.warn(
            f"{name} would be numbers but for {', '.join(map(repr, markers))}, an id like any "
            "other. If it stands for a missing value, say so: `na_values`, or on the command "
            f"line `--na-values {','.join(markers)}`.",
            stacklevel=3,
        )
    return typed


def _read_parquet(path: Path, columns: list[str]) -> pd.DataFrame:
    table = parquet.ParquetFile(path).read(columns)
    plain = pyarrow.table([plain_column(column) for column in table.columns], table.column_names)
    frame: pd.DataFrame = plain.to_pandas(ignore_metadata=True, integer_object_nulls=True)
    for name, before in zip(table.column_names, table.columns):
        if pyarrow.types.is_decimal(before.type):
            frame[name] = cells.infer(frame[name])
        digits = _DIGITS.get(str(before.type))
        if digits is not None and _beyond_floats(frame[name], 2.0**digits):
            warnings.warn(
                f"{path.name}: the column {name!r} holds whole numbers above 2**{digits} as "
                "floats, in which ids next to each other have become one. Write them as integers "
                "or text (DuckDB writes its HUGEINT as floats: CAST it AS VARCHAR).",
                stacklevel=3,
            )
    return frame


def _beyond_floats(column: pd.Series[Any], most: float) -> bool:
    numbers = column.to_numpy(np.float64)
    with np.errstate(invalid="ignore"):
        whole = np.isnan(numbers) | (np.isfinite(numbers) & (numbers == np.floor(numbers)))
    return bool(np.nanmax(np.abs(numbers), initial=0) >= most and whole.all())


def _without_header(path: Path) -> str:
    """What to do if the first row of a file looks like values and not like names, or nothing."""
    try:
        rows = _read_text(path, nrows=_HEADER_ROWS, header=None)
    except _UNREADABLE:
        return ""
    row = rows.iloc[0].tolist()
    if row == [str(place) for place in range(len(row))]:
        return ""
    # A name that is also a value of its column is no name.
    repeated = set(rows.iloc[0][(rows.iloc[1:] == rows.iloc[0]).any()])
    values = {text for text in row if text in repeated or _LIKE_A_VALUE.fullmatch(text)} - {""}
    doubtful = [text for text in row if text in values or not text or row.count(text) > 1]
    surely = any(_LIKE_A_VALUE.fullmatch(text) for text in repeated)
    if not values or (2 * len(doubtful) <= len(row) and not surely):
        return ""
    shown = ", ".join(map(repr, doubtful[:3]))
    return (
        f" The first row, which should be the names of the columns, looks like values: {shown}. "
        "If the file has no header, write one: `pandas.read_csv(path, sep=..., header=None, names="
        '["label", "user", ...]).to_csv(path, index=False)`.'
    )


def file_type(path: Path) -> str:
    """The ending that says how a file is written.

    Raises:
        ValueError: If it is another one.
    """
    name = path.name.lower()
    for suffix in (*_SEPARATORS, *_PARQUET):
        if name.endswith(suffix):
            return suffix
    known = ", ".join((*_SEPARATORS, *_PARQUET))
    raise ValueError(f"`path` must end in one of {known}, got {str(path)!r}.")
