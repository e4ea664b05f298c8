"""A table of one's own, in a CSV or Parquet file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
import re
from typing import Any
from uuid import UUID
import warnings

import numpy as np
from numpy.typing import NDArray
import pandas as pd
import pyarrow
from pyarrow import compute, parquet

from optuna_nis.data import cells
from optuna_nis.data.base import EmbeddingDataModule, Source, Split
from optuna_nis.data.features import Features, Task, check_na_values
from optuna_nis.data.vocabulary import Vocabulary

_SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
_PARQUET = (".parquet", ".pq")
_NO_AND_YES = {"0": 0, "false": 0, "f": 0, "no": 0, "n": 0}
_NO_AND_YES |= {"1": 1, "true": 1, "t": 1, "yes": 1, "y": 1}
_HEADER_ROWS = 1000
# What pandas calls the kinds of values by which rows can be ordered.
_TIMES = ("date", "datetime", "datetime64")
_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal")
# Up to two to the power of so much, floats can hold every whole number.
_DIGITS = {"halffloat": 11, "float": 24, "double": 53}
_TIME_FORMATS = tuple(
    day + clock
    for day in ("%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y")
    for clock in ("", " %H:%M", " %H:%M:%S")
)
_UNREADABLE = (ValueError, OSError, EOFError, pyarrow.ArrowException)
# A number, a hash or a UUID.
_LIKE_A_VALUE = re.compile(
    r"-?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?|(?=.*[0-9])[0-9a-fA-F]{8,}|"
    r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
)


class TableDataModule(EmbeddingDataModule):
    """The rows of a CSV or Parquet file.

    Ids may be of any type: text, numbers, booleans, dates, also mixed. Missing values and values
    unseen in training are out of vocabulary.

    Args:
        path: File named ``.csv``, ``.tsv``, either of them with ``.gz``, or ``.parquet``.
        label: Column of the label. For ranking it holds 0 and 1, false and true, or no and yes;
            for retrieval the value to find. Rows without label are dropped with a warning.
        features: Columns of the categorical features.
        bags: Columns of which a cell holds several values, each with the text between two of
            them, or with :obj:`None` if its cells are lists (Parquet). They are features too,
            whether ``features`` names them or not.
        time: Column of numbers, dates or ISO 8601 dates as text, for the chronological split.
        time_format: How dates as text are written if not so, such as ``"%d/%m/%Y"``; the codes
            are those of :meth:`datetime.datetime.strptime`.
        na_values: Texts, such as ``NA``, and numbers written as text that stand for a missing
            value, in features, label and time. Without, only the empty cell is missing.
        task: ``"ranking"`` or ``"retrieval"``.
        split: ``"random"`` or ``"chronological"``. By default chronological if there is a
            ``time``; chronological without ``time`` is in the order of the file.
        **options: Further arguments of :class:`EmbeddingDataModule`, such as ``seed`` and
            ``withhold_test``.

    Raises:
        ValueError: If an argument is out of range. The file is read by :meth:`setup`.

    Example:
        >>> import tempfile
        >>> clicks = pd.DataFrame({"user": ["ann", "bob"] * 50, "item": range(100)})
        >>> clicks = clicks.assign(genres="Drama|War", clicked=clicks["item"] % 3 == 0)
        >>> clicks.loc[7, "genres"] = "War"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     clicks.to_csv(f"{folder}/clicks.csv", index=False)
        ...     data = TableDataModule(
        ...         f"{folder}/clicks.csv",
        ...         label="clicked",
        ...         features=["user", "item"],
        ...         bags={"genres": "|"},
        ...     )
        ...     data.setup("fit")
        >>> {name: len(values) for name, values in data.vocabularies.items()}
        {'user': 2, 'item': 80, 'genres': 2}
    """

    def __init__(
        self,
        path: str | Path,
        *,
        label: str,
        features: Sequence[str] = (),
        bags: Mapping[str, str | None] | None = None,
        time: str | None = None,
        time_format: str | None = None,
        na_values: Sequence[str] = (),
        task: Task = "ranking",
        split: Split | None = None,
        **options: Any,
    ) -> None:
        if isinstance(features, str):
            raise ValueError(f"`features` must be a list of columns, got the text {features!r}.")
        bags = dict(bags or {})
        columns = (*features, *(name for name in bags if name not in features))
        if label in columns:
            raise ValueError(f"`label` must not be a feature too, got {label!r} in `features`.")
        if time is not None and time == label:
            raise ValueError(f"`time` must not be the label too, got {time!r}.")
        if time is not None and split == "random":
            raise ValueError(f'`time` is for `split="chronological"`, got {time!r} with "random".')
        if time_format is not None and time is None:
            raise ValueError(
                f"`time_format` says how `time` is written, got {time_format!r} without `time`."
            )
        if split is None:
            split = "random" if time is None else "chronological"
        super().__init__(
            task,
            features=columns,
            separators=bags,
            split=split,
            **options,
        )
        self.path = Path(path)
        self.label = label
        self.time = time
        self.time_format = time_format
        self._na_values = check_na_values(na_values)
        self._columns = columns
        _file_type(self.path)

    def load(self) -> Source:
        """Read the file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read, a column is not there, or the label or time holds
                something else than it should.
        """
        needed = [*self._columns, self.label, *([] if self.time is None else [self.time])]
        bags = [name for name, separator in self._separators.items() if separator is not None]
        text = [*bags, *([] if self.time_format is None else [str(self.time)])]
        frame = read_table(
            self.path,
            list(dict.fromkeys(needed)),
            text=text,
            na_values=self._na_values,
            like=self._fitted,
        )
        if self._fitted is not None and self._fitted.targets is not None:
            # Targets that were text stay text where those that are left all look like numbers.
            frame[self.label] = cells.like(frame[self.label], self._fitted.targets.types)
        order = None
        if self.time is not None:
            order = _order(frame[self.time], self.time, self.time_format)
        kept = frame[self.label].notna().to_numpy()
        self._warn_dropped(kept, self.label)
        if order is not None:
            timed = order >= 0
            self._warn_dropped(timed | ~kept, str(self.time))
            kept = kept & timed
            order = order[kept]
        if not kept.any():
            raise ValueError(f"The file {self.path.name!r} has no row left to use.")
        frame = frame[kept]
        for name in bags:
            _check_separator(frame[name], str(self._separators[name]), name)
        target = frame[self.label]
        if self.task == "ranking":
            target = _binary(target, self.label)
        return Source(frame, target, order)

    def _warn_dropped(self, kept: NDArray[np.bool_], name: str) -> None:
        if missing := int((~kept).sum()):
            warnings.warn(
                f"{self.path.name}: dropped {missing:,} of {len(kept):,} rows, which have no "
                f"value in the column {name!r}.",
                stacklevel=5,
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
    kind = _file_type(path)
    na_values = check_na_values(na_values)
    known_types: dict[str, frozenset[type]] = {}
    if like is not None:
        known_types = {name: each.types for name, each in like.vocabularies.items()}
        na_values = (*na_values, *like.na_values)
        text = (*text, *(name for name in like.names if like.separators.get(name) is not None))
        columns = like.names if columns is None else columns
    known = _column_names(path, kind)
    columns = known if columns is None else list(columns)
    if absent := [name for name in columns if name not in known]:
        raise ValueError(
            f"The file {path.name!r} has no column {', '.join(map(repr, absent))}; it has "
            f"{', '.join(map(repr, known))}.{'' if kind in _PARQUET else _without_header(path)}"
        )
    try:
        if kind in _PARQUET:
            frame = _read_parquet(path, columns)
        else:
            frame = _read_text(path, columns)
    except _UNREADABLE as error:
        raise ValueError(f"The file {str(path)!r} cannot be read: {error}") from error
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
    return _column_names(path, _file_type(path))


def _column_names(path: Path, kind: str) -> list[str]:
    if path.is_dir():
        raise FileNotFoundError(
            f"`path` must be a file, got the folder {str(path)!r}; write its parts into one file: "
            "`pandas.read_parquet(folder).to_parquet(file)`."
        )
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a file, got {str(path)!r}, which is none.")
    try:
        if kind in _PARQUET:
            return list(parquet.read_schema(path).names)
        return list(pd.read_csv(path, nrows=0, sep=_SEPARATORS[kind]).columns)
    except _UNREADABLE as error:
        raise ValueError(f"The file {str(path)!r} cannot be read: {error}") from error


def _read_text(path: Path, columns: list[str]) -> pd.DataFrame:
    frame: pd.DataFrame = pd.read_csv(
        path,
        usecols=columns,
        sep=_SEPARATORS[_file_type(path)],
        dtype=str,
        keep_default_na=False,
        na_values=[""],
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
    plain = pyarrow.table([_plain(column) for column in table.columns], table.column_names)
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


def _plain(column: Any) -> Any:
    """A column of an Arrow table in one of the types that rows of a CSV file can have, too."""
    kind, types = column.type, pyarrow.types
    if isinstance(kind, pyarrow.BaseExtensionType):
        storage = pyarrow.chunked_array([c.storage for c in column.chunks], kind.storage_type)
        if kind.extension_name == "arrow.uuid":
            return _written(storage, lambda value: str(UUID(bytes=value)))
        return _plain(storage)
    if str(kind) == "string_view":
        return _plain(column.cast(pyarrow.large_string()))
    if types.is_dictionary(kind):
        return _plain(column.cast(kind.value_type))
    if types.is_nested(kind):
        return _plain_items(column)
    if types.is_time(kind):
        return _written(column, str)
    if types.is_duration(kind):
        return _written(column, lambda value: str(pd.Timedelta(value)))
    if types.is_decimal(kind):
        return _written(column, "{:f}".format)
    if types.is_date(kind):
        return column.cast(pyarrow.timestamp("s" if types.is_date32(kind) else "ms"))
    if types.is_timestamp(kind) and kind.tz is not None:
        return column.cast(pyarrow.timestamp(kind.unit, "UTC"))
    if types.is_binary(kind) or types.is_large_binary(kind):
        # Some writers leave out that their bytes are text.
        with suppress(pyarrow.ArrowInvalid):
            return _plain(column.cast(pyarrow.large_string()))
    if types.is_string(kind) or types.is_large_string(kind):
        return compute.if_else(compute.equal(column, ""), pyarrow.scalar(None, kind), column)
    return column


def _plain_items(column: Any) -> Any:
    kind = column.type
    if not hasattr(kind, "value_type") or pyarrow.types.is_map(kind):
        return column
    empty = pyarrow.chunked_array([], kind.value_type)
    if _plain(empty).type == kind.value_type:
        return column
    values = _plain(pyarrow.chunked_array([compute.list_flatten(column.combine_chunks())]))
    sizes = compute.list_value_length(column).to_pylist()
    items = iter(values.to_pylist())
    lists = [None if size is None else list(islice(items, size)) for size in sizes]
    return pyarrow.chunked_array([pyarrow.array(lists, pyarrow.list_(values.type))])


def _written(column: Any, write: Callable[[Any], str]) -> Any:
    texts = [None if value is None else write(value) for value in column.to_pylist()]
    return pyarrow.chunked_array([pyarrow.array(texts, pyarrow.string())])


def _without_header(path: Path) -> str:
    """What to do if the first row of a file looks like values and not like names, or nothing."""
    try:
        rows = pd.read_csv(
            path, sep=_SEPARATORS[_file_type(path)], nrows=_HEADER_ROWS, header=None, dtype=str,
            keep_default_na=False,
        )  # fmt: skip
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


def _file_type(path: Path) -> str:
    name = path.name.lower()
    for suffix in (*_SEPARATORS, *_PARQUET):
        if name.endswith(suffix):
            return suffix
    known = ", ".join((*_SEPARATORS, *_PARQUET))
    raise ValueError(f"`path` must end in one of {known}, got {str(path)!r}.")


def _order(column: pd.Series[Any], name: str, time_format: str | None) -> NDArray[np.int64]:
    """The place of every row's time among all times, -1 where it is missing."""
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if time_format is not None and kind not in _TIMES:
        column, kind = _parsed(column, name, time_format), "datetime64"
    elif kind == "string":
        column = cells.infer(column)
        kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind not in _TIMES and kind not in _NUMBERS and column.notna().any():
        raise ValueError(
            f"The column {name!r} must hold numbers or dates to order rows by time{_found(column)}"
        )
    codes, _ = pd.factorize(column, sort=True)
    return codes.astype(np.int64)


