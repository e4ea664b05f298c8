"""Which data a search is about."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
import json
from pathlib import Path
from typing import Any

from optuna_nis._checks import check_integer, check_label
from optuna_nis._json import read_json
from optuna_nis._logging import get_logger
from optuna_nis.data import EmbeddingDataModule, Features, TableDataModule, Task, load_dataset
from optuna_nis.data.bags import BagKeep, check_separators
from optuna_nis.data.pace import Progress, no_progress
from optuna_nis.data.splits import MIN_ROWS, Split
from optuna_nis.space.spec import Oov, check_oov

_logger = get_logger(__name__)

_LISTS = ("features", "na_values", "numeric", "columns")
_OF_TABLES = (
    *("label", "bags", "time", "time_format", "na_values", "split_column", "valid", "test"),
    *("numeric", "weight", "group", "columns", "separator"),
)
_OF_BAGS = ("max_bag_length", "bag_keep")


@dataclass(frozen=True)
class DataConfig:
    """Which data a study is about: a data set by name, or a table of one's own.

    Args:
        dataset: Name of a data set, or None for a table.
        table: Path of a table, several of its files, a folder or a pattern, as
            :class:`TableDataModule` takes it, or None for a data set.
        task: ``"ranking"`` or ``"retrieval"``.
        label: Column of the label of a table, or a rule such as ``"rating>=4"``.
        features: Columns of the features of a table, or patterns of them; of a data set by
            default all.
        bags: Columns of a table with several values in a cell, and what stands between them.
        time: Column of a table to split chronologically.
        split: ``"random"``, ``"chronological"``, ``"leave-one-out"``, ``"group"`` or ``"given"``;
            None is what suits the data set, and for a table random, chronological with a time, or
            given with a ``split_column`` or ``test``.
        seed: Seed of the split.
        max_rows: Use only about so many rows.
        search_rows: Search on about so many of them only. Ids are counted in all nevertheless, and
            a retraining is on all.
        data_dir: Folder of the files of a data set that does not come with a package.
        batch_size: Rows in a training batch; by default what :class:`EmbeddingDataModule` finds.
        time_format: How the dates of a table's time column are written, if not as ISO 8601 says.
        na_values: Texts in a table that stand for a missing value, besides the empty cell.
        max_bag_length: Values kept of a bag; by default 50.
        bag_keep: Which values of a longer bag are kept, ``"last"`` or ``"first"``; None is what
            suits the data set, and for a table the last.
        split_column: Column of a table that says which part a row belongs to: 0, 1 and 2, or
            ``train``, ``validation`` and ``test``.
        valid: Files of the validation part of a table.
        test: Files of the test part of a table.
        numeric: Numeric columns of a table, or patterns of them.
        weight: Column of a table with the weights of its rows.
        group: Column of a table with the groups, such as users, that rows belong to.
        columns: Names of the columns of text files without a header.
        separator: What stands between the cells of text files, if not what their names say.
        min_count: Values of a feature with fewer occurrences in training are out of vocabulary.
        share: For features that share the table of another one, that one.
        oov: Whether new and rare values may share rows, as in :class:`EmbeddingDataModule`.

    Raises:
        ValueError: Unless there is either a data set or a table, and with a table a label and no
            ``data_dir``, if something that is for a table is given for a data set, or if the batch
            size is not at least 1.

    Example:
        >>> DataConfig(dataset="flights", task="retrieval").name
        'flights'
    """

    dataset: str | None = None
    table: str | tuple[str, ...] | None = None
    task: Task = "ranking"
    label: str | None = None
    features: tuple[str, ...] = ()
    bags: dict[str, str | None] = field(default_factory=dict)
    time: str | None = None
    split: Split | None = None
    seed: int = 0
    max_rows: int | None = None
    data_dir: str | None = None
    batch_size: int | None = None
    time_format: str | None = None
    na_values: tuple[str, ...] = ()
    max_bag_length: int | None = None
    bag_keep: BagKeep | None = None
    split_column: str | None = None
    valid: str | tuple[str, ...] | None = None
    test: str | tuple[str, ...] | None = None
    numeric: tuple[str, ...] = ()
    weight: str | None = None
    group: str | None = None
    columns: tuple[str, ...] = ()
    separator: str | None = None
    min_count: int = 1
    share: dict[str, str] = field(default_factory=dict)
    oov: Oov = "zero"
    search_rows: int | None = None

    def __post_init__(self) -> None:
        check_oov(self.oov)
        if (self.dataset is None) == (self.table is None):
            raise ValueError(
                f"Either `dataset` or `table` must be given, got dataset={self.dataset!r} and "
                f"table={self.table!r}."
            )
        check_label(self.table, self.label)
        if self.table is not None and self.data_dir is not None:
            raise ValueError(
                f"`data_dir` is for a data set by name, got {self.data_dir!r} with the table "
                f"{self.table!r}. On the command line, `--data-dir` goes with `--dataset`."
            )
        for name in _OF_TABLES if self.table is None else ():
            if value := getattr(self, name):
                value = list(value) if isinstance(value, tuple) else value
                raise ValueError(
                    f"`{name}` is for a table, got {value!r} with the data set "
                    f"{self.dataset!r}. On the command line, `--{name.replace('_', '-')}` goes "
                    "with `--table`."
                )
        check_separators(self.bags)
        check_integer("min_count", self.min_count, 1)
        if self.search_rows is not None:
            check_integer("search_rows", self.search_rows, MIN_ROWS)
        if self.batch_size is not None:
            check_integer("batch_size", self.batch_size, 1)

    @property
    def name(self) -> str:
        """The data set or table, for people."""
        if isinstance(self.table, tuple):
            return f"{self.table[0]} and {len(self.table) - 1} more"
        return self.dataset or str(self.table)

    def datamodule(
        self,
        *,
        withhold_test: bool,
        shuffle_seed: int | None = None,
        fitted: Features | None = None,
        cache_dir: str | Path | None = None,
        progress: Progress = no_progress,
    ) -> EmbeddingDataModule:
        """The data, ready to train on.

        Args:
            withhold_test: Whether the test part is dropped, as a search wants it, which has no
                more than the ``search_rows`` either.
            shuffle_seed: Seed of the order of the training rows, by default that of the split.
            fitted: Features to encode with in place of those of the training part, such as
                :func:`searched_features` gives.
            cache_dir: Folder for the columns of a large table, as :class:`TableDataModule` takes
                it.
            progress: As in :class:`TableDataModule`.

        Raises:
            ValueError: If the data cannot be used.
        """
        options: dict[str, Any] = {
            "seed": self.seed,
            "shuffle_seed": shuffle_seed,
            "withhold_test": withhold_test,
            "max_rows": self.max_rows,
            "sample_rows": self.search_rows if withhold_test else None,
            "split": self.split,
            "batch_size": self.batch_size,
            "fitted": fitted,
            "min_count": self.min_count,
            "share": self.share,
            "oov": self.oov,
        }
        for name in _OF_BAGS:
            if (value := getattr(self, name)) is not None:
                options[name] = value
        data: EmbeddingDataModule
        if self.dataset is not None:
            data = load_dataset(
                self.dataset,
                self.task,
                features=self.features or None,
                data_dir=self.data_dir,
                **options,
            )
        else:
            assert self.table is not None
            assert self.label is not None
            data = TableDataModule(
                self.table,
                label=self.label,
                features=self.features,
                bags=self.bags,
                time=self.time,
                time_format=self.time_format,
                na_values=self.na_values,
                split_column=self.split_column,
                valid_path=self.valid,
                test_path=self.test,
                numeric=self.numeric,
                weight=self.weight,
                group=self.group,
                columns=self.columns or None,
                separator=self.separator,
                cache_dir=cache_dir,
                progress=progress,
                task=self.task,
                **options,
            )
        data.setup("fit")
        for name in _OF_BAGS:
            if getattr(self, name) is not None and not data.bags:
                _logger.warning(f"`{name}` has no effect: no feature is a bag.")
        return data

    def to_json(self) -> str:
        """Write as JSON, to be read back by :meth:`from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DataConfig:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: If the text is not such a configuration.
        """
        try:
            data = read_json(text)
            if "bag_keep" not in data and data["table"] is not None and data["bags"]:
                # Written when the first values were kept.
                data["bag_keep"] = "first"
            if data.get("split") == "group" or data.get("valid"):
                # Written when it had no effect there, but for rows that lacked one.
                data |= {"time": None, "time_format": None}
            lists = {name: tuple(data.get(name, ())) for name in _LISTS}
            paths = {
                name: tuple(data[name])
                for name in ("table", "valid", "test")
                if isinstance(data.get(name), list)
            }
            return cls(**(data | lists | paths))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"This data configuration is malformed: {error!r}.") from error
