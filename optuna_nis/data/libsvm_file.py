"""Files in the format of libsvm and libFM, ``1 12:1 507:1``, in which every feature is 0 or 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
import pyarrow
from pyarrow import compute

from optuna_nis.data.paths import TableFile
from optuna_nis.data.text_file import TextReader

LABEL_COLUMN: Final = "label"
QUERY_COLUMN: Final = "qid"
FEATURES_COLUMN: Final = "features"

IntArray = NDArray[np.int64]

_LINE: Final = "line"
_ITEM: Final = r"^[0-9]{1,18}:\+?1(\.0*)?([eE][+-]?0+)?$"


class LibsvmReader:
    """Reads the rows of a libsvm file.

    Its columns are ``label`` (text), ``qid`` (text, where the first row has one) and ``features``,
    lists of the indices that are 1.

    Args:
        file: The file.
    """

    def __init__(self, file: TableFile) -> None:
        self._lines = TextReader(file, [_LINE], header=False, quotes=False)
        first = next((rows for _, rows in self._rows() if len(rows)), None)
        query = []
        if first is not None and re.match(rf"\S+\s+{QUERY_COLUMN}:", first[0].as_py()):
            query = [QUERY_COLUMN]
        self.names = [LABEL_COLUMN, *query, FEATURES_COLUMN]

    def batches(self, columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
        """The rows in order.

        Args:
            columns: Columns to read.

        Raises:
            ValueError: If a feature is not written ``INDEX:1``, or a row has no ``qid``.
        """
        for numbers, rows in self._rows():
            found = dict(zip(self.names, self._split(rows, numbers)))
            yield pyarrow.RecordBatch.from_arrays([found[name] for name in columns], list(columns))

    def _rows(self) -> Iterator[tuple[IntArray, Any]]:
        """Lines without their comments, with their numbers."""
        number = 1
        for batch in self._lines.batches([_LINE]):
            lines = compute.replace_substring_regex(batch.column(0), "(^|\\s)#.*", "")
            lines = compute.utf8_trim_whitespace(lines)
            filled = compute.not_equal(lines, "").to_numpy(zero_copy_only=False)
            yield number + np.flatnonzero(filled), lines.filter(pyarrow.array(filled))
            number += len(batch)

    def _split(self, rows: Any, numbers: IntArray) -> list[Any]:
        """The columns of some lines."""
        heads = len(self.names) - 1
        cells = compute.ascii_split_whitespace(rows)
        sizes = compute.list_value_length(cells).to_numpy(zero_copy_only=False)
        starts = np.cumsum(sizes) - sizes
        flat = compute.list_flatten(cells)
        is_item = np.ones(len(flat), bool)
        is_item[starts] = False
        labels = flat.take(pyarrow.array(starts))
        found = [compute.replace_substring_regex(labels, r"^\+", "")]
        if heads > 1:
            named = compute.match_substring_regex(rows, rf"^\S+\s+{QUERY_COLUMN}:")
            _check(named, np.arange(len(rows)), rows, numbers, "has no `qid`")
            is_item[starts + 1] = False
            queries = flat.take(pyarrow.array(starts + 1))
            found.append(compute.replace_substring_regex(queries, f"^{QUERY_COLUMN}:", ""))
        items = flat.filter(pyarrow.array(is_item))
        row_of = np.repeat(np.arange(len(rows)), sizes - heads)
        _check(
            compute.match_substring_regex(items, _ITEM),
            row_of,
            rows,
            numbers,
            "has features that are not written INDEX:1. Only features that are 0 or 1 become ids; "
            "numbers belong into columns of their own, in CSV or Parquet",
        )
        indices = compute.replace_substring_regex(items, ":.*", "").cast(pyarrow.int64())
        offsets = np.concatenate([[0], np.cumsum(sizes - heads)]).astype(np.int32)
        return [*found, pyarrow.ListArray.from_arrays(pyarrow.array(offsets), indices)]


def _check(fits: Any, row_of: IntArray, rows: Any, numbers: IntArray, message: str) -> None:
    """Refuse the first row of which something does not fit."""
    wrong = np.flatnonzero(~fits.to_numpy(zero_copy_only=False).astype(bool))
    if wrong.size:
        row = row_of[wrong[0]]
        raise ValueError(f"row {numbers[row]}, {rows[int(row)].as_py()[:80]!r}, {message}.")
