"""Columns of Parquet in the types that rows of a text file can have, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Final
from uuid import UUID

import pandas as pd
import pyarrow
from pyarrow import compute

# By their names: older versions have no such types.
_VIEWS: Final = ("list_view<", "large_list_view<")
_UNITS: Final = ("s", "ms", "us", "ns")


def plain_type(kind: Any, as_bytes: bool = False) -> Any:
    """The type that :func:`plain_column` gives a column of a type."""
    return plain_column(pyarrow.chunked_array([pyarrow.nulls(0, kind)]), as_bytes).type


def plain_column(column: Any, as_bytes: bool = False) -> Any:
    """A column of an Arrow table in one of the types that rows of a CSV file can have, too.

    Args:
        column: A chunked array.
        as_bytes: Whether bytes stay bytes even if they are text.
    """
    kind, types = column.type, pyarrow.types
    if isinstance(kind, pyarrow.BaseExtensionType):
        storage = pyarrow.chunked_array([c.storage for c in column.chunks], kind.storage_type)
        if kind.extension_name == "arrow.uuid":
            return _written(storage, lambda value: str(UUID(bytes=value)))
        return plain_column(storage, as_bytes)
    if str(kind) == "string_view":
        return plain_column(column.cast(pyarrow.large_string()))
    if types.is_dictionary(kind):
        return plain_column(column.cast(kind.value_type), as_bytes)
    if types.is_nested(kind):
        return _plain_items(column, as_bytes)
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
    if not as_bytes and (types.is_binary(kind) or types.is_large_binary(kind)):
        # Some writers leave out that their bytes are text.
        with suppress(pyarrow.ArrowInvalid):
            return plain_column(column.cast(pyarrow.large_string()))
    if types.is_string(kind) or types.is_large_string(kind):
        return compute.if_else(compute.equal(column, ""), pyarrow.scalar(None, kind), column)
    return column


def _plain_items(column: Any, as_bytes: bool) -> Any:
    kind = column.type
    if not hasattr(kind, "value_type") or pyarrow.types.is_map(kind):
        return column
    if str(kind).startswith(_VIEWS):
        lists = pyarrow.large_list(kind.value_type)
        chunks = [_as_lists(chunk) for chunk in column.chunks]
        return _plain_items(pyarrow.chunked_array(chunks, lists), as_bytes)
    empty = pyarrow.chunked_array([pyarrow.nulls(0, kind.value_type)])
    if plain_column(empty, as_bytes).type == kind.value_type:
        return column
    items = pyarrow.chunked_array([compute.list_flatten(column.combine_chunks())])
    values = plain_column(items, as_bytes)
    sizes = compute.list_value_length(column).to_pylist()
    items = iter(values.to_pylist())
    lists = [None if size is None else list(islice(items, size)) for size in sizes]
    return pyarrow.chunked_array([pyarrow.array(lists, pyarrow.list_(values.type))])


def _as_lists(views: Any) -> Any:
    """Views of lists as lists; a cast would lose items of them."""
    return pyarrow.array(views.to_pylist(), pyarrow.large_list(views.type.value_type))


def _written(column: Any, write: Callable[[Any], str]) -> Any:
    texts = [None if value is None else write(value) for value in column.to_pylist()]
    return pyarrow.chunked_array([pyarrow.array(texts, pyarrow.string())])


def has_bytes(kind: Any) -> bool:
    """Whether a type holds bytes that may be text."""
    types = pyarrow.types
    if types.is_dictionary(kind) or (types.is_nested(kind) and hasattr(kind, "value_type")):
        return has_bytes(kind.value_type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def is_decimal(kind: Any) -> bool:
    """Whether a type is that of decimals, which become text."""
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    return bool(pyarrow.types.is_decimal(kind))


def is_list_of_zoned_times(kind: Any) -> bool:
    """Whether a type is that of lists of times with a zone."""
    types = pyarrow.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    item = kind.value_type if any(is_list(kind) for is_list in lists) else kind
    return bool(item is not kind and types.is_timestamp(item) and item.tz is not None)


def common_type(kinds: Sequence[Any]) -> Any:
    """The plain type of cells of several types, or None if these are of several kinds.

    Args:
        kinds: Plain types, and those of decimals.
    """
    types = pyarrow.types
    found = list(dict.fromkeys(kind for kind in kinds if not types.is_null(kind)))
    if found and all(map(is_decimal, found)):
        return pyarrow.string()
    if len(found) < 2:
        return found[0] if found else pyarrow.null()
    if all(map(types.is_integer, found)):
        unsigned = all(map(types.is_unsigned_integer, found))
        return pyarrow.uint64() if unsigned else pyarrow.int64()
    if all(types.is_integer(kind) or types.is_floating(kind) for kind in found):
        return pyarrow.float64()
    for several, one in (
        ((pyarrow.string(), pyarrow.large_string()), pyarrow.large_string()),
        ((pyarrow.binary(), pyarrow.large_binary()), pyarrow.large_binary()),
    ):
        if all(kind in several for kind in found):
            return one
    if all(map(types.is_timestamp, found)) and len({kind.tz for kind in found}) == 1:
        return max(found, key=lambda kind: _UNITS.index(kind.unit))
    if all(types.is_list(kind) or types.is_large_list(kind) for kind in found):
        item = common_type([kind.value_type for kind in found])
        return None if item is None else pyarrow.large_list(item)
    return None


def cast(column: Any, kind: Any) -> Any:
    """A column in a type that can hold it.

    Raises:
        pyarrow.ArrowInvalid: If a cell would become another one.
    """
    if column.type == pyarrow.float32() and kind == pyarrow.float64():
        # As the number that is written: 0.1, not 0.10000000149.
        column = column.cast(pyarrow.string())
    return column if column.type == kind else column.cast(kind)
