"""The row blocks of all tables of a space side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optuna_nis.space.allocation import Allocation
from optuna_nis.space.constraint import FloatArray, IntArray
from optuna_nis.space.tables import Table

# The random widths of an allocation are shifted together until it costs what was asked: by at most
# so many octaves, halved so often. Several halvings are decided at once: numpy takes about as long
# for what one costs as for all that may follow it.
_LARGEST_SHIFT = 60.0
_HALVINGS = (5, 5, 4)


class Blocks:
    """The row blocks of all tables side by side, to count bytes fast and draw at random.

    Args:
        tables: The tables.
    """

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = tables
        blocks = [len(table.rows) for table in tables]
        self._ends = np.cumsum(blocks).tolist()
        sizes = [table.sizes for table in tables]
        widths = [len(own.octaves) for own in sizes]
        octaves = np.full((len(tables), max(widths)), np.inf)
        for row, own in zip(octaves, sizes):
            row[: len(own.octaves)] = own.octaves
        # Many tables have the same widths: where octaves are among them is found for all at once.
        grids, which = np.unique(octaves[:, 1:], axis=0, return_inverse=True)
        places = np.repeat(which.ravel(), blocks)
        self._grids = [(grid, np.flatnonzero(places == index)) for index, grid in enumerate(grids)]
        self._is_first = np.concatenate([np.arange(number) == 0 for number in blocks])
        self._precisions = np.repeat([len(own.spec.precisions) for own in sizes], blocks)
        options = [len(own.names) for own in sizes]
        self._starts = np.repeat(np.cumsum([0, *options[:-1]]), blocks)
        # As floats, which are as exact here and multiplied faster.
        self._rows = np.concatenate([table.rows for table in tables]).astype(np.float64)
        self._row_nbytes = np.concatenate([own.row_nbytes for own in sizes]).astype(np.float64)
        # Bytes paid once: of each option of each table as the first one, then of each option after
        # each other one, one table after the other.
        self._once = np.concatenate(
            [own.projection + own.steps for own in sizes]
            + [own.late_costs.ravel() for own in sizes]
        )
        self._numbers = np.repeat(options, blocks)
        squares = np.cumsum([sum(options), *(number**2 for number in options[:-1])])
        self._once_starts = np.where(self._is_first, self._starts, np.repeat(squares, blocks))

    def options(self, octaves: FloatArray, bits: IntArray) -> IntArray:
        """Index of the size of each row block, the octave of its width rounded down.

        Args:
            octaves: Of one or several choices, shape ``(*, row blocks)``.
            bits: Precisions of the row blocks, as places among those that rise.
        """
        levels = np.empty(octaves.shape, dtype=np.int64)
        for grid, places in self._grids:
            levels[..., places] = np.searchsorted(grid, octaves[..., places], side="right")
        return np.where(levels == 0, 0, 1 + (levels - 1) * self._precisions + bits)

    def nbytes(self, options: IntArray) -> FloatArray:
        """Bytes of all tables, for one or several choices given as by :meth:`options`."""
        before = np.zeros_like(options)
        before[..., 1:] = options[..., :-1] * ~self._is_first[1:]
        once = self._once[self._once_starts + before * self._numbers + options]
        rows = self._row_nbytes[self._starts + options] @ self._rows
        return np.asarray(rows + once.sum(-1))

    def _shared_nbytes(self, options: IntArray, shares: Sequence[int]) -> IntArray:
        """Bytes of the rows that ids without one share, by how many there are at most."""
        total = np.zeros(options.shape[:-1], dtype=np.int64)
        for table, number, end in zip(self._tables, shares, self._ends):
            if number:
                own = options[..., end - len(table.rows) : end]
                kept = np.count_nonzero(own, axis=-1)
                last = np.maximum(kept - 1, 0)
                left = table.spec.num_embeddings - np.array(table.spec.row_cuts)[last]
                size = table.sizes.row_nbytes[np.take_along_axis(own, last[..., None], -1)[..., 0]]
                total += np.where(kept > 0, np.minimum(number, left) * size, 0)
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
        low, step = -_LARGEST_SHIFT, 2 * _LARGEST_SHIFT
        for halvings in _HALVINGS:
            count = 2**halvings
            step /= count
            options = self.options(shape + (low + step * np.arange(count))[:, None], bits)
            fits = self.nbytes(options) + self._shared_nbytes(options, shares) <= nbytes
            place = 0
            for half in reversed(range(halvings)):
                place += 2**half if fits[place + 2**half] else 0
            low += step * place
        options = options[place]
        return Allocation(
            table.spec.table(
                table.sizes.widths[own].tolist(), table.sizes.bits[own].tolist(), number
            )
            for table, own, number in zip(self._tables, np.split(options, self._ends[:-1]), shares)
        )
