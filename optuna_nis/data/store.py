"""The columns of a table, each coded once: in memory, or in files that are read from there.

A column goes through memory alone, some hundred thousand rows at a time, whatever the size of the
table: pyarrow codes each batch and unifies what it has found. Of polars, duckdb and pyarrow it
was the one that gives codes and distinct values in order of first occurrence in so little memory,
and it is there anyway (``benchmarks/click_log.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
import json
from pathlib import Path
import re
import shutil
import time
from typing import Any
import uuid

import numpy as np
from numpy.typing import NDArray
import pyarrow
from pyarrow import compute, parquet

from optuna_nis._files import replacing
from optuna_nis.data.cells import without
from optuna_nis.data.coded import CodedColumn
from optuna_nis.data.digests import Digests
from optuna_nis.data.file_array import FileArray
from optuna_nis.data.files import TableFiles
from optuna_nis.data.pace import Pace, Progress, no_progress
from optuna_nis.data.scaling import Floats, numbers_of
from optuna_nis.data.values import check_no_struct, factorize

_ROWS = 1 << 18
# Cells by which a column is judged.
_HEAD = 1000
_PRINTED_LIST = re.compile(r"\[[^\[\]]*\]")
_ROWS_OF_A_PART = 1 << 22
# Seconds after which nobody is still writing a file, which takes minutes.
_ABANDONED = 24 * 3600


class ColumnStore:
    """The columns of the files of a table.

    What a folder holds is named by the content of the files and written whole or not at all: who
    is killed meanwhile goes on with the columns that are not there yet.

    Args:
        files: The files of the table, or of each of its parts, of one kind.
        folder: Where coded columns are kept, or :obj:`None` for memory.
        columns: All columns that will be asked for: text is read once for all of them.
        progress: Called with a line of text every few seconds while files are read.
    """

    def __init__(
        self,
        files: Sequence[TableFiles],
        folder: Path | None,
        columns: Sequence[str],
        *,
        progress: Progress = no_progress,
    ) -> None:
        self.files = list(files)
        self._pace = Pace(progress)
        self._begun: list[str] = []
        self._num_rows = 0
        self._columns = sorted(set(columns))
        self._is_text = self.files[0].kind == "text"
        #: A text that is another one as soon as the files are; empty without a folder.
        self.content = ""
        self._folder: Path | None = None
        if folder is not None:
            digests = Digests(folder)
            whole = blake2b(digest_size=12)
            for each in files:
                whole.update(each.digest(digests.of).encode())
            self.content = whole.hexdigest()
            self._folder = folder / self.content
            self._folder.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(self._folder)
        self._tables: list[list[pyarrow.RecordBatch]] = []
        self._sizes: list[int] = []

    @property
    def sizes(self) -> list[int]:
        """Number of rows of each of the parts that ``files`` are."""
        if not self._sizes:
            path = None if self._folder is None else self._folder / "rows.json"
            if path is not None and path.is_file():
                self._sizes = json.loads(path.read_text())
            else:
                name = self._columns[0]
                self._sizes = [
                    sum(map(len, self._cells_of(index, name))) for index in range(len(self.files))
                ]
                if path is not None:
                    with replacing(path) as new:
                        new.write_text(json.dumps(self._sizes))
        return self._sizes

    def column(self, name: str) -> CodedColumn:
        """The cells of a column, as they are written.

        Raises:
            TypeError: If they are lists, maps or other things that cannot be ids.
        """
        return self._coded(name, "cells", lambda cells: (_flat(cells, name), None))

    def bag(self, name: str, separator: str | None, na_values: Sequence[str] = ()) -> CodedColumn:
        """The items of the cells of a column.

        Args:
            name: Name of the column.
            separator: The text between two items, or None if cells are lists.
            na_values: Texts, and numbers written as text, that stand for no item.

        Raises:
            TypeError: If they are maps or structs.
            ValueError: If the cells are not lists, or are lists and should not, or no cell
                contains the separator.
        """
        form = f"present items {separator} {sorted(na_values)}"
        column = self._coded(name, form, lambda cells: _items(cells, separator, name, na_values))
        assert column.offsets is not None
        if separator is not None and not self._separates(name, separator, column):
            raise ValueError(
                f"`bags[{name!r}]` must be the text between two values, got {separator!r}, which "
                f"stands between no two; one is {column.first()!r}. Leave the column out of "
                "`bags` if its cells hold one value each."
            )
        return column

    def numbers(
        self, name: str, na_values: Sequence[str] = (), *, are_weights: bool = False
    ) -> Floats | FileArray:
        """The numbers of a column, NaN where one is missing.

        Args:
            name: Name of the column.
            na_values: Texts that stand for a missing value.
            are_weights: Whether they are weights of rows, for errors.

        Raises:
            ValueError: If a cell holds something else.
        """
        path = self._path(name, f"numbers {sorted(na_values)}", "numbers")
        if path is not None and path.is_file():
            return FileArray(path, np.dtype(np.float32))
        parts: list[Floats] = []
        row = 0
        for cells in self._cells(name):
            parts.append(_numbers(cells, name, na_values, row, are_weights))
            row += len(cells)
        found = np.concatenate(parts) if parts else np.empty(0, np.float32)
        return found if path is None else _kept(path, found)

    def _separates(self, name: str, separator: str, bags: CodedColumn) -> bool:
        """Whether a text stands between any two items, of which one may be missing."""
        if bags.lengths().max(initial=0) != 1:
            return True
        return any(
            compute.any(compute.match_substring(_as_text(cells), separator)).as_py()
            for cells in self._cells(name)
        )

    def _coded(self, name: str, form: str, split: Any) -> CodedColumn:
        codes_path, offsets_path, values_path = (
            self._path(name, form, kind) for kind in ("codes", "offsets", "arrow")
        )
        if values_path is not None and values_path.is_file():
            assert codes_path is not None
            assert offsets_path is not None
            with pyarrow.memory_map(str(values_path)) as source:
                values = pyarrow.ipc.open_file(source).read_all().column(0).combine_chunks()
            offsets = None
            if offsets_path.is_file():
                offsets = FileArray(offsets_path, np.dtype(np.int64))
            return CodedColumn(name, values, FileArray(codes_path, np.dtype(np.int32)), offsets)
        coded, lengths = [], []
        for cells in self._cells(name):
            _check_no_map(cells, name)
            items, sizes = split(cells)
            coded.append(items.dictionary_encode())
            if sizes is not None:
                lengths.append(sizes)
        if not coded:
            names = ", ".join(repr(each.files[0].name) for each in self.files)
            raise ValueError(f"The file {names} is empty: it has no row.")
        values, codes = _unified(coded)
        column = CodedColumn(name, values, codes)
        if lengths:
            ends = np.cumsum(np.concatenate(lengths))
            column = replace(column, offsets=np.concatenate([[0], ends]).astype(np.int64))
        if values_path is None:
            return column
        assert codes_path is not None
        assert offsets_path is not None
        if column.offsets is not None:
            column = replace(column, offsets=_kept(offsets_path, np.asarray(column.offsets)))
        column = replace(column, codes=_kept(codes_path, codes))
        _write_values(values_path, values)
        return column

    def _path(self, name: str, form: str, kind: str) -> Path | None:
        if self._folder is None:
            return None
        key = blake2b(f"{name}\n{form}".encode(), digest_size=12).hexdigest()
        return self._folder / f"{key}.{kind}"

    def _cells(self, name: str) -> Iterator[pyarrow.Array]:
        """The cells of a column, some at a time."""
        self._begun += [] if name in self._begun else [name]
        before, columns = self._begun.index(name), len(self._columns)
        what, rows = f"Reading column {before + 1} of {columns}, {name}", 0
        for index in range(len(self.files)):
            for cells in self._cells_of(index, name):
                yield cells
                rows += len(cells)
                # The first column has told how many rows there are.
                known = self._num_rows and (before + min(rows / self._num_rows, 1)) / columns
                self._pace.add(len(cells), what, known or None)
        self._num_rows = rows

    def _cells_of(self, index: int, name: str) -> Iterator[pyarrow.Array]:
        files = self.files[index]
        if not self._is_text:
            for batch in files.batches([name], rows=_ROWS):
                yield batch.column(0)
        elif self._folder is not None:
            for part in self._parts(index, self._folder):
                for batch in parquet.ParquetFile(part).iter_batches(_ROWS, columns=[name]):
                    yield batch.column(0)
        else:
            if not self._tables:
                self._tables = [list(self._text(each)) for each in self.files]
            for batch in self._tables[index]:
                yield batch.column(name)

    def _text(self, files: TableFiles) -> Iterator[pyarrow.RecordBatch]:
        """All columns of text."""
        for batch in files.batches(self._columns, rows=_ROWS):
            yield batch
            self._pace.add(len(batch), f"Reading the text of {len(self._columns)} columns")

    def _parts(self, index: int, folder: Path) -> list[Path]:
        """The columns of text files in a form of which one column can be read."""
        key = blake2b("\n".join(self._columns).encode(), digest_size=12).hexdigest()
        parts = folder / f"{key}.{index}.text"
        if not parts.is_dir():
            # Processes of other machines, too, may be at it.
            new = folder / f"new.{uuid.uuid4().hex}.{parts.name}"
            new.mkdir()
            try:
                self._write_parts(index, new)
                new.rename(parts)
            except OSError:
                # Whoever else was at it has written the same.
                if not parts.is_dir():
                    raise
            finally:
                shutil.rmtree(new, ignore_errors=True)
        return sorted(parts.glob("*.parquet"))

    def _write_parts(self, index: int, folder: Path) -> None:
        writer, rows, number = None, 0, 0
        for batch in self._text(self.files[index]):
            if writer is None:
                number += 1
                path = folder / f"{number:05}.parquet"
                writer = parquet.ParquetWriter(path, batch.schema, compression="lz4")
            writer.write_batch(batch)
            rows += len(batch)
            if rows >= _ROWS_OF_A_PART:
                writer.close()
                writer, rows = None, 0
        if writer is not None:
            writer.close()


def _remove_leftovers(folder: Path) -> None:
    """Remove what somebody who was killed long ago has begun to write."""
    for path in folder.glob("new.*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _flat(cells: pyarrow.Array, name: str) -> pyarrow.Array:
    """Cells that are no lists."""
    if pyarrow.types.is_nested(cells.type):
        # It says what is wrong with the first one, if there is one.
        factorize(cells.drop_null().slice(0, 1).to_pandas(), name)
        return pyarrow.nulls(len(cells), pyarrow.string())
    return cells


def _unified(chunks: list[pyarrow.Array]) -> tuple[pyarrow.Array, NDArray[np.int32]]:
    """Distinct values and the codes of all cells, from those of chunks."""
    column = pyarrow.chunked_array(chunks).unify_dictionaries()
    codes = np.empty(len(column), dtype=np.int32)
    start = 0
    for chunk in column.chunks:
        indices = chunk.indices.fill_null(-1)
        codes[start : start + len(chunk)] = indices.to_numpy(zero_copy_only=False)
        start += len(chunk)
    return column.chunk(0).dictionary, codes


def _items(
    cells: pyarrow.Array, separator: str | None, name: str, na_values: Sequence[str] = ()
) -> tuple[pyarrow.Array, NDArray[np.int64]]:
    """The items of bags one after the other, and how many each bag has."""
    types = pyarrow.types
    is_list = types.is_list(cells.type) or types.is_large_list(cells.type)
    if types.is_fixed_size_list(cells.type):
        cells, is_list = cells.cast(pyarrow.large_list(cells.type.value_type)), True
    empty = types.is_null(cells.type) or cells.null_count == len(cells)
    if types.is_struct(cells.type.value_type if is_list else cells.type):
        for struct in (compute.list_flatten(cells) if is_list else cells).drop_null()[:1]:
            check_no_struct(struct.as_py(), name)
    if separator is None and not is_list and not empty:
        shown = cells.drop_null()[0].as_py()
        raise ValueError(
            f"`bags[{name!r}]` must be the text between two values, since not all cells are "
            f"lists; got None for {shown!r}. On the command line: `--bags {name}:'|'`, if it is |."
        )
    if separator is not None and is_list:
        raise ValueError(
            f"`bags[{name!r}]` must be None, since the cells of the column are lists, got "
            f"{separator!r}: `bags={{{name!r}: None}}`, or on the command line `--bags {name}`."
        )
    if separator is not None:
        _check_no_lists(cells, name)
    if not is_list:
        texts = _as_text(cells)
        if na_values:  # In which the separator may be.
            marked = compute.is_in(texts, value_set=pyarrow.array(na_values, texts.type))
            texts = compute.if_else(marked, pyarrow.scalar(None, texts.type), texts)
        cells = compute.split_pattern(texts, separator or "\0")
    lengths = compute.list_value_length(cells).fill_null(0).to_numpy(zero_copy_only=False)
    items = compute.list_flatten(cells)
    if types.is_nested(items.type):
        shown = next((cell for cell in cells.to_pylist() if cell), [])
        raise ValueError(
            f"The cells of the bag {name!r} must be lists of values, got lists of lists such as "
            f"{shown!r:.80}."
        )
    if separator is not None:
        items = compute.utf8_trim_whitespace(items)
    # What is missing is no item, an empty text neither.
    if types.is_string(items.type) or types.is_large_string(items.type):
        missing = compute.equal(items, "").fill_null(True)
    else:
        missing = compute.is_null(items, nan_is_null=True)
    if na_values:
        missing = compute.or_(missing, _are_marked(items, na_values))
    if compute.any(missing).as_py():
        filled = compute.invert(missing)
        rows = np.repeat(np.arange(len(lengths)), lengths)
        items = items.filter(filled)
        kept = rows[filled.to_numpy(zero_copy_only=False)]
        lengths = np.bincount(kept, minlength=len(lengths))
    return items, lengths.astype(np.int64)


def _are_marked(items: pyarrow.Array, na_values: Sequence[str]) -> pyarrow.Array:
    """Which items stand for none; each distinct one is looked at once."""
    coded = items.dictionary_encode()
    marked = without(coded.dictionary.to_pandas(), na_values).isna()
    return pyarrow.array(marked.to_numpy()).take(coded.indices).fill_null(False)


def _check_no_map(cells: pyarrow.Array, name: str) -> None:
    """Raise a TypeError if the cells are maps, of which no feature can be made."""
    if pyarrow.types.is_map(cells.type):
        raise TypeError(
            f"The column {name!r} holds maps, of type {cells.type}: make a column of the keys or "
            "of the values, as lists."
        )


def _check_no_lists(cells: pyarrow.Array, name: str) -> None:
    """Raise a ValueError if the cells of a bag are lists as Python prints them."""
    head = [str(cell).strip() for cell in cells.drop_null()[:_HEAD].to_pylist()]
    if head and all(map(_PRINTED_LIST.fullmatch, head)) and any("," in cell for cell in head):
        shown = next(cell for cell in head if "," in cell)
        raise ValueError(
            f"The cells of the bag {name!r} must be values with a separator between them, such as "
            f"7|14|21, got printed lists such as {shown[:80]!r}. Write the column as "
            "'|'.join(map(str, cell)), or the table as Parquet, which has lists."
        )


def _as_text(cells: pyarrow.Array) -> pyarrow.Array:
    """Cells as text; a column of which every bag holds one number has been read as numbers."""
    if pyarrow.types.is_floating(cells.type):
        with suppress(pyarrow.ArrowInvalid):
            cells = cells.cast(pyarrow.int64())
    return cells if pyarrow.types.is_large_string(cells.type) else cells.cast(pyarrow.string())


def _numbers(
    cells: pyarrow.Array, name: str, na_values: Sequence[str], row: int, are_weights: bool
) -> Floats:
    types = pyarrow.types
    if types.is_string(cells.type) or types.is_large_string(cells.type):
        if na_values:
            missing = compute.is_in(cells, value_set=pyarrow.array(na_values, cells.type))
            cells = compute.if_else(missing, pyarrow.scalar(None, cells.type), cells)
        with suppress(pyarrow.ArrowInvalid):
            cells = cells.cast(pyarrow.float64())
    column = cells.to_pandas()
    column.index += row
    return numbers_of(column, name, na_values, are_weights=are_weights)


def _kept(path: Path, values: NDArray[Any]) -> FileArray:
    """Write an array, whole or not at all, to be read from there."""
    with replacing(path) as new:
        values.tofile(new)
    return FileArray(path, values.dtype)


def _write_values(path: Path, values: pyarrow.Array) -> None:
    table = pyarrow.table({"values": values})
    with (
        replacing(path) as new,
        pyarrow.OSFile(str(new), "wb") as sink,
        pyarrow.ipc.new_file(sink, table.schema) as file,
    ):
        file.write_table(table)
