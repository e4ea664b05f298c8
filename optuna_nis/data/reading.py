"""A table in memory, without loss: the same rows give the same ids from each format."""

from __future__ import annotations

from collections.abc import Sequence
import warnings

import pandas as pd
import pyarrow

from optuna_nis.data import cells
from optuna_nis.data.features import Features
from optuna_nis.data.files import TableFiles
from optuna_nis.data.meaning import inferred, warn_of_few_digits
from optuna_nis.data.paths import Paths


def read_table(
    path: Paths,
    columns: Sequence[str] | None = None,
    *,
    text: Sequence[str] = (),
    na_values: Sequence[str] = (),
    like: Features | None = None,
    names: Sequence[str] | None = None,
    separator: str | None = None,
) -> pd.DataFrame:
    """Read a table without loss, so that the same rows give the same ids from each format.

    Only the empty cell is missing, be it null or the empty text; ``NA``, ``null`` and the like are
    text. A column of text files is numbers, booleans or ISO 8601 times where every cell is one and
    no two different cells would become the same; elsewhere it is text: ``007`` stays ``007``, and
    ``11`` beside ``guest`` is text too. Integers stay integers beside missing values. What has no
    other form in CSV becomes text or numbers from Parquet as well: UUIDs, times of day, decimals.

    Args:
        path: A file, several, a folder or a pattern; :class:`~optuna_nis.data.files.TableFiles`
            says in which formats.
        columns: Columns to read, by default all, or those of ``like``.
        text: Columns of a text file that are text even where they look like numbers.
        na_values: Further texts, such as ``NA``, and numbers written as text, such as ``-1``, that
            stand for a missing value.
        like: Features of a model: their columns are read as the training rows were read, cell by
            cell, with the same ``na_values``.
        names: Names of the columns of text files without a header.
        separator: What stands between two cells of text files, by default what their names say.

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
    na_values = cells.check_na_values(na_values)
    files = TableFiles(path, names=names, separator=separator)
    known_types: dict[str, frozenset[type]] = {}
    if like is not None:
        known_types = {name: each.types for name, each in like.vocabularies.items()}
        na_values = (*na_values, *like.na_values)
        text = (*text, *(name for name in like.names if like.separators.get(name) is not None))
        columns = like.columns if columns is None else columns
    columns = files.names if columns is None else list(columns)
    if absent := [name for name in columns if name not in {*files.names, *files.aliases}]:
        raise ValueError(
            f"The {files.described} has no column {', '.join(map(repr, absent))}; it has "
            f"{', '.join(map(repr, files.names))}.{files.without_header()}"
        )
    frame = _read(files, list(dict.fromkeys(columns)))
    if frame.empty:
        raise ValueError(f"The {files.described} is empty: it has no row.")
    for name in columns:
        column = cells.without(frame[name], na_values)
        if name not in text and name in known_types:
            column = cells.like(column, known_types[name])
        elif name not in text and files.kind == "text" and files.is_text(name):
            column = inferred(column, f"{files.name}: the column {name!r}")
        # A marker such as -1 is a number by now.
        frame[name] = cells.without(column, na_values)
    if advice := files.without_header():
        warnings.warn(f"{files.name}:{advice}", stacklevel=2)
    return frame[columns]


def column_names(
    path: Paths, *, names: Sequence[str] | None = None, separator: str | None = None
) -> list[str]:
    """Names of the columns of a table.

    Args:
        path: As in :func:`read_table`.
        names: As in :func:`read_table`.
        separator: As in :func:`read_table`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.
    """
    return TableFiles(path, names=names, separator=separator).names


def _read(files: TableFiles, columns: list[str]) -> pd.DataFrame:
    schema = files.schema(columns)
    table = pyarrow.Table.from_batches(files.batches(columns), schema)
    frame: pd.DataFrame = table.to_pandas(ignore_metadata=True, integer_object_nulls=True)
    if files.kind == "text":
        return frame
    for name, kind in zip(columns, schema.types):
        if files.is_text(name):
            frame[name] = cells.infer(frame[name])
        warn_of_few_digits(frame[name], str(kind), files.name, name)
    return frame
