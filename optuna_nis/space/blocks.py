"""The row blocks of all tables of a space side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optuna_nis.space.allocation import Allocation
from optuna_nis.space.constraint import FloatArray, IntArray
from optuna_nis.space.tables import Table

# The random widths of an allocation are shifted together until it costs what was asked: by at most
# so many octaves, halved so often.
_LARGEST_SHIFT = 60.0
_BISECTIONS = 14


class Blocks:
    """The row blocks of all tables side by side, to count bytes fast and draw at random.

    Args:
        tables: The tables.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        blocks = [len(table.rows) for table in tables]
        self._cuts = np.cumsum(blocks)[:-1]
        sizes = [table.sizes for table in tables]
        widths = [len(own.octaves) for own in sizes]
        octaves = np.full((len(tables), max(widths)), np.inf)
        for row, own in zip(octaves, sizes):
            row[: len(own.octaves)] = own.octaves
        self._octaves = np.repeat(octaves, blocks, axis=0)[:, 1:]
        self._is_first = np.concatenate([np.arange(number) == 0 for number in blocks])
        self._precisions = np.repeat([len(own.spec.precisions) for own in sizes], blocks)
        options = [len(own.names) for own in sizes]
        self._starts = np.repeat(np.cumsum([0, *options[:-1]]), blocks)
        # Of each option of each table after each other one, one table after the other.
        self._numbers = np.repeat(options, blocks)
        squares = [number**2 for number in options]
        self._late_starts = np.repeat(np.cumsum([0, *squares[:-1]]), blocks)
        self._rows = np.concatenate([table.rows for table in tables])
        self._row_nbytes = np.concatenate([own.row_nbytes for own in sizes])
        self._first_costs = np.concatenate([own.projection + own.steps for own in sizes])
        self._late_costs = np.concatenate([own.late_costs.ravel() for own in sizes])

    def options(self, octaves: FloatArray, bits: IntArray) -> IntArray:
        """Index of the size of each row block, the octave of its width rounded down."""
        levels = (self._octaves <= octaves[:, None]).sum(1)
        return np.where(levels == 0, 0, 1 + (levels - 1) * self._precisions + bits)

    def nbytes(self, octaves: FloatArray, bits: IntArray) -> int:
        """Bytes of all tables, their sizes given as in :meth:`options`."""
        options = self.options(octaves, bits)
        before = np.where(self._is_first, 0, np.append(0, options[:-1]))
        late = self._late_costs[self._late_starts + before * self._numbers + options]
        first = self._first_costs[self._starts + options]
        rows = self._rows @ self._row_nbytes[self._starts + options]
        return int(rows + np.where(self._is_first, first, late).sum())

    def _shared_nbytes(self, options: IntArray, shares: Sequence[int]) -> int:
        """Bytes of the rows that ids without one share, by how many there are at most."""
        total = 0
        for table, number, own in zip(self._tables, shares, np.split(options, self._cuts)):
            kept = int(np.count_nonzero(own))
            if number and kept:
                left = table.spec.num_embeddings - table.spec.row_cuts[kept - 1]
                total += min(number, left) * int(table.sizes.row_nbytes[own[kept - 1]])
        return total

    def sample(self, rng: np.random.Generator, nbytes: float, removal: float) -> Allocation:
        """As :meth:`SearchSpace.sample <optuna_nis.SearchSpace.sample>`, its cost in bytes."""
        bases, precisions = [], []
        for table in self._tables:
            base = table.random_octaves(rng)
            precisions.append(table.random_bits(rng))
            bases.append(np.full_like(base, -np.inf) if rng.random() < removal else base)
        shape, bits = np.concatenate(bases), np.concatenate(precisions)
        shares = [table.random_share(rng) for table in self._tables]
        low, high = -_LARGEST_SHIFT, _LARGEST_SHIFT
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            own = self._shared_nbytes(self.options(shape + middle, bits), shares)
            if self.nbytes(shape + middle, bits) + own <= nbytes:
                low = middle
            else:
                high = middle
        options = self.options(shape + low, bits)
        return Allocation(
            table.spec.table(
                table.sizes.widths[own].tolist(), table.sizes.bits[own].tolist(), number
            )
            for table, own, number in zip(self._tables, np.split(options, self._cuts), shares)
        )
