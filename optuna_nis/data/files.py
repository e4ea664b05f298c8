"""The files of a table, whatever their format, as one stream of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from filecmp import cmp
from hashlib import blake2b
import json
from pathlib import Path
from typing import Any, Final, Literal
import warnings

import pandas as pd
import pyarrow

from optuna_nis.data import cells
from optuna_nis.data.arrow_types import cast, common_type, is_decimal, plain_type
from optuna_nis.data.libsvm_file import FEATURES_COLUMN, LibsvmReader
from optuna_nis.data.parquet_file import ParquetReader
from optuna_nis.data.paths import Paths, TableFile, find_files
from optuna_nis.data.text_file import (
    UNREADABLE,
    TextReader,
    first_row,
    header_of,
    is_blank,
    looks_like_values,
    other_separator,
)

Reader = TextReader | LibsvmReader | ParquetReader

_ATOMIC_TYPES: Final = ("token", "token_seq", "float", "float_seq")
_CHUNK: Final = 1 << 22
# Files of fewer bytes may hold the same by chance.
_TINY = 512


class TableFiles:
    r"""The files of a table, whatever their format, as one stream of batches.

    Formats are CSV and TSV, plain or compressed (``.gz``, ``.bz2``, ``.zst``, ``.xz``), Parquet,
    RecBole's atomic files (``.inter``, ``.user``, ``.item``) and libsvm (``.libsvm``, ``.libfm``,
    ``.svm``). That all files have the same columns, in any order, is checked at once, and for
    Parquet that these are of the same kind. No more than some batches are in memory.

    Args:
        path: A file, several, a folder of files as Spark writes it, or a pattern such as
            ``"logs/day_*.parquet"``. Folders named such as ``day=3`` are a column, if files have
            none of that name.
        names: Names of the columns of text files without a header.
        separator: What stands between two cells of text files, by default what their names say.

    Attributes:
        name: What messages call the table: the name of its file, or of its folder.
        files: The files, in a fixed order: that of a list, else that of people, 2 before 10.
        names: Names of the columns, those of folders last.
        kind: ``"text"`` if files are text, ``"typed"`` if they know numbers from text.
        separators: Columns that are bags, as far as the format says so: the text between two
            values, or None for lists.
        numeric: Columns that are numbers and no ids, as far as the format says so.
        aliases: Further names of columns, for these those in ``names``: ``user_id:token`` of
            atomic files is ``user_id``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If one cannot be read, or they are not of one table.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for day in (9, 10):
        ...         file = Path(folder, f"day={day}", "part-0.csv")
        ...         file.parent.mkdir()
        ...         _ = file.write_text(f"user,item\nann,{day}\nbob,\n")
        ...     table = TableFiles(folder)
        ...     rows = [batch.to_pylist() for batch in table.batches(["item", "day"])]
        >>> table.names
        ['user', 'item', 'day']
        >>> rows[0]
        [{'item': '9', 'day': '9'}, {'item': None, 'day': '9'}]
    """

    def __init__(
        self,
        path: Paths,
        *,
        names: Sequence[str] | None = None,
        separator: str | None = None,
    ) -> None:
        found = find_files(path, separator)
        # Spark compresses parts without a row, too.
        self._files = [file for file in found if not is_blank(file)] or found[:1]
        self._names = _check_names(names, self._files[0])
        one = isinstance(path, (str, Path))
        self.name = Path(str(path)).name if one else self._files[0].path.name
        self.files = [file.path for file in self._files]
        first = self._files[0]
        self.kind: Literal["text", "typed"] = "typed" if first.format == "parquet" else "text"
        self.aliases: dict[str, str] = {}
        self.separators: dict[str, str | None] = {}
        self.numeric: list[str] = []
        self._readers: list[Reader] = []
        # For each file the name that a column has in it.
        self._columns: list[dict[str, str]] = []
        for file in self._files:
            with readable(file.path):
                reader = self._reader(file)
            self._readers.append(reader)
            self._columns.append(self._named(file, reader.names))
        own = self._columns[0]
        self._partitions = [
            {name: value for name, value in file.partition.items() if name not in own}
            for file in self._files
        ]
        self.names = [*own, *self._partitions[0]]
        self._check_same_names()
        self._types = {name: pyarrow.string() for name in self.names}
        self._text = frozenset(self.names)
        if first.format == "libsvm":
            self.separators = {FEATURES_COLUMN: None}
            self._types[FEATURES_COLUMN] = pyarrow.list_(pyarrow.int64())
            self._text -= {FEATURES_COLUMN}
        self._constants = [
            {name: pyarrow.scalar(value, pyarrow.string()) for name, value in each.items()}
            for each in self._partitions
        ]
        # Columns of bytes that are not text, and those that were looked at.
        self._as_bytes: list[str] = []
        self._checked: set[str] = set()
        # The tables of which columns have the same types.
        self._group = [self]
        if self.kind == "typed":
            self._set_types()

    @classmethod
    def of_parts(
        cls,
        paths: Sequence[Paths],
        *,
        names: Sequence[str] | None = None,
        separator: str | None = None,
    ) -> list[TableFiles]:
        """Tables with the same types of columns, such as the rows for training and for the test.

        One may have columns that another has not.

        Args:
            paths: The files of each.
            names: As above.
            separator: As above.

        Raises:
            ValueError: As above, also if they are not of one kind, text or Parquet, or a file is
                of two parts, or a copy of one.
        """
        tables = [cls(path, names=names, separator=separator) for path in paths]
        for table in tables:
            if table.kind != tables[0].kind:
                raise ValueError(
                    "The files of all parts must be text, or all be Parquet, got "
                    f"{str(tables[0].files[0])!r} and {str(table.files[0])!r}."
                )
            table._group = tables
        of_others: set[Path] = set()
        for table in tables:
            own = {file.resolve() for file in table.files}
            if both := sorted(own & of_others):
                raise ValueError(
                    f"Each file must be of one part, got {str(both[0])!r} in several: rows of the "
                    "training would be in the validation or the test."
                )
            of_others |= own
        _check_no_copies(tables)
        for table in tables:
            if table.kind == "typed":
                table._set_types()
        return tables

    def batches(
        self, columns: Sequence[str], *, rows: int = 1 << 18
    ) -> Iterator[pyarrow.RecordBatch]:
        """The rows of all files, in order.

        Args:
            columns: Columns to read, by their names in ``names`` or ``aliases``.
            rows: The most rows of a batch; it may have fewer.

        Returns:
            Batches of these columns, named as they are asked for, in the types of :meth:`schema`.
            The empty text is null.

        Raises:
            KeyError: If there is no such column.
            ValueError: If a file cannot be read: the message names it and the row.
        """
        schema = self.schema(columns)
        wanted = [self.aliases.get(name, name) for name in columns]
        for file, reader, own, constants in zip(
            self._files, self._readers, self._columns, self._constants
        ):
            inside = [name for name in wanted if name in own] or list(own)[:1]
            with readable(file.path):
                for batch in self._read(reader, [own[name] for name in inside], rows):
                    found = dict(zip(inside, batch.columns))
                    arrays = [
                        self._cast(found[name], name)
                        if name in own
                        else pyarrow.repeat(constants[name], len(batch))
                        for name in wanted
                    ]
                    whole = pyarrow.RecordBatch.from_arrays(arrays, schema=schema)
                    for start in range(0, len(whole), rows):
                        yield whole.slice(start, rows)

    def schema(self, columns: Sequence[str]) -> pyarrow.Schema:
        """The types of columns as :meth:`batches` gives them.

        Raises:
            KeyError: If there is no such column.
        """
        wanted = [self.aliases.get(name, name) for name in columns]
        if self.kind == "typed":
            self._check_bytes(wanted)
        return pyarrow.schema([(each, self._types[name]) for each, name in zip(columns, wanted)])

    def _has_rows(self, path: Path) -> bool:
        """Whether there is a row in one of the files."""
        place = self.files.index(path)
        names = list(self._columns[place].values())[:1]
        with readable(path):
            return any(map(len, self._read(self._readers[place], names, 1)))

    @property
    def described(self) -> str:
        """The table in messages: ``file 'clicks.csv'``."""
        return f"{'file' if len(self.files) == 1 else 'table'} {self.name!r}"

    def is_text(self, name: str) -> bool:
        """Whether cells are text that may mean something else, such as a number.

        They are in all columns of text files, and of decimals.
        """
        return self.aliases.get(name, name) in self._text

    def check_there(self, columns: Sequence[str] | None) -> None:
        """Check that there are columns of some names, and warn if they look like values.

        Args:
            columns: Names of columns, None for all that there are, whatever their names.

        Raises:
            ValueError: If one is not there, or there are several of that name.
        """
        known = {*self.names, *self.aliases}
        if absent := [name for name in dict.fromkeys(columns or ()) if name not in known]:
            raise ValueError(
                f"The {self.described} has no column {', '.join(map(repr, absent))}; it has "
                f"{', '.join(map(repr, self.names))}.{self.without_header()}"
            )
        if advice := self.without_header():
            warnings.warn(f"{self.name}:{advice}", stacklevel=3)
        for name in columns or ():
            # As pandas calls a second one.
            if f"{name}.1" in self.names and self._is_repeated(name):
                raise ValueError(f"The {self.described} has the column {name!r} twice.")

    def _is_repeated(self, name: str) -> bool:
        """Whether several columns of a text file have a name."""
        headers = self._names is None and self.kind == "text"
        return headers and any(first_row(file).count(name) > 1 for file in self._files)

    def without_header(self) -> str:
        """What to do if the first row looks like values and not like names, or nothing."""
        if self._files[0].format != "delimited" or self._names is not None:
            return ""
        return looks_like_values(self._files[0]) + other_separator(self._files[0])

    def digest(self, of_file: Callable[[Path], str] | None = None) -> str:
        """A text that names the content: another one where a row, or its place, is another one.

        Args:
            of_file: Gives the digest of a file, by default :func:`file_digest`.
        """
        of_file = of_file or file_digest
        known = [[of_file(path) for path in self.files], self._partitions, self._names]
        text = json.dumps([*known, [file.separator for file in self._files], self.names])
        return blake2b(text.encode(), digest_size=16).hexdigest()

    def _reader(self, file: TableFile) -> Reader:
        if file.format == "parquet":
            return ParquetReader(file.path)
        if file.format == "libsvm":
            return LibsvmReader(file)
        if self._names is None:
            return TextReader(file, header_of(file))
        cells_of_first = first_row(file)
        if len(cells_of_first) != len(self._names):
            raise ValueError(
                f"`names` must name each of its {len(cells_of_first)} columns, got "
                f"{len(self._names)}: {', '.join(map(repr, self._names))}."
            )
        if cells_of_first == self._names:
            raise ValueError("its first row has the `names` already: leave them out.")
        return TextReader(file, self._names, header=False)

    def _named(self, file: TableFile, names: Sequence[str]) -> dict[str, str]:
        """The columns of a file by the names that they have here; what RecBole says of them."""
        if file.format != "atomic":
            short = list(names)
        else:
            short = []
            for name in names:
                column, colon, kind = name.rpartition(":")
                if not colon or kind not in _ATOMIC_TYPES:
                    column, kind = name, ""
                else:
                    self.aliases[name] = column
                short.append(column)
                if kind.endswith("_seq"):
                    self.separators[column] = " "
                if kind == "float" and column not in self.numeric:
                    self.numeric.append(column)
        if len(set(short)) < len(short):
            twice = next(name for name in short if short.count(name) > 1)
            raise ValueError(f"The file {str(file.path)!r} has the column {twice!r} twice.")
        return dict(zip(short, names))

    def _check_same_names(self) -> None:
        first = self._files[0].path
        for file, own, partition in zip(self._files, self._columns, self._partitions):
            has = {*own, *partition}
            absent = [name for name in self.names if name not in has]
            new = [name for name in (*own, *partition) if name not in self.names]
            if absent or new:
                lacks = f"has no column {', '.join(map(repr, absent))}" if absent else ""
                more = f"has the column {', '.join(map(repr, new))} too" if new else ""
                advice = ""
                if self.kind == "text" and self._names is None:
                    advice = looks_like_values(file) if file.format == "delimited" else ""
                raise ValueError(
                    f"The files of a table must have the same columns: {str(file.path)!r} "
                    f"{' and '.join(filter(None, (lacks, more)))}, unlike {str(first)!r}.{advice}"
                )

    def _set_types(self) -> None:
        """Find types that hold the cells of all files."""
        for name in self._columns[0]:
            self._types[name] = self._common_type(name)
        for name in self._partitions[0]:
            folders = [each for table in self._group for each in table._partitions]
            texts = [each[name] for each in folders if name in each]
            values = _typed(texts)
            typed = dict(zip(texts, values))
            self._types[name] = values.type
            for constants, partition in zip(self._constants, self._partitions):
                constants[name] = typed[partition[name]]
        self._text = frozenset(
            name for name in self._columns[0] if any(is_decimal(k) for _, k in self._kinds(name))
        )

    def _kinds(self, name: str) -> list[tuple[str, Any]]:
        """Every file of the group that has a column, with its type: plain, but for decimals."""
        found = []
        for table in self._group:
            for path, reader, own in zip(table.files, table._parquet, table._columns):
                if name in own:
                    kind = reader.types[own[name]]
                    plain = kind if is_decimal(kind) else plain_type(kind, name in table._as_bytes)
                    found.append((str(path), plain))
        return found

    def _common_type(self, name: str) -> Any:
        paths, kinds = zip(*self._kinds(name))
        found = common_type(kinds)
        if found is not None:
            return found
        place = next(
            place for place in range(len(kinds)) if common_type(kinds[: place + 1]) is None
        )
        before = next(at for at in range(place) if not pyarrow.types.is_null(kinds[at]))
        raise ValueError(
            f"The column {name!r} must be of one kind in all files, got {kinds[before]} in "
            f"{paths[before]!r} and {kinds[place]} in {paths[place]!r}."
        )

    def _check_bytes(self, columns: Sequence[str]) -> None:
        """See whether bytes are text, in all files, before the first of them is read."""
        for name in columns:
            tables = [table for table in self._group if name in table._columns[0]]
            if name in self._checked or self not in tables:
                continue
            is_text = all(table._holds_text(name) for table in tables)
            for table in tables:
                table._checked.add(name)
                table._as_bytes += [] if is_text else [name]
            for table in tables:
                table._types[name] = self._common_type(name)

    def _holds_text(self, name: str) -> bool:
        for path, reader in zip(self.files, self._parquet):
            with readable(path):
                if not reader.holds_text(name):
                    return False
        return True

    def _read(
        self, reader: Reader, columns: list[str], rows: int
    ) -> Iterator[pyarrow.RecordBatch]:
        if isinstance(reader, ParquetReader):
            return reader.batches(columns, rows, self._as_bytes)
        return reader.batches(columns)

    def _cast(self, column: Any, name: str) -> Any:
        try:
            return cast(column, self._types[name])
        except pyarrow.ArrowInvalid as error:
            raise ValueError(
                f"the column {name!r} must be {self._types[name]}, as that of other files: {error}"
            ) from error

    @property
    def _parquet(self) -> list[ParquetReader]:
        return [reader for reader in self._readers if isinstance(reader, ParquetReader)]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Name the file in errors of reading it."""
    try:
        yield
    except UNREADABLE as error:
        raise ValueError(f"The file {str(path)!r} cannot be read: {error}") from error


