"""Read a Parquet file as if its rows had been written to a CSV file."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID
import warnings

import numpy as np
import pandas as pd
import pyarrow
from pyarrow import compute, parquet

from optuna_nis.data import cells

# Up to two to the power of so much, floats can hold every whole number.
_DIGITS = {"halffloat": 11, "float": 24, "double": 53}


def read_parquet(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read columns of a Parquet file, of the types that those of a CSV file can have, too.

    Args:
        path: The file.
        columns: Names of the columns.
    """
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
