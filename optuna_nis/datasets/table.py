"""A table of one's own, in a CSV or Parquet file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
import warnings

import numpy as np
from numpy.typing import NDArray
import pandas as pd
import pyarrow
from pyarrow import parquet

from optuna_nis.datasets.base import EmbeddingDataModule, Source, Split
from optuna_nis.datasets.features import Task
from optuna_nis.datasets.vocabulary import Vocabulary

_SEPARATORS = {".csv": ",", ".csv.gz": ",", ".tsv": "\t", ".tsv.gz": "\t"}
_PARQUET = (".parquet", ".pq")
_NO_AND_YES = {"0": 0, "false": 0, "f": 0, "no": 0, "n": 0}
_NO_AND_YES |= {"1": 1, "true": 1, "t": 1, "yes": 1, "y": 1}


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
        time: Column of numbers, dates or dates as text, for the chronological split.
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
        text = [name for name, separator in self._separators.items() if separator is not None]
        # Ids that were text stay text where those that are left all look like numbers.
        known = set() if self._fitted is None else self._fitted.text
        frame = read_table(self.path, list(dict.fromkeys(needed)), text=sorted({*text, *known}))
        order = None if self.time is None else _order(frame[self.time], self.time)
        kept = frame[self.label].notna().to_numpy()
        self._warn_dropped(kept, self.label)
        if order is not None:
            timed = ~np.isnan(order)
            self._warn_dropped(timed | ~kept, str(self.time))
            kept = kept & timed
            order = order[kept]
        if not kept.any():
            raise ValueError(f"The file {self.path.name!r} has no row left to use.")
        frame = frame[kept]
        for name in text:
            _check_separator(frame[name], str(self._separators[name]), name)
        target = frame[self.label]
        if self.task == "ranking":
            target = _binary(target, self.label)
        return Source(frame, target, order)

    def _warn_dropped(self, kept: NDArray[np.bool_], name: str) -> None:
        if missing := int((~kept).sum()):
            warnings.warn(
                f"{self.path.name}: dropped {missing} of {len(kept)} rows, which have no value in "
                f"the column {name!r}.",
                stacklevel=5,
            )


def read_table(
    path: str | Path, columns: Sequence[str] | None = None, *, text: Sequence[str] = ()
) -> pd.DataFrame:
    """Read a CSV or Parquet file without loss: integers stay integers beside missing values.

    Args:
        path: File named ``.csv``, ``.tsv``, either of them with ``.gz``, or ``.parquet``.
        columns: Columns to read, by default all.
        text: Columns of a CSV file that are text even where they look like numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, has no row, or lacks a column.
    """
    path = Path(path)
    kind = _file_type(path)
    if not path.is_file():
        raise FileNotFoundError(f"`path` must be a file, got {str(path)!r}, which is none.")
    try:
        if kind in _PARQUET:
            known = parquet.read_schema(path).names
        else:
            options: dict[str, Any] = {"sep": _SEPARATORS[kind], "dtype_backend": "numpy_nullable"}
            known = list(pd.read_csv(path, nrows=0, **options).columns)
    except (ValueError, OSError, EOFError, pyarrow.ArrowException) as error:
        raise ValueError(f"The file {str(path)!r} cannot be read: {error}") from error
    columns = known if columns is None else list(columns)
    if absent := [name for name in columns if name not in known]:
        raise ValueError(
            f"The file {path.name!r} has no column {', '.join(map(repr, absent))}; it has "
            f"{', '.join(map(repr, known))}."
        )
    try:
        if kind in _PARQUET:
            table = parquet.ParquetFile(path).read(columns)
            frame: pd.DataFrame = table.to_pandas(ignore_metadata=True, integer_object_nulls=True)
        else:
            # Types by chunk would give 7 in one and "7" in the next.
            frame = pd.read_csv(
                path,
                usecols=columns,
                dtype=dict.fromkeys(text, "string"),
                low_memory=False,
                **options,
            )
    except (ValueError, OSError, EOFError, pyarrow.ArrowException) as error:
        raise ValueError(f"The file {str(path)!r} cannot be read: {error}") from error
    if frame.empty:
        raise ValueError(f"The file {path.name!r} is empty: it has no row.")
    return frame[columns]


def _file_type(path: Path) -> str:
    name = path.name.lower()
    for suffix in (*_SEPARATORS, *_PARQUET):
        if name.endswith(suffix):
            return suffix
    known = ", ".join((*_SEPARATORS, *_PARQUET))
    raise ValueError(f"`path` must end in one of {known}, got {str(path)!r}.")


def _order(column: pd.Series[Any], name: str) -> NDArray[np.float64]:
    """Numbers that grow with time; NaN where it is missing."""
    try:
        if pd.api.types.is_bool_dtype(column):
            raise ValueError("it holds false and true")
        if pd.api.types.is_numeric_dtype(column):
            return np.array(column.to_numpy(np.float64, na_value=np.nan), dtype=np.float64)
        if pd.api.types.infer_dtype(column, skipna=True) in ("integer", "floating", "decimal"):
            return np.array([np.nan if pd.isna(v) else float(v) for v in column])
        times = pd.to_datetime(column, utc=True)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"The column {name!r} must hold numbers or dates to order rows by time: {error}."
        ) from error
    seconds = (times - times.min()).dt.total_seconds()
    return np.array(seconds, dtype=np.float64)


def _binary(column: pd.Series[Any], name: str) -> pd.Series[Any]:
    """Labels as 0 and 1."""
    distinct = Vocabulary.from_values(column, name=name)
    labels = [_no_or_yes(value) for value in distinct.values]
    shown = ", ".join(repr(value) for value in distinct.values[:5])
    if None in labels:
        raise ValueError(
            f"The label {name!r} must hold 0 and 1 only (or false and true, no and yes), got "
            f"{shown}{', ...' * (len(distinct) > 5)}."
        )
    if len(set(labels)) < 2:
        raise ValueError(f"The label {name!r} must hold two classes, got only {shown}.")
    return pd.Series(np.array(labels, dtype=np.float32)[distinct.encode(column)])


def _no_or_yes(value: Any) -> int | None:
    if isinstance(value, str):
        return _NO_AND_YES.get(value.strip().lower())
    return int(value) if value in (0, 1) else None


def _check_separator(column: pd.Series[Any], separator: str, name: str) -> None:
    filled = column.dropna().astype(str)
    if len(filled) and not filled.str.contains(separator, regex=False).any():
        raise ValueError(
            f"`bags[{name!r}]` must be the text between two values, got {separator!r}, which no "
            f"cell contains; one is {filled.iloc[0]!r}. Leave the column out of `bags` if its "
            "cells hold one value each."
        )
