"""Files in the format of libsvm and libFM, ``1 12:1 507:1``, in which every feature is 0 or 1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow
from pyarrow import compute

from optuna_nis.data.paths import TableFile
from optuna_nis.data.text_file import TextReader

LABEL_COLUMN: Final = "label"
QUERY_COLUMN: Final = "qid"
FEATURES_COLUMN: Final = "features"

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
        first = next(iter(self._lines.batches([_LINE])), None)
        has_query = False
        if first is not None and len(first):
            cells = str(first.column(0)[0].as_py()).split()
            has_query = len(cells) > 1 and cells[1].startswith(f"{QUERY_COLUMN}:")
        query = [QUERY_COLUMN] if has_query else []
        self.names = [LABEL_COLUMN, *query, FEATURES_COLUMN]

    def batches(self, columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
        """The rows in order.

        Args:
            columns: Columns to read.

        Raises:
            ValueError: If a feature is not written ``INDEX:1``, or a row has no ``qid``.
        """
        rows = 0
        for batch in self._lines.batches([_LINE]):
            found = dict(zip(self.names, self._split(batch.column(0), rows)))
            rows += len(batch)
            yield pyarrow.RecordBatch.from_arrays([found[name] for name in columns], list(columns))

    def _split(self, lines: Any, before: int) -> list[Any]:
        """The columns of some lines."""
        plain = compute.utf8_trim_whitespace(
            compute.replace_substring_regex(lines, r"\s#.*|^#.*", "")
        )
        plain = plain.filter(compute.not_equal(plain, ""))
        cells = compute.ascii_split_whitespace(plain)
        heads = len(self.names) - 1
        sizes = compute.list_value_length(cells).to_numpy(zero_copy_only=False)
        starts = np.cumsum(sizes) - sizes
        flat = compute.list_flatten(cells)
        labels = flat.take(pyarrow.array(starts))
        found = [compute.replace_substring_regex(labels, r"^\+", "")]
        kept = np.ones(len(flat), bool)
        kept[starts] = False
        if heads > 1:
            if (sizes < heads).any():
                _refuse(int(np.argmax(sizes < heads)), before, plain, "has no `qid`")
            queries = flat.take(pyarrow.array(starts + 1))
            named = compute.starts_with(queries, f"{QUERY_COLUMN}:")
            if not compute.all(named).as_py():
                place = named.to_numpy(zero_copy_only=False).argmin()
                _refuse(int(place), before, plain, "has no `qid`")
            found.append(compute.replace_substring_regex(queries, "^qid:", ""))
            kept[starts + 1] = False
        items = flat.filter(pyarrow.array(kept))
        offsets = np.concatenate([[0], np.cumsum(sizes - heads)]).astype(np.int32)
        fits = compute.match_substring_regex(items, _ITEM).to_numpy(zero_copy_only=False)
        if not fits.all():
            place = int(fits.argmin())
            row = int(np.searchsorted(offsets, place, "right")) - 1
            _refuse(
                row,
                before,
                plain,
                f"has the feature {items[place].as_py()!r}, which is not written INDEX:1. Only "
                "features that are 0 or 1 become ids; numbers belong into columns of their own, "
                "in CSV or Parquet",
            )
        indices = compute.replace_substring_regex(items, ":.*", "").cast(pyarrow.int64())
        return [*found, pyarrow.ListArray.from_arrays(pyarrow.array(offsets), indices)]


def _refuse(place: int, before: int, lines: Any, reason: str) -> None:
    raise ValueError(f"row {before + place + 1}, {lines[place].as_py()[:80]!r}, {reason}.")
