"""Parquet files as a stream of batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow
from pyarrow import parquet

from optuna_nis.data.arrow_types import has_bytes, plain_column, plain_type

# Columns are read piece by piece, so that the size of a row group does not matter.
_BUFFER: Final = 1 << 20
_CELLS: Final = 1 << 21


class ParquetReader:
    """Reads the rows of a Parquet file.

    Args:
        path: The file.

    Attributes:
        names: Names of the columns.
        types: For every column its type in the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        schema = parquet.read_schema(path)
        self.names: list[str] = list(schema.names)
        self.types: dict[str, Any] = dict(zip(schema.names, schema.types))

    def batches(
        self, columns: Sequence[str], rows: int, as_bytes: Sequence[str] = ()
    ) -> Iterator[pyarrow.RecordBatch]:
        """The rows in order, in plain types.

        Args:
            columns: Columns to read.
            rows: The most rows of a batch.
            as_bytes: Columns of which bytes are not text.
        """
        rows = max(1, min(rows, _CELLS // len(columns)))
        for batch in self._raw(columns, rows):
            yield pyarrow.RecordBatch.from_arrays(
                [
                    plain_column(
                        pyarrow.chunked_array([column]), name in as_bytes
                    ).combine_chunks()
                    for name, column in zip(columns, batch)
                ],
                list(columns),
            )

    def holds_text(self, name: str) -> bool:
        """Whether all bytes of a column are text, which some writers do not say."""
        wanted = plain_type(self.types[name])
        return not has_bytes(self.types[name]) or all(
            plain_column(pyarrow.chunked_array(columns)).type == wanted
            for columns in self._raw([name], _CELLS)
        )

    def _raw(self, columns: Sequence[str], rows: int) -> Iterator[list[Any]]:
        with parquet.ParquetFile(self._path, buffer_size=_BUFFER, pre_buffer=False) as file:
            for batch in file.iter_batches(rows, columns=list(columns)):
                yield [batch.column(batch.schema.get_field_index(name)) for name in columns]
