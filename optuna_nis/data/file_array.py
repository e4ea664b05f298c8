"""Arrays in files, of which elements are read when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[np.int64] | slice

# Rows that are nearer to each other are read with all between them.
_GAP = 64


@dataclass(frozen=True, eq=False)
class FileArray:
    """An array in a file, perhaps with others in the place of its elements.

    Elements are read and not mapped into memory: pages that are mapped would count as memory of
    the process, and a mapping would be copied whole to a process that reads ahead.

    Attributes:
        path: The file, which holds nothing else.
        dtype: The type of what it holds.
        table: What an element stands for: ``table[element]``; -1 is the last of it. :obj:`None`
            if elements are what they are.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.arange(5, dtype=np.int32).tofile(f"{folder}/numbers")
        ...     array = FileArray(Path(folder, "numbers"), np.dtype(np.int32))
        ...     tens = array.mapped(np.arange(5, dtype=np.int32) * 10)
        ...     len(array), array[np.array([3, 1])].tolist(), tens[1:4].tolist()
        (5, [3, 1], [10, 20, 30])
    """

    path: Path
    dtype: np.dtype[Any]
    table: NDArray[Any] | None = None

    def __len__(self) -> int:
        return self.path.stat().st_size // self.dtype.itemsize

    def __getitem__(self, rows: Rows) -> NDArray[Any]:
        found = self._read(rows)
        return found if self.table is None else self.table[found]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)

    def mapped(self, table: NDArray[Any]) -> FileArray:
        """With what each element stands for in its place."""
        return replace(self, table=table if self.table is None else table[self.table])

    def _read(self, rows: Rows) -> NDArray[Any]:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            return self._between(start, stop)[::step]
        steps = np.diff(rows)
        begins = np.flatnonzero((steps < 0) | (steps > _GAP)) + 1
        if len(begins) * _GAP > len(rows) + _GAP:
            # Rows from all over the file.
            if not len(rows):
                return np.empty(0, self.dtype)
            return np.array(np.memmap(self.path, self.dtype, "r")[rows])
        parts = [
            self._between(int(run[0]), int(run[-1]) + 1)[run - run[0]]
            for run in np.split(rows, begins)
            if len(run)
        ]
        return np.concatenate(parts) if parts else np.empty(0, self.dtype)

    def _between(self, start: int, stop: int) -> NDArray[Any]:
        number, skipped = max(stop - start, 0), start * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, number, offset=skipped)
