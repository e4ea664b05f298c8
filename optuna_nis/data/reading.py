"""A table without loss, whole or in batches: the same rows give the same ids in each format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd
import pyarrow

from optuna_nis.data import cells
from optuna_nis.data.arrow_types import is_list_of_zoned_times
from optuna_nis.data.columns import integers_of_floats, types_of_cells
from optuna_nis.data.features import Features
from optuna_nis.data.few_digits import warn_of_few_digits
from optuna_nis.data.files import TableFiles
from optuna_nis.data.meaning import inferred
from optuna_nis.data.paths import Paths

_ROWS = 1 << 16


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
    named, as_floats = set(text), set[str]()
    if like is not None:
        known_types, more_text = _known(like)
        na_values, text = (*na_values, *like.na_values), (*text, *more_text)
        columns = like.needed if columns is None else columns
    files.check_there(columns)
    columns = files.names if columns is None else list(columns)
    frame = _read(files, list(dict.fromkeys(columns)))
    if not len(frame):
        raise ValueError(f"The {files.described} is empty: it has no row.")
    if like is not None:
        texts = set(_text_columns(files, like)) - named
        as_floats = _integers_as_floats([frame], texts, like)
    for name in columns:
        known = name in text or name in known_types
        may_be_numbers = not known and files.kind == "text" and files.is_text(name)
        described = f"{files.name}: the column {name!r}" if may_be_numbers else ""
        types = None if name in text else known_types.get(name)
        frame[name] = _meant(frame[name], types, na_values, described)
        if like is not None and name in as_floats:
            frame[name] = integers_of_floats(frame[name], like.vocabularies[name])
    return frame[columns]


def read_batches(
    files: TableFiles, like: Features, *, more: Sequence[str] = (), rows: int = _ROWS
) -> Iterator[tuple[pd.DataFrame, pyarrow.RecordBatch]]:
    r"""Read new rows for a model batch by batch, as :func:`read_table` reads them at once.

    That the columns are there, and that features hold ids of the kind that training has seen, is
    checked first.

    Args:
        files: The files of the table.
        like: The features of the model.
        more: Further columns, as they are written.
        rows: The most rows of a batch.

    Returns:
        For each batch the columns of ``like`` and those of ``more``.

    Raises:
        ValueError: If a file cannot be read, there is no row, or a column is missing or of another
            type than in training.

    Example:
        >>> import tempfile
        >>> features = Features.fit(pd.DataFrame({"user": [7, 7, 8]}), task="ranking")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     new = pd.DataFrame({"day": ["03", "04"], "user": [8, 9]})
        ...     new.to_csv(f"{folder}/new.csv", index=False)
        ...     files = TableFiles(f"{folder}/new.csv")
        ...     ((frame, others),) = read_batches(files, features, more=["day"])
        >>> frame["user"].tolist(), others.to_pylist()
        ([8, 9], [{'day': '03'}, {'day': '04'}])
    """
    files.check_there([*like.needed, *more])
    _check_kinds(files, like, rows)
    return _batches(files, like, list(more), rows)


def _batches(
    files: TableFiles, like: Features, more: list[str], rows: int
) -> Iterator[tuple[pd.DataFrame, pyarrow.RecordBatch]]:
    start = 0
    # Rows are there even where a model looks at no column.
    columns = list(dict.fromkeys([*like.needed, *more])) or files.names[:1]
    text = _text_columns(files, like)
    batches = files.batches(text, rows=rows) if text else iter(())
    as_floats = _integers_as_floats((_to_pandas(each, len(each)) for each in batches), text, like)
    for batch in files.batches(columns, rows=rows):
        frame = _frame(batch, like, files.name)
        for name in as_floats:
            frame[name] = integers_of_floats(frame[name], like.vocabularies[name])
        # Errors tell the row.
        frame.index += start
        start += len(batch)
        yield frame, batch.select(more)
    if not start:
        raise ValueError(f"The {files.described} is empty: it has no row.")


def _frame(batch: pyarrow.RecordBatch, like: Features, table: str) -> pd.DataFrame:
    """The columns of a model, cell by cell as the training rows were read."""
    types, text = _known(like)
    columns = [name for name in like.needed if name in batch.schema.names]
    frame = _to_pandas(batch.select(columns), len(batch))
    for name in columns:
        warn_of_few_digits(frame[name], str(batch.schema.field(name).type), table, name)
        known = None if name in text else types.get(name)
        frame[name] = _meant(frame[name], known, like.na_values)
    return frame


def _meant(
    column: pd.Series[Any],
    types: frozenset[type] | None,
    na_values: Sequence[str],
    described: str = "",
) -> pd.Series[Any]:
    """What the cells of a column mean.

    Args:
        column: The column as it is written.
        types: Types of its values, if they are known.
        na_values: What stands for a missing value.
        described: The column in warnings, if its text may be all numbers or the like.
    """
    column = cells.without(column, na_values)
    if types is not None:
        column = cells.like(column, types)
    elif described:
        column = inferred(column, described)
    # A marker such as -1 may be a number by now.
    return cells.without(column, na_values)


def _check_kinds(files: TableFiles, like: Features, rows: int) -> None:
    """Refuse columns of another kind than in training, which a few rows of them tell.

    Where the first rows have none that fits, those behind them may.
    """
    left = [name for name in like.names if name not in like.optional]
    while left:
        error, fitting = None, set[str]()
        for batch in files.batches(left, rows=rows):
            frame = _frame(batch, like, files.name)
            for name in left:
                try:
                    like.as_seen(frame[name], name)
                except ValueError as found:
                    error = error or found
                else:
                    fitting |= {name} if frame[name].notna().any() else set()
            if fitting:
                break
        left = [name for name in left if name not in fitting]
        if not fitting:
            if error is not None:
                raise error
            return


def _text_columns(files: TableFiles, like: Features) -> list[str]:
    """The columns of a text file of which training has seen text, of bags as one text a cell."""
    if files.kind != "text":
        return []
    # Where the point may stand between two values it says nothing, as in lists.
    return [
        name
        for name in like.names
        if name not in like.optional
        and like.vocabularies[name].types == {str}
        and (separator := like.separators.get(name, "")) is not None
        and "." not in separator
    ]


def _integers_as_floats(
    frames: Iterable[pd.DataFrame], columns: Iterable[str], like: Features
) -> set[str]:
    """Those of the :func:`_text_columns` that are floats in the file, such as 5.0.

    So pandas writes integers beside missing values. All cells of a column together tell it.
    """
    left, found = set(columns), set[str]()
    for frame in frames:
        for name in left & set(frame.columns):
            column = cells.without(frame[name], like.na_values)
            if not cells.are_integers_as_floats(column):
                left.remove(name)
            elif column.notna().any():
                found.add(name)
        if not left:
            break
    return found & left


def _known(like: Features) -> tuple[dict[str, frozenset[type]], list[str]]:
    """The types of columns that have some, and the columns that are text."""
    types = {name: types_of_cells(each) for name, each in like.vocabularies.items()}
    return types, [name for name in like.names if like.separators.get(name) is not None]


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
    some = columns or files.names[:1]
    schema = files.schema(some)
    table = pyarrow.Table.from_batches(files.batches(some), schema)
    frame = _to_pandas(table, len(table))[columns]
    if files.kind == "text":
        return frame
    for name, kind in zip(columns, schema.types):
        if files.is_text(name):
            frame[name] = cells.infer(frame[name])
        warn_of_few_digits(frame[name], str(kind), files.name, name)
    return frame


def _to_pandas(rows: pyarrow.RecordBatch | pyarrow.Table, number: int) -> pd.DataFrame:
    frame: pd.DataFrame = rows.to_pandas(ignore_metadata=True, integer_object_nulls=True)
    if frame.columns.empty:
        return pd.DataFrame(index=pd.RangeIndex(number))
    for name, field in zip(frame.columns, rows.schema):
        if is_list_of_zoned_times(field.type):
            # Pandas would leave their zone out.
            frame[name] = pd.Series(rows.column(name).to_pylist(), dtype=object)
    return frame