def _check_no_copies(tables: Sequence[TableFiles]) -> None:
    """Raise a ValueError if a file of one part is a copy of one of another part, and not tiny."""
    alike: dict[str, list[tuple[int, Path]]] = {}
    for part, table in enumerate(tables):
        for path, partition in zip(table.files, table._partitions):
            if path.stat().st_size < _TINY:
                continue
            others = alike.setdefault(f"{path.stat().st_size} {partition}", [])
            for of_part, other in others:
                if of_part != part and cmp(other, path, shallow=False) and table._has_rows(path):
                    raise ValueError(
                        f"Each part must have rows of its own, got {str(other)!r} in one and "
                        f"{str(path)!r}, a copy of it, in another: what is measured on rows of "
                        "the training, or of the validation, says nothing about new ones."
                    )
            others.append((part, path))


def file_digest(path: Path) -> str:
    """A text that names the content of a file."""
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _check_names(names: Sequence[str] | None, first: TableFile) -> list[str] | None:
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"`names` must be a list of names of columns, got {names!r}.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ValueError(f"`names` must name each column once, got {twice!r} twice.")
    if first.format != "delimited":
        raise ValueError(
            f"`names` is for text files without a header, got {first.path.name!r}, which names "
            "its columns itself."
        )
    return list(names)


def _typed(texts: Sequence[str | None]) -> Any:
    """Texts as numbers or times if all of them are."""
    found = cells.infer(pd.Series(texts, dtype=object))
    if found.dtype == object:
        return pyarrow.array(texts, pyarrow.string())
    return pyarrow.array(found, from_pandas=True)
