"""The values and counts of many vocabularies in one Parquet file."""

from __future__ import annotations

from collections.abc import Mapping
import json
from typing import Any, Final

import pyarrow
from pyarrow import parquet

COUNT: Final = "count"
"""The column of the counts."""

JSON: Final = "json"
"""The column of values of several types, or others than those that have a column."""

COLUMNS: Final = {
    "str": pyarrow.large_string(),
    "bytes": pyarrow.large_binary(),
    "int": pyarrow.int64(),
    "float": pyarrow.float64(),
    JSON: pyarrow.large_string(),
}
"""The columns of values, of which a vocabulary fills one."""

_VERSION: Final = 1
_KEY: Final = b"optuna_nis"
_ROWS_AT_ONCE: Final = 1 << 20
_UNREADABLE: Final = (
    pyarrow.ArrowException,
    AttributeError,
    KeyError,
    OSError,
    StopIteration,
    TypeError,
    ValueError,
)


def write_packed(tables: Mapping[str, pyarrow.Table], sink: Any) -> None:
    """Write the tables of vocabularies, each in row groups of its own.

    Args:
        tables: By name, tables of one of the columns of values and the counts.
        sink: Path or file to write to.

    Example:
        >>> import io
        >>> file = io.BytesIO()
        >>> cities = pyarrow.table({"str": ["Rome", "Oslo"], "count": [2, 1]})
        >>> write_packed({"city": cities}, file)
        >>> read_packed(file)["city"].to_pydict()
        {'str': ['Rome', 'Oslo'], 'count': [2, 1]}
    """
    entries = [
        [name, table.column_names[0], len(table), *_metadata(table)]
        for name, table in tables.items()
    ]
    about = json.dumps({"version": _VERSION, "vocabularies": entries})
    schema = pyarrow.schema([*COLUMNS.items(), (COUNT, pyarrow.int64())], {_KEY: about})
    with parquet.ParquetWriter(sink, schema, compression="zstd", use_dictionary=[COUNT]) as writer:
        for table in tables.values():
            for start in range(0, len(table), _ROWS_AT_ONCE):
                rows = table.slice(start, _ROWS_AT_ONCE)
                filled = [
                    rows[field.name].cast(field.type)
                    if field.name in rows.column_names
                    else pyarrow.nulls(len(rows), field.type)
                    for field in schema
                ]
                writer.write_table(pyarrow.table(filled, schema))


def read_packed(source: Any) -> dict[str, pyarrow.Table]:
    """Read what :func:`write_packed` wrote.

    Args:
        source: Path or file to read from.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file.
    """
    try:
        with parquet.ParquetFile(source) as file:
            about = json.loads((file.metadata.metadata or {}).get(_KEY, b"{}"))
            if (version := about.get("version")) != _VERSION:
                raise ValueError(f"it must be of version {_VERSION}, got {version!r}")
            groups = iter(range(file.num_row_groups))
            tables = {}
            for name, column, size, *more in about["vocabularies"]:
                mine, rows = [], 0
                while rows < size:
                    mine.append(next(groups))
                    rows += file.metadata.row_group(mine[-1]).num_rows
                tables[name] = file.read_row_groups(mine, [column, COUNT])
                if rows != size or tables[name].column_names != [column, COUNT]:
                    raise ValueError(f"it must have {size} values of {name!r} in {column!r}")
                tables[name] = tables[name].replace_schema_metadata(*more or [None])
            return tables
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError(f"This file of vocabularies is malformed: {error!r:.300}.") from error


def _metadata(table: pyarrow.Table) -> list[dict[str, str]]:
    """What a table says besides its columns, if anything."""
    found = table.schema.metadata
    return [{key.decode(): value.decode() for key, value in found.items()}] if found else []