def _parsed(column: pd.Series[Any], name: str, time_format: str) -> pd.Series[Any]:
    texts = cells.like(column, frozenset({str}))
    try:
        times = pd.to_datetime(texts, format=time_format, utc=True, errors="coerce")
    except ValueError as error:
        raise ValueError(
            f"`time_format` must be such as '%d/%m/%Y', got {time_format!r}: {error}."
        ) from error
    if (other := texts[times.isna()].dropna()).size:
        raise ValueError(
            f"The column {name!r} must hold dates written as `time_format` {time_format!r} says, "
            f"got {other.iloc[0]!r}."
        )
    return times


def _found(column: pd.Series[Any]) -> str:
    """What a column without times holds instead, and how to go on."""
    values = column.dropna()
    if pd.api.types.infer_dtype(values) == "boolean":
        return ": it holds false and true."
    texts = values.astype(str)
    odd = next(filter(cells.is_text, texts), texts.iloc[0])
    fitting = [each for each in _TIME_FORMATS if _fits(texts, each)]
    first = fitting[0] if fitting else _TIME_FORMATS[0]
    several = f" (or is it {' or '.join(fitting[1:])}?)" if len(fitting) > 1 else ""
    missing = f", or `na_values` if {odd!r} means none" if odd in cells.USUAL_MARKERS else ""
    return (
        f", such as 2024-01-31 or 2024-01-31 18:00:00.5, all with an offset from UTC or all "
        f"without; got {odd!r}. Say how they are written: `time_format={first!r}`, on the command "
        f"line `--time-format '{first}'`{several}{missing}."
    )


