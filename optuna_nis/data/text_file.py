"""Text files as a stream of batches, in which every cell is text.

pyarrow reads them, in blocks, and is there anyway. Of a table of 1 million rows and 40 columns,
260 MB, all cells as text, pyarrow 26 took 1.5 to 2 s of processor time and 0.3 GiB, polars 2.1
about the same time and 0.6 GiB, duckdb 2.0 2.5 to 3.5 s and 0.9 GiB, and pandas 3.1 4 s and 0.25
GiB.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
import io
import lzma
import re
import threading
from typing import Any, Final

import pandas as pd
import pyarrow
from pyarrow import csv

from optuna_nis.data.paths import TableFile

_BLOCK: Final = 1 << 22
_HEADER_ROWS: Final = 1000
_BEFORE_HEADER: Final = re.compile(rb"(?:\xef\xbb\xbf)?(?: *\r?\n)*")
# A row behind the last one: if it is not read as one, a quote before it has no end.
_END: Final = "\x1eend of table\x1e"
UNREADABLE: Final = (ValueError, OSError, EOFError, lzma.LZMAError, pyarrow.ArrowException)
"""What reading a broken file may raise."""
# A number, a hash or a UUID.
_LIKE_A_VALUE: Final = re.compile(
    r"-?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?|(?=.*[0-9])[0-9a-fA-F]{8,}|"
    r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
)


class _Bytes(io.RawIOBase):
    """The bytes of a file from its first row on, and perhaps an additional last line.

    It may be closed while another thread reads: that ends first, or it would go on to read from
    whatever file is opened next, which may get the same descriptor.
    """

    def __init__(self, file: TableFile, last_line: str = "") -> None:
        self._lock = threading.Lock()
        self._source: Any
        if file.compression == "xz":
            self._source = lzma.open(file.path)  # noqa: SIM115
        elif file.compression is None:
            self._source = file.path.open("rb", buffering=0)
        else:
            self._source = pyarrow.input_stream(str(file.path), compression=file.compression)
        self._next: bytes = _BEFORE_HEADER.sub(b"", self._source.read(_BLOCK), count=1)
        self._last_line = last_line.encode()
        self._ends_line = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._lock:
            return 0 if self.closed else self._read_into(buffer)

    def _read_into(self, buffer: Any) -> int:
        data = self._next or self._source.read(len(buffer))
        if data:
            self._ends_line = data[-1:] in b"\r\n"
        elif self._last_line:
            data = (b"" if self._ends_line else b"\n") + self._last_line
            self._last_line = b""
        data, self._next = data[: len(buffer)], data[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        with self._lock:
            self._source.close()
            super().close()


def is_blank(file: TableFile) -> bool:
    """Whether a compressed file has nothing in it."""
    if file.compression is None:
        return False
    try:
        with closing(_Bytes(file)) as source:
            return not source.read(1)
    except UNREADABLE:
        return False


def header_of(file: TableFile) -> list[str]:
    """The names of the columns as the first row has them; those that come twice get a number."""
    return _decoded(lambda: list(_head(file, nrows=0).columns))


def first_row(file: TableFile) -> list[str]:
    """The cells of the first row."""
    return _decoded(lambda: _head(file, nrows=1, header=None).fillna("").iloc[0].tolist())


def _head(file: TableFile, **options: Any) -> pd.DataFrame:
    with io.BufferedReader(_Bytes(file)) as source:
        frame: pd.DataFrame = pd.read_csv(
            source,
            sep=file.separator,
            dtype=str,
            keep_default_na=False,
            # More rows are decoded than are asked for.
            encoding_errors="surrogateescape",
            **options,
        )
    return frame


def _decoded(read: Callable[[], list[str]]) -> list[str]:
    try:
        texts = read()
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise ValueError("row 1 has what is no text in UTF-8.") from None
    return texts


@dataclass(frozen=True)
class TextReader:
    """Reads the rows of a text file.

    Attributes:
        file: The file.
        names: Names of all its columns.
        header: Whether the first row has the names.
        quotes: Whether a cell may stand in quotes, and hold separators and line ends then.
    """

    file: TableFile
    names: Sequence[str]
    header: bool = True
    quotes: bool = True

    def batches(self, columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
        """The rows in order, all cells text, null where they are empty.

        Args:
            columns: Columns to read, at least one.

        Raises:
            ValueError: If a row has fewer or more cells than there are names, or is no UTF-8.
        """
        rows = int(self.header)
        ended = False
        try:
            for batch in self._parsed(columns, pyarrow.string()):
                if len(batch) and batch.column(0)[-1].as_py() == _END:
                    batch, ended = batch.slice(0, len(batch) - 1), True
                rows += len(batch)
                if len(batch):
                    yield batch
        except pyarrow.ArrowInvalid as error:
            raise ValueError(self._what_is_wrong() or str(error)) from error
        if not ended:
            raise ValueError(f"a quote in row {rows} has no end.")

    def _parsed(
        self, columns: Sequence[str], kind: Any, wrong: list[Any] | None = None
    ) -> Iterator[pyarrow.RecordBatch]:
        """Batches as pyarrow parses them. With ``wrong`` it is slower, and rows have numbers."""

        def handle(row: Any) -> str:
            if not row.text.strip():
                return "skip"
            if wrong is not None:
                wrong.append(row)
            return "error"

        last_line = self.file.separator.join([_END] * len(self.names)) + "\n"
        with closing(_Bytes(self.file, last_line)) as source:
            reader = csv.open_csv(
                pyarrow.PythonFile(source, mode="r"),
                read_options=csv.ReadOptions(
                    column_names=self.names,
                    skip_rows_after_names=int(self.header),
                    block_size=_BLOCK,
                    use_threads=wrong is None,
                ),
                parse_options=csv.ParseOptions(
                    delimiter=self.file.separator,
                    quote_char='"' if self.quotes else False,
                    newlines_in_values=self.quotes,
                    invalid_row_handler=handle,
                ),
                convert_options=csv.ConvertOptions(
                    column_types=dict.fromkeys(self.names, kind),
                    null_values=[""],
                    strings_can_be_null=True,
                    include_columns=columns,
                ),
            )
            with reader:
                yield from reader

    def _what_is_wrong(self) -> str:
        """The first row that cannot be read, or nothing if it is not a row."""
        wrong: list[Any] = []
        rows = int(self.header)
        try:
            for batch in self._parsed(self.names, pyarrow.binary(), wrong):
                for name, column in zip(self.names, batch.columns):
                    place = _first_not_utf8(column)
                    if place is not None:
                        return (
                            f"row {rows + place + 1} has in the column {name!r} what is no text "
                            f"in UTF-8: {column[place].as_py()[:80]!r}."
                        )
                rows += len(batch)
        except pyarrow.ArrowInvalid as error:
            if wrong and wrong[0].text.endswith(_END):
                return f"a quote in row {wrong[0].number} has no end."
            if wrong:
                return (
                    f"row {wrong[0].number} has {wrong[0].actual_columns} instead of "
                    f"{wrong[0].expected_columns} cells: {wrong[0].text[:80]!r}."
                )
            if "straddling" in str(error):
                return (
                    f"a row after row {rows} has more than {_BLOCK >> 20} MiB; perhaps a quote "
                    "has no end."
                )
        return ""


def _first_not_utf8(column: Any) -> int | None:
    try:
        column.cast(pyarrow.string())
    except pyarrow.ArrowInvalid:
        for place, cell in enumerate(column.to_pylist()):
            try:
                (cell or b"").decode()
            except UnicodeDecodeError:
                return place
    return None


def other_separator(file: TableFile) -> str:
    """What to do if the header of a file is one cell with another separator in it, or nothing."""
    names = header_of(file)
    found = [each for each in (";", "\t", "|", ",") if each in names[0]]
    if len(names) > 1 or not found:
        return ""
    return f" If {found[0]!r} stands between its cells, say so: `separator`."


def looks_like_values(file: TableFile) -> str:
    """What to do if the first row of a file looks like values and not like names, or nothing."""
    try:
        rows = _head(file, nrows=_HEADER_ROWS, header=None)
    except UNREADABLE:
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
        'If the file has no header, say the names: `names=["label", "user", ...]` of '
        "`read_table`, `columns=` of `TableDataModule`, on the command line `--columns "
        "label,user,...`."
    )
