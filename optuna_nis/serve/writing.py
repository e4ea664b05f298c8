"""Tables that are written some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import gzip
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
from pyarrow import compute, parquet

from optuna_nis._files import replacing

Write = Callable[[pyarrow.Table], None]


@contextmanager
def writing(path: Path) -> Iterator[Write]:
    """What writes rows into a file, which is there when all are written, or not at all.

    Args:
        path: The file, named as :func:`~optuna_nis._checks.check_table_file` wants it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path) as new,
        _parquet(new) if path.suffix == ".parquet" else _csv(new) as write,
    ):
        yield write


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    writer: parquet.ParquetWriter | None = None

    def write(table: pyarrow.Table) -> None:
        nonlocal writer
        if writer is None:
            writer = parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def _csv(path: Path) -> Iterator[Write]:
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        header = True

        def write(table: pyarrow.Table) -> None:
            nonlocal header
            _as_text(table).to_csv(file, index=False, header=header, lineterminator="\n")
            header = False

        yield write


def _as_text(table: pyarrow.Table) -> pd.DataFrame:
    """A table as pandas writes it: times the same in all batches, whole numbers whole."""
    table = table.cast(pyarrow.schema([(f.name, _date(f.type)) for f in table.schema]))
    for place, field in enumerate(table.schema):
        if pyarrow.types.is_temporal(field.type):
            text = compute.cast(table.column(place), pyarrow.string())
            text = compute.replace_substring_regex(text, r"\.0+(Z?)$", r"\1")
            table = table.set_column(place, field.name, text)
    frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True)
    return frame


def _date(kind: pyarrow.DataType) -> pyarrow.DataType:
    """Dates for the days that are read as times of whole seconds, as no other times are."""
    return pyarrow.date32() if kind == pyarrow.timestamp("s") else kind