def _fits(texts: pd.Series[Any], time_format: str) -> bool:
    return bool(pd.to_datetime(texts, format=time_format, errors="coerce").notna().all())


def _binary(column: pd.Series[Any], name: str) -> pd.Series[Any]:
    """Labels as 0 and 1."""
    distinct = Vocabulary.from_values(column, name=name)
    labels = [_no_or_yes(value) for value in distinct.values]
    shown = ", ".join(repr(value) for value in distinct.values[:5])
    if None in labels:
        raise ValueError(
            f"The label {name!r} must hold 0 and 1 only (or false and true, no and yes), got "
            f"{shown}{', ...' * (len(distinct) > 5)}.{_marked(distinct)}"
        )
    if len(set(labels)) < 2:
        raise ValueError(f"The label {name!r} must hold two classes, got only {shown}.")
    return pd.Series(np.array(labels, dtype=np.float32)[distinct.encode(column)])


def _marked(labels: Vocabulary) -> str:
    """How to go on where a label stands for none."""
    markers = [value for value in labels.values if value in cells.USUAL_MARKERS]
    if not markers:
        return ""
    return (
        f" If {' or '.join(map(repr, markers))} stands for a missing label, say so: `na_values`, "
        f"on the command line `--na-values {','.join(map(str, markers))}`."
    )


def _no_or_yes(value: Any) -> int | None:
    if isinstance(value, str):
        return _NO_AND_YES.get(value.strip().lower())
    return int(value) if value in (0, 1) else None


def _check_separator(column: pd.Series[Any], separator: str, name: str) -> None:
    cell = next(iter(column.dropna()), None)
    if isinstance(cell, (list, np.ndarray)):
        raise ValueError(
            f"`bags[{name!r}]` must be None, since the cells of the column are lists, got "
            f"{separator!r}: `bags={{{name!r}: None}}`, or on the command line `--bags {name}`."
        )
    filled = column.dropna().astype(str)
    if len(filled) and not filled.str.contains(separator, regex=False).any():
        raise ValueError(
            f"`bags[{name!r}]` must be the text between two values, got {separator!r}, which no "
            f"cell contains; one is {filled.iloc[0]!r}. Leave the column out of `bags` if its "
            "cells hold one value each."
        )
