"""Columns of Parquet in the types that rows of a text file can have, too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Any
from uuid import UUID

import pandas as pd
import pyarrow
from pyarrow import compute


def plain_column(column: Any) -> Any:
    """A column of an Arrow table in one of the types that rows of a CSV file can have, too."""
    kind, types = column.type, pyarrow.types
    if isinstance(kind, pyarrow.BaseExtensionType):
        storage = pyarrow.chunked_array([c.storage for c in column.chunks], kind.storage_type)
        if kind.extension_name == "arrow.uuid":
            return _written(storage, lambda value: str(UUID(bytes=value)))
        return plain_column(storage)
    if str(kind) == "string_view":
        return plain_column(column.cast(pyarrow.large_string()))
    if types.is_dictionary(kind):
        return plain_column(column.cast(kind.value_type))
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
            return plain_column(column.cast(pyarrow.large_string()))
    if types.is_string(kind) or types.is_large_string(kind):
        return compute.if_else(compute.equal(column, ""), pyarrow.scalar(None, kind), column)
    return column


def _plain_items(column: Any) -> Any:
    kind = column.type
    if not hasattr(kind, "value_type") or pyarrow.types.is_map(kind):
        return column
    empty = pyarrow.chunked_array([], kind.value_type)
    if plain_column(empty).type == kind.value_type:
        return column
    values = plain_column(pyarrow.chunked_array([compute.list_flatten(column.combine_chunks())]))
    sizes = compute.list_value_length(column).to_pylist()
    items = iter(values.to_pylist())
    lists = [None if size is None else list(islice(items, size)) for size in sizes]
    return pyarrow.chunked_array([pyarrow.array(lists, pyarrow.list_(values.type))])


def _written(column: Any, write: Callable[[Any], str]) -> Any:
    texts = [None if value is None else write(value) for value in column.to_pylist()]
    return pyarrow.chunked_array([pyarrow.array(texts, pyarrow.string())])
