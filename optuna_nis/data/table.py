"""A table of one's own, in a CSV or Parquet file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
import warnings

import numpy as np
from numpy.typing import NDArray
import pandas as pd

from optuna_nis.data import cells
from optuna_nis.data.base import EmbeddingDataModule
from optuna_nis.data.features import Task
from optuna_nis.data.reading import file_type, read_table
from optuna_nis.data.source import Source
from optuna_nis.data.splits import Split, parts_of
from optuna_nis.data.times import order_of
from optuna_nis.data.vocabulary import Vocabulary

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
        time: Column of numbers, dates or ISO 8601 dates as text, for the chronological split.
        time_format: How dates as text are written if not so, such as ``"%d/%m/%Y"``; the codes
            are those of :meth:`datetime.datetime.strptime`.
        na_values: Texts, such as ``NA``, and numbers written as text that stand for a missing
            value, in features, label and time. Without, only the empty cell is missing.
        task: ``"ranking"`` or ``"retrieval"``.
        split: ``"random"``, ``"chronological"`` or ``"given"``. By default given if there is a
            ``split_column``, chronological if there is a ``time``; chronological without ``time``
            is in the order of the file.
        split_column: Column that says which part a row belongs to, for a split of one's own: 0,
            1 and 2, or ``train``, ``validation`` and ``test``. Rows without are dropped with a
            warning.
        **options: Further arguments of :class:`EmbeddingDataModule`, such as ``seed`` and
            ``withhold_test``.

    Raises:
        ValueError: If an argument is out of range. The file is read when it is first needed.

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
        split_column: str | None = None,
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
        if split_column is not None:
            _check_split_column(split_column, split, time, (*columns, label))
            split = "given"
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
        self.split_column = split_column
        self._na_values = cells.check_na_values(na_values)
        self._columns = columns
        file_type(self.path)

    def load(self) -> Source:
        """Read the file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read, a column is not there, or the label, time or split
                column holds something else than it should.
        """
        others = (self.label, self.time, self.split_column)
        needed = [*self._columns, *(name for name in others if name is not None)]
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
        order = part = None
        if self.time is not None:
            order = order_of(frame[self.time], self.time, self.time_format)
        if self.split_column is not None:
            part = parts_of(frame[self.split_column], self.split_column)
        kept = frame[self.label].notna().to_numpy()
        self._warn_dropped(kept, self.label)
        for name, places in ((self.time, order), (self.split_column, part)):
            if places is not None:
                self._warn_dropped((places >= 0) | ~kept, str(name))
                kept = kept & (places >= 0)
        if not kept.any():
            raise ValueError(f"The file {self.path.name!r} has no row left to use.")
        frame = frame[kept]
        for name in bags:
            _check_separator(frame[name], str(self._separators[name]), name)
        target = frame[self.label]
        if self.task == "ranking":
            target = _binary(target, self.label)
        order, part = (None if each is None else each[kept] for each in (order, part))
        return Source(frame, target, order, part=part)

    def _warn_dropped(self, kept: NDArray[np.bool_], name: str) -> None:
        if missing := int((~kept).sum()):
            warnings.warn(
                f"{self.path.name}: dropped {missing:,} of {len(kept):,} rows, which have no "
                f"value in the column {name!r}.",
                stacklevel=5,
            )


def _check_split_column(
    name: str, split: Split | None, time: str | None, others: tuple[str, ...]
) -> None:
    if name in others:
        raise ValueError(f"`split_column` must not be a feature or the label too, got {name!r}.")
    if time is not None:
        raise ValueError(
            f"Either `time` or `split_column` says how rows are split, got {time!r} and {name!r}."
        )
    if split not in (None, "given"):
        raise ValueError(f'`split_column` is for `split="given"`, got {name!r} with {split!r}.')


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
