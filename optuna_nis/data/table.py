"""A table of one's own, in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pandas as pd

from optuna_nis.data import cells
from optuna_nis.data.bags import check_bags, check_separators
from optuna_nis.data.base import EmbeddingDataModule
from optuna_nis.data.coded import CodedColumn, plain_values
from optuna_nis.data.files import TableFiles
from optuna_nis.data.keys import GROUP, WEIGHT, Task, check_names, sharing
from optuna_nis.data.labels import Label, check_rule
from optuna_nis.data.meaning import Meaning
from optuna_nis.data.pace import Progress, no_progress
from optuna_nis.data.paths import Paths, check_path
from optuna_nis.data.patterns import has_patterns, select_columns
from optuna_nis.data.row_columns import left_after, read_row_columns
from optuna_nis.data.source import CodedSource
from optuna_nis.data.splits import Split, nearest_time, parts_of
from optuna_nis.data.store import ColumnStore
from optuna_nis.data.times import order_of

# Tables of so many bytes are read in seconds.
_CACHED = 64 << 20


class TableDataModule(EmbeddingDataModule):
    """The rows of a table: one file or many, CSV, TSV, Parquet and more.

    Ids may be of any type: text, numbers, booleans, dates, also mixed. Missing values and values
    unseen in training are out of vocabulary.

    Args:
        path: File named ``.csv``, ``.tsv``, either of them with ``.gz``, or ``.parquet``; several;
            a folder of such parts, or a pattern such as ``"logs/day_*.parquet"``. See
            :class:`~optuna_nis.data.files.TableFiles` for all forms.
        label: Column of the label. For ranking it holds 0 and 1, -1 and 1, false and true, or no
            and yes, or is compared, as in ``"rating>=4"``; for retrieval the value to find. Rows
            without label are dropped with a warning.
        features: Columns of the categorical features; patterns such as ``"C*"`` and ``"!C7"``, all
            but that one, are those that fit, besides columns that are something else.
        bags: Columns of which a cell holds several values, each with the text between two of
            them, or with :obj:`None` if its cells are lists (Parquet). They are features too,
            whether ``features`` names them or not.
        time: Column of numbers, dates or ISO 8601 dates as text, for the splits that go by it:
            chronological, leave-one-out, and validation beside a ``test_path``. Rows without are
            dropped with a warning.
        time_format: How dates as text are written if not so, such as ``"%d/%m/%Y"``; the codes
            are those of :meth:`datetime.datetime.strptime`.
        na_values: Texts, such as ``NA``, and numbers written as text that stand for a missing
            value, in features, label and time. Without, only the empty cell is missing.
        task: ``"ranking"`` or ``"retrieval"``.
        split: ``"random"``, ``"chronological"``, ``"leave-one-out"``, ``"group"`` or ``"given"``.
            By default given if there is a ``split_column`` or other files for the parts,
            chronological if there is a ``time``; chronological without ``time`` is in the order
            of the files.
        split_column: Column that says which part a row belongs to, for a split of one's own: 0,
            1 and 2, or ``train``, ``validation`` and ``test``. Rows without are dropped with a
            warning.
        valid_path: Files of the validation part. Without, if there is a ``test_path``, a ninth of
            the training rows is for validation: the latest if there is a ``time``.
        test_path: Files of the test part, needed if there is a ``valid_path``.
        weight: Column of the weights of the rows, at least 0.
        group: Column of the group of a row, such as its user or query: metrics are told as means
            over groups too, and rows can be split by it (``"leave-one-out"``, ``"group"``). Means
            over groups leave rows without one out, with a warning; they are split one by one.
        numeric: Columns of numbers that are no ids, or patterns of such.
        columns: Names of the columns of text files without a header.
        separator: What stands between the cells of text files, if not what their names say.
        cache_dir: Folder where the columns of tables of 64 MB or more are kept as they are read,
            so that neither a search that goes on nor the next one reads them again, and more rows
            than memory can be used. What is kept is named by the content of the files. By default
            they are held in memory.
        progress: Called with a line of text every few seconds while files are read.
        **options: Further arguments of :class:`EmbeddingDataModule`, such as ``seed``,
            ``min_count`` and ``withhold_test``.

    Raises:
        ValueError: If an argument is out of range. The files are read when first needed.

    Example:
        >>> import tempfile
        >>> import pandas as pd
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
        path: Paths,
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
        valid_path: Paths | None = None,
        test_path: Paths | None = None,
        weight: str | None = None,
        group: str | None = None,
        numeric: Sequence[str] = (),
        columns: Sequence[str] | None = None,
        separator: str | None = None,
        cache_dir: str | Path | None = None,
        progress: Progress = no_progress,
        **options: Any,
    ) -> None:
        for name, value in (("features", features), ("numeric", numeric)):
            if isinstance(value, str):
                raise ValueError(f"`{name}` must be a list of columns, got the text {value!r}.")
        check_separators(bags)
        bags = dict(bags or {})
        wanted = (*features, *(name for name in bags if name not in features))
        _check_no_input(label, label, wanted, numeric)
        if label in sharing(options.get("share")).values():
            raise ValueError(
                f"`share` must be between features, got the label {label!r}; a sequence, as "
                "`model='sasrec'` takes one, has the table of the label anyway."
            )
        for name, given in (("time", time), ("weight", weight), ("group", group)):
            if given is not None and given == label:
                raise ValueError(f"`{name}` must not be the label too, got {given!r}.")
        if time is not None:
            _check_time(time, split, valid_path)
        if time_format is not None and time is None:
            raise ValueError(
                f"`time_format` says how `time` is written, got {time_format!r} without `time`."
            )
        if valid_path is not None and test_path is None:
            raise ValueError(
                f"`test_path` must be given with `valid_path`, got None with {valid_path!r}."
            )
        if test_path is not None and (split_column is not None or split not in (None, "given")):
            raise ValueError(
                "`test_path` says which rows are for the test, got also "
                f"split={split!r}, split_column={split_column!r}."
            )
        if split in ("group", "leave-one-out") and group is None:
            raise ValueError(f'`group` must name a column for `split="{split}"`, got None.')
        if split_column is not None:
            _check_split_column(split_column, split, time, (*wanted, label))
            split = "given"
        if split is None:
            split = "random" if time is None else "chronological"
        super().__init__(
            task,
            separators=bags,
            split="given" if test_path is not None else split,
            numeric=numeric,
            **options,
        )
        self.path = path
        self.label = label
        self.time = time
        self.time_format = time_format
        self.split_column = split_column
        self.valid_path = valid_path
        self.test_path = test_path
        self.weight = weight
        self.group = group
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self._progress = progress
        self._na_values = cells.check_na_values(na_values)
        self._wanted, self._wanted_numeric, self._bags = tuple(features), self._numeric, bags
        self._reading: dict[str, Any] = {"names": columns, "separator": separator}
        if not has_patterns(wanted):
            check_names(wanted, self._numeric)
            check_bags(bags, self.max_bag_length, self.bag_keep, wanted)
        check_path(path, separator)
        for each in (valid_path, test_path):
            if each is not None:
                check_path(each, separator)

    def _check_label(self, label: Label) -> None:
        """Raise a ValueError if what is to be predicted is an input, or a rule has no meaning."""
        wanted = (*self._wanted, *self._bags)
        _check_no_input(self.label, label.column, wanted, self._wanted_numeric)
        check_rule(label, self.task)

    def _files(self) -> list[TableFiles]:
        """Those of each part, or of all rows."""
        paths = [path for path in (self.path, self.valid_path, self.test_path) if path is not None]
        return TableFiles.of_parts(paths, **self._reading)

    def _source(self) -> CodedSource:
        """Read the files.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read, a column is not there, or the label, time, weight or
                split column holds something else than it should.
        """
        files = self._files()
        label = Label.parse(self.label, files[0].names)
        self._check_label(label)
        others = (label.column, self.time, self.weight, self.group, self.split_column)
        used = [name for name in others if name is not None]
        try:
            self._numeric = select_columns(
                self._wanted_numeric, files[0].names, exclude=used, argument="numeric"
            )
            columns = select_columns(
                self._wanted, files[0].names, exclude=[*used, *self._numeric, *self._bags]
            )
        except ValueError as error:
            # Patterns of names fit no values.
            raise ValueError(f"{error}{files[0].without_header()}") from error
        columns = tuple(dict.fromkeys((*columns, *self._bags)))
        # What a format says of its bags, by either of their names.
        hints, own = files[0].separators, {n: files[0].aliases.get(n, n) for n in columns}
        self._separators |= {
            n: hints[name] for n, name in own.items() if name in hints and n not in self._bags
        }
        self._check_columns(list(columns))
        keys = {WEIGHT: self.weight, GROUP: self.group}
        check_names(columns, self._numeric, [key for key, name in keys.items() if name])
        needed = [*columns, *self._numeric, *used]
        for each in files:
            each.check_there(needed)
        store = ColumnStore(files, self._cache(files), needed, progress=self._progress)
        meaning = self._meaning(files[0], label)
        found = read_row_columns(
            store, meaning, label, self.task, weight=self.weight, group=self.group
        )
        kept, groups = found.kept, found.groups
        order, part = self._order(store, meaning), self._part(store, meaning)
        for name, values in ((self.time, order), (self.split_column, part)):
            if values is not None and name is not None:
                present = values >= 0
                if name == self.time and self.test_path is not None:
                    # Only the files of which a ninth is for validation are split by time.
                    present[store.sizes[0] :] = True
                kept = left_after(present, kept, meaning.table, name)
        if not kept.any():
            raise ValueError(f"The table {files[0].name!r} has no row left to use.")
        rows = None if kept.all() else np.flatnonzero(kept)
        if self.test_path is not None:
            part = self._part_of_files(store.sizes, order, kept)
        return CodedSource(
            self._columns_of(store, meaning, columns),
            found.target,
            {name: store.numbers(name, self._na_values) for name in self._numeric},
            found.weight,
            groups,
            order,
            # Rows without a group are split one by one.
            None if groups is None else np.where(groups < 0, -np.arange(len(groups)) - 1, groups),
            part,
            rows,
            store.content,
        )

    def _cache(self, files: Sequence[TableFiles]) -> Path | None:
        """Where columns are kept, if reading them again would take a while."""
        size = sum(path.stat().st_size for each in files for path in each.files)
        return self.cache_dir if size >= _CACHED else None

    def _meaning(self, files: TableFiles, label: Label) -> Meaning:
        types: dict[str, frozenset[type]] = {}
        if self._fitted is not None:
            types = {name: each.types for name, each in self._fitted.vocabularies.items()}
            if self._fitted.targets is not None:
                # Targets that were text stay text where those that are left all look like numbers.
                types[label.column] = self._fitted.targets.types
        return Meaning(files.name, files.is_text, self._na_values, types)

    def _order(self, store: ColumnStore, meaning: Meaning) -> NDArray[np.int64] | None:
        if self.time is None:
            return None
        times = store.column(self.time)
        values, times = meaning.times(times, as_text=self.time_format is not None)
        return _of_values(times, order_of(values, self.time, self.time_format))

    def _part(self, store: ColumnStore, meaning: Meaning) -> NDArray[np.int64] | None:
        if self.split_column is None:
            return None
        column = meaning.of(store.column(self.split_column))
        values = pd.Series(plain_values(column.values))
        return _of_values(column, parts_of(values, self.split_column))

    def _part_of_files(
        self, sizes: Sequence[int], order: NDArray[np.int64] | None, kept: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """The part of every row by the files that it is in."""
        if len(sizes) == 3:
            return np.repeat(np.arange(3), sizes)
        part = np.repeat([0, 2], sizes)
        rows = np.flatnonzero(kept & (part == 0))
        if order is None:
            rows = np.random.default_rng(self.seed).permutation(rows)
        else:
            rows = rows[np.argsort(order[rows], kind="stable")]
        cut = len(rows) - len(rows) // 9
        if order is not None:
            cut = nearest_time(order[rows], cut)
        part[rows[cut:]] = 1
        return part

    def _columns_of(
        self, store: ColumnStore, meaning: Meaning, names: Sequence[str]
    ) -> dict[str, CodedColumn]:
        """The columns of the features; a cell is the same id in all that share a table."""
        found = {name: self._feature(store, meaning, name) for name in names}
        for owner in set(self.share.values()):
            together = [name for name in names if self.share.get(name, name) == owner]
            others = [name for name in together if not isinstance(found[name].first(), str)]
            if len(others) < len(together):
                types = dict.fromkeys(others, frozenset({str}))
                as_text = replace(meaning, types={**meaning.types, **types})
                found |= {name: self._feature(store, as_text, name) for name in others}
        return found

    def _feature(self, store: ColumnStore, meaning: Meaning, name: str) -> CodedColumn:
        if name not in self._separators:
            return meaning.of(store.column(name))
        bags = store.bag(name, self._separators[name], self._na_values)
        return meaning.of_items(bags).limited(self.max_bag_length, self.bag_keep)


def _of_values(column: CodedColumn, found: NDArray[Any]) -> NDArray[Any]:
    """For every row what was found for its value, -1 where it is missing."""
    return np.append(found, -1)[column.cells]


def _check_no_input(
    label: str, column: str, features: Sequence[str], numeric: Sequence[str]
) -> None:
    """Raise a ValueError if what is to be predicted is an input.

    Args:
        label: The label as it was given, a column or a rule.
        column: Its column.
        features: Columns of ids.
        numeric: Columns of numbers.
    """
    for argument, columns in (("numeric", numeric), ("features", features)):
        if column in columns:
            raise ValueError(
                f"`label` must not be a feature too, got {label!r} with {column!r} in "
                f"`{argument}`."
            )


def _check_time(time: str, split: Split | None, valid_path: Paths | None) -> None:
    """Raise a ValueError if rows are split by something else, which would be silent about it."""
    if split in ("random", "group"):
        raise ValueError(
            f'`time` is for `split="chronological"` and "leave-one-out", got {time!r} with '
            f'"{split}".'
        )
    if valid_path is not None:
        raise ValueError(
            "`time` says which rows are for validation where `valid_path` does not, got both "
            f"{time!r} and {valid_path!r}."
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
