"""Options of the command in groups, and what they stand for in Python."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from inspect import Parameter
from pathlib import Path
import re
import shlex
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from optuna_nis._checks import MOST_SEED, check_label
from optuna_nis._cli_values import (
    bags_of,
    budget_of,
    check_sources,
    listed,
    numbers,
    paths_of,
    separator_of,
    shard_of,
    shared_of,
)

# Whoever asks for help does not wait for Optuna.
if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

    from optuna_nis.data.config import DataConfig

# Arguments in Python that are called otherwise than their options.
_ALIASES = {"num_updates": "updates", "name": "dataset", "path": "table", "folder": "model"}
_ALIASES |= {"names": "columns", "valid_path": "valid", "test_path": "test", "address": "storage"}
_ALIASES |= {"num_numeric": "numeric", "sequence": "bags"}

Quiet = Annotated[bool, typer.Option("--quiet", help="Only warnings, errors and results.")]
Model = Annotated[
    Path, typer.Option("--model", help="Folder written by retrain --output, or export.")
]
SHARD_TABLES_ABOVE = typer.Option(
    None,
    # As `models.embeddings.SPARSE_ABOVE`, whose module takes torch to be loaded.
    min=100_000,
    help="Under torchrun, spread the rows of tables of more ids over the processes.",
    show_default="each process has all rows",
)
_COLUMNS = typer.Option(
    None, help="Names of the columns of files without a header, separated by commas."
)
_SEPARATOR = typer.Option(
    None,
    help="What stands between cells, such as ';' or '\\t'.",
    show_default="what the name says",
)

_STORAGE, _STUDY_NAME = "sqlite:///optuna-nis.db", "optuna-nis"


@dataclass(frozen=True)
class DataOptions:
    """Which data a search is about."""

    dataset: str | None = typer.Option(
        None,
        help="A data set by name: flights, movielens-small, or, with --data-dir, movielens-1m "
        "or amazon-video-games.",
    )
    data_dir: Path | None = typer.Option(
        None, help="Folder of the files of a data set that does not come with a package."
    )
    table: list[str] | None = typer.Option(
        None,
        help="Your own table: a CSV, TSV, Parquet, .inter or .libsvm file, a folder of parts, or "
        "a pattern in quotes such as 'logs/day_*.parquet'. Can be given more than once.",
    )
    valid: list[str] | None = typer.Option(
        None, help="Files of the validation part, if the table has parts of its own."
    )
    test: list[str] | None = typer.Option(None, help="Files of the test part.")
    task: str = typer.Option(
        "ranking", help="ranking (a yes-or-no label) or retrieval (one of many items)."
    )
    label: str | None = typer.Option(
        None, help="Label column of the table, or a rule in quotes such as 'rating>=4'."
    )
    features: list[str] | None = typer.Option(
        None,
        help="Feature columns of the table, separated by commas; 'C*' are all that fit, '!C7' is "
        "left out. Of a data set by default all.",
    )
    numeric: list[str] | None = typer.Option(
        None, help="Columns of numbers that are no ids, separated by commas, or patterns."
    )
    weight: str | None = typer.Option(None, help="Column of the weights of the rows.")
    group: str | None = typer.Option(
        None,
        help="Column of the user or query of a row: metrics are told as means over groups too.",
    )
    columns: list[str] | None = _COLUMNS
    separator: str | None = _SEPARATOR
    share: list[str] | None = typer.Option(
        None,
        help="A feature and others with the same kind of ids, which look into its table, such as "
        "item=history. Can be given more than once.",
    )
    min_count: int = typer.Option(
        1, min=1, help="Ids that occur less often in training are out of vocabulary."
    )
    bags: list[str] | None = typer.Option(
        None,
        help="A column with several values in a cell and what stands between them, such as "
        "genres:'|', quoted against the shell; only the column, such as history, if its cells "
        "are lists (Parquet). The separator comes after the last colon, so columns may have "
        "colons. Can be given more than once.",
    )
    max_bag_length: int | None = typer.Option(
        None, min=1, help="Values kept of such a cell.", show_default="50"
    )
    bag_keep: str | None = typer.Option(
        None,
        help="Which values of a longer cell are kept: last, the latest of a history that "
        "grows at its end, or first.",
        show_default="last; of a data set what suits it",
    )
    na_values: list[str] | None = typer.Option(
        None,
        help="Texts in the table that stand for a missing value, separated by commas, such as "
        "NA,null. Without, only the empty cell is missing and NA is an id.",
    )
    time: str | None = typer.Option(
        None, help="Time column of the table: test on the latest rows."
    )
    time_format: str | None = typer.Option(
        None, help="How its dates are written, such as '%d/%m/%Y'.", show_default="ISO 8601"
    )
    split: str | None = typer.Option(
        None,
        help="random, chronological, leave-one-out (the last rows of each --group) or group "
        "(whole groups).",
        show_default="what suits the data",
    )
    split_column: str | None = typer.Option(
        None, help="Column that says train, validation or test, or 0, 1 or 2."
    )
    max_rows: int | None = typer.Option(None, min=10, help="Use only about so many rows.")
    search_rows: int | None = typer.Option(
        None,
        min=10,
        help="Search on about so many rows only; ids are counted in all, and retrain is on all.",
    )
    batch_size: int | None = typer.Option(
        None, min=1, help="Rows in a training batch.", show_default="4096, fewer of small data"
    )

    @property
    def name(self) -> str:
        """The data, for people."""
        return str(self.dataset or (self.table or ["data"])[0])

    def check_files(self) -> None:
        """Check that the tables are there, and a label, before anything large is imported."""
        for name, paths in (("table", self.table), ("valid", self.valid), ("test", self.test)):
            check_sources(name, paths)
        check_label(self.table, self.label)

    def config(self) -> DataConfig:
        """The same in Python; paths hold wherever a later command is started."""
        from optuna_nis.data.config import DataConfig

        given = vars(self) | {
            "data_dir": None if self.data_dir is None else str(self.data_dir.resolve()),
            "table": paths_of(self.table),
            "valid": paths_of(self.valid),
            "test": paths_of(self.test),
            "separator": separator_of(self.separator),
        }
        for name in ("features", "na_values", "numeric", "columns"):
            given[name] = listed(given[name])
        given["share"] = dict(pair for text in self.share or () for pair in shared_of(text))
        given["bags"] = bags_of(self.bags or (), self._table_columns())
        return DataConfig(**given)

    def _table_columns(self) -> Sequence[str]:
        """Names of the columns of the table, for bags whose names have colons."""
        if not self.bags or not self.table:
            return ()
        from optuna_nis.data.files import TableFiles

        columns = listed(self.columns) or None
        files = TableFiles(self.table, names=columns, separator=separator_of(self.separator))
        return [*files.names, *files.aliases]


@dataclass(frozen=True)
class NewRows:
    """A table of new rows for a model."""

    table: list[str] = typer.Option(
        ..., help="New rows: a file, a folder or a pattern as in search, also more than once."
    )
    columns: list[str] | None = _COLUMNS
    separator: str | None = _SEPARATOR

    @property
    def name(self) -> str:
        """The table, for people."""
        return " and ".join(self.table)

    def check_files(self) -> None:
        """Check that the table is there, before anything large is imported."""
        check_sources("table", self.table)

    def arguments(self) -> dict[str, Any]:
        """Arguments of :func:`predict_table` and :func:`evaluate_table`."""
        names = list(listed(self.columns)) or None
        separator = separator_of(self.separator)
        return {"path": paths_of(self.table), "names": names, "separator": separator}


@dataclass(frozen=True)
class SearchOptions:
    """What is searched for, and how."""

    budget: str = typer.Option(
        "25%",
        help="Embedding memory, in bytes as stored: 25% or 0.25 of the full tables in float32, "
        "64MB, or 50000, a number of float32 parameters.",
    )
    mode: str = typer.Option(
        "multi", help="multi: frequent ids get wider rows; single: one width for each feature."
    )
    precisions: str = typer.Option(
        "32",
        help="Bits that a number may have, separated by commas: some of 32, 16 (floats), 8, 4 and "
        "2 (codes). With 32,8,4,2 each block of rows is given its width and its precision.",
    )
    oov: str = typer.Option(
        "zero",
        help="What ids without a row get: zero, shared (one row for all of them) or hash (1, 16, "
        "256 or 4096 rows, by a hash); the search chooses how many, and pays for them. With "
        "shared and hash new ids, and those below --min-count, are among them.",
    )
    embedding_dim: int | None = typer.Option(
        None,
        min=1,
        help="Largest width considered of a feature; the items of mlp have that of its last "
        "layer.",
        show_default="32 for ranking, 64 for retrieval",
    )
    epochs: int | None = typer.Option(
        None,
        min=1,
        help="Epochs of the supernet.",
        show_default="4 for ranking, 6 for retrieval, more if it learns more slowly",
    )
    updates: int | None = typer.Option(
        None,
        min=1,
        help="Updates of the controller.",
        show_default="16",
    )
    seed: int = typer.Option(0, min=0, max=MOST_SEED, help="Seed of the search.")
    model: str | None = typer.Option(
        None,
        help="For ranking deepfm or dcn (DCN-V2); for retrieval mlp, over bags, or sasrec, over "
        "the sequence of items that a bag holds.",
        show_default="deepfm for ranking, mlp for retrieval",
    )
    learning_rate: float | None = typer.Option(
        None,
        help="Learning rate of Adam.",
        show_default="0.005 for deepfm, 0.002 for dcn, 0.006 for mlp, 0.001 for sasrec",
    )
    dropout: float | None = typer.Option(
        None,
        help="Probability of dropout after each layer of the model.",
        show_default="0; 0.2 for sasrec",
    )
    repeats: bool | None = typer.Option(
        None,
        help="For sasrec: whether the items of a sequence may come again, as groceries do, or are "
        "left out of its ranking.",
        show_default="what the training rows show",
    )
    shard: str = typer.Option(
        "0/1", help="Train on a part of the training rows only: 0/2 and 1/2 are halves."
    )
    shard_tables_above: int | None = SHARD_TABLES_ABOVE
    checkpoint_dir: Path | None = typer.Option(
        None,
        help="Folder for what is needed to go on after an interruption, empty in the end.",
        show_default="FILE.checkpoints beside a study in a file, optuna-nis.checkpoints",
    )

    def arguments(self) -> dict[str, Any]:
        """Arguments of :func:`optuna_nis.lightning.search`, checked before any data are read.

        Raises:
            ValueError: If one is out of range whatever the data are.
        """
        from optuna_nis._checks import check_number
        from optuna_nis.space import Mode
        from optuna_nis.space.precision import check_precisions
        from optuna_nis.space.spec import check_oov

        found = vars(self) | {
            "budget": budget_of(self.budget),
            "precisions": check_precisions(numbers("precisions", self.precisions, "32,8")),
            "shard": shard_of(self.shard),
        }
        found["num_updates"] = found.pop("updates")
        if self.mode not in get_args(Mode):
            raise ValueError(f'`mode` must be "multi" or "single", got {self.mode!r}.')
        check_oov(self.oov)
        if self.learning_rate is not None:
            check_number("learning_rate", self.learning_rate, 0, or_least=False)
        if self.dropout is not None:
            check_number("dropout", self.dropout, 0, 1)
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class StudyOptions:
    """The study in which commands meet."""

    storage: str = typer.Option(
        _STORAGE,
        help="Where the study is kept: sqlite:///FILE, postgresql://..., mysql://..., a file "
        "named *.journal or redis://... for Optuna's journal, grpc://HOST:PORT for its proxy.",
    )
    study_name: str = typer.Option(_STUDY_NAME, help="Name of the study.")

    def create(self) -> Study:
        """The study, made if it is not there."""
        import optuna

        return optuna.create_study(
            storage=self._open(),
            study_name=self.study_name,
            direction="maximize",
            load_if_exists=True,
        )

    def load(self) -> Study:
        """The study.

        Raises:
            ValueError: If it is not there; nothing is made.
        """
        import optuna

        file = self._file()
        if file and not file.startswith((":memory:", "file:")) and not Path(file).exists():
            raise ValueError(f"`storage` {self.storage!r}: there is no file {file}; search first.")
        try:
            return optuna.load_study(study_name=self.study_name, storage=self._open())
        except KeyError as error:
            raise ValueError(
                f"`study_name` {self.study_name!r} is not in the storage {self.storage!r}; "
                "search first."
            ) from error

    @property
    def checkpoint_dir(self) -> Path:
        """Beside the file of the study, if it is in one."""
        return Path(f"{self._file() or 'optuna-nis'}.checkpoints")

    @property
    def cache_dir(self) -> Path:
        """Where the columns of large tables are kept, beside the file of the study too."""
        return Path(f"{self._file() or 'optuna-nis'}.cache")

    def __str__(self) -> str:
        """The options as one types them, without a password."""
        text = ""
        if self.storage != _STORAGE:
            # An address may hold one.
            text += f" --storage {'...' if '@' in self.storage else shlex.quote(self.storage)}"
        if self.study_name != _STUDY_NAME:
            text += f" --study-name {shlex.quote(self.study_name)}"
        return text

    def _open(self) -> BaseStorage:
        if "://" not in self.storage and not self.storage.endswith(".journal"):
            raise ValueError(
                f"`storage` must be a URL such as sqlite:///study.db or a *.journal file, got "
                f"{self.storage!r}."
            )
        from optuna_nis.study.storages import open_storage

        return open_storage(self.storage)

    def _file(self) -> str | None:
        """The file that the study is in, if it is in one."""
        if self.storage.startswith("sqlite"):
            import sqlalchemy

            return sqlalchemy.make_url(self.storage).database
        return self.storage if self.storage.endswith(".journal") else None


def flat(arguments: Iterable[Parameter]) -> Iterator[Parameter]:
    """Arguments with the fields of groups of options in the groups' places."""
    for argument in arguments:
        if is_dataclass(argument.annotation):
            kinds = get_type_hints(argument.annotation)
            for field in fields(argument.annotation):
                yield argument.replace(
                    name=field.name, annotation=kinds[field.name], default=field.default
                )
        else:
            yield argument


def grouped(arguments: Iterable[Parameter], given: dict[str, Any]) -> dict[str, Any]:
    """The values of arguments, of what is given for those that :func:`flat` makes of them."""
    for group in [argument for argument in arguments if is_dataclass(argument.annotation)]:
        values = {field.name: given.pop(field.name) for field in fields(group.annotation)}
        given[group.name] = group.annotation(**values)
    return given


def in_options(text: str, context: typer.Context) -> str:
    """What an error says of arguments in Python, said of the options of a command."""
    options = {
        option.removeprefix("--").replace("-", "_"): option
        for parameter in context.command.params
        for option in parameter.opts
    }

    def option(name: re.Match[str]) -> str:
        return options.get(_ALIASES.get(name[0], name[0]), name[0])

    # Not arguments with values of Python, such as `numeric=['x']`, nor rules such as `label==2`.
    return re.sub(r"(?<=`)\w+\b(?!=[\[{`=]|[<>!])", option, text)
