"""What the parameters of a space stand for and cost, feature by feature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optuna_nis.space.allocation import TableAllocation, Tier
from optuna_nis.space.constraint import BoolArray, Choice, FloatArray, IntArray
from optuna_nis.space.spec import EmbeddingSpec


class Table:
    """One feature of a space: its parameters, and what they cost."""

    def __init__(self, spec: EmbeddingSpec, mode: str) -> None:
        self.spec = spec
        self.mode = mode
        self.rows = np.array(spec.row_blocks)
        self.widths = np.array(spec.widths)
        # Where a width lies among the powers of two: 1 for a width of 1, 2 for 2, 3 for 4.
        self.octaves: FloatArray = np.log2(np.maximum(2.0 * self.widths, 1.0))
        # The widest tier pays for the projection that all share; a table of full width has none
        # until a narrower tier follows.
        self.projection = np.where(
            self.widths == spec.embedding_dim, 0, self.widths * spec.embedding_dim
        )
        self.late_projection = np.where(self.projection > 0, spec.embedding_dim**2, 0)
        if mode == "single":
            self.names = [spec.name]
            self._grid = [(0, 0)] + [(v, d) for v in spec.row_cuts for d in spec.widths[1:]]
        elif len(spec.row_blocks) == 1:
            self.names = [spec.name]
        else:
            cuts = [0, *spec.row_cuts]
            self.names = [f"{spec.name}[{a}:{b}]" for a, b in pairwise(cuts)]

    @property
    def min_parameters(self) -> int:
        """Cost of the smallest choice that keeps any embedding."""
        costs = self.costs(0)
        if self.mode == "multi":
            costs = costs + self.projection
        return int(costs[1:].min())

    def choices(self, index: int) -> tuple[Choice, ...]:
        """The options of a parameter."""
        if self.mode == "single":
            return tuple(f"{v}x{d}" for v, d in self._grid)
        return self.spec.widths

    def costs(self, index: int) -> FloatArray:
        """Cost of each option of a parameter, in mode "multi" without projections."""
        if self.mode == "multi":
            return np.asarray(self.rows[index] * self.widths, dtype=np.float64)
        full = self.spec.embedding_dim
        return np.array([v * d + (d * full if d != full else 0) for v, d in self._grid], float)

    def log_weights(self) -> FloatArray:
        """Weights of the options of each parameter that grow with the width, e-fold per octave."""
        if self.mode == "multi":
            return self.octaves
        levels = dict(zip(self.spec.widths, self.octaves.tolist()))
        return np.array([levels[d] for _, d in self._grid])

    def allocation(self, params: Mapping[str, Any]) -> TableAllocation:
        """What a choice for each parameter stands for."""
        if self.mode == "single":
            v, d = self._grid[self.choices(0).index(params[self.names[0]])]
            tiers = (Tier(v, d),) if v else ()
            return TableAllocation(
                self.spec.name, self.spec.num_embeddings, self.spec.embedding_dim, tiers
            )
        widths = accumulate((params[name] for name in self.names), min)
        return self._from_widths(list(widths))

    def allocation_of(self, levels: IntArray) -> TableAllocation:
        """The table whose row blocks have these widths, by index."""
        return self._from_widths(self.widths[levels].tolist())

    def _from_widths(self, widths: Sequence[int]) -> TableAllocation:
        tiers: list[Tier] = []
        for rows, width in zip(self.spec.row_blocks, widths):
            if width == 0:
                break
            if tiers and tiers[-1].embedding_dim == width:
                rows += tiers.pop().num_embeddings
            tiers.append(Tier(rows, width))
        return TableAllocation(
            self.spec.name, self.spec.num_embeddings, self.spec.embedding_dim, tuple(tiers)
        )

    def params(self, widths: Sequence[int]) -> dict[str, Choice]:
        """The parameters that stand for these widths of the row blocks."""
        if self.mode == "multi":
            return dict(zip(self.names, widths))
        kept = [width for width in widths if width]
        if len(set(kept)) > 1:
            raise ValueError(
                f"`allocation` of {self.spec.name!r} must have one width in a single-size space, "
                f"got {sorted(set(kept), reverse=True)}."
            )
        rows = sum(self.spec.row_blocks[: len(kept)])
        return {self.names[0]: f"{rows}x{kept[0]}" if kept else "0x0"}

    def random_levels(self, rng: np.random.Generator) -> FloatArray:
        """Octaves of the row blocks up to a common shift, falling with the rank."""
        blocks = len(self.rows)
        level = rng.normal(0.0, 2.0)
        if self.mode == "single":
            kept = rng.integers(1, blocks + 1)
            return np.where(np.arange(blocks) < kept, level, -np.inf)
        falls = rng.exponential(rng.exponential(0.7), size=blocks)
        falls[0] = 0.0
        return np.asarray(level - np.cumsum(falls), dtype=np.float64)


class Blocks:
    """The row blocks of all tables side by side, to count parameters fast."""

    def __init__(self, tables: Sequence[Table]) -> None:
        sizes = [len(table.rows) for table in tables]
        self._highest = np.repeat([len(table.widths) - 1 for table in tables], sizes)
        octaves = np.full((len(tables), max(len(table.widths) for table in tables)), np.inf)
        for row, table in zip(octaves, tables):
            row[: len(table.widths)] = table.octaves
        self._octaves = np.repeat(octaves, sizes, axis=0)[:, 1:]
        self._is_first = np.concatenate([np.arange(size) == 0 for size in sizes])
        self._starts = np.repeat(
            np.cumsum([0, *(len(table.widths) for table in tables[:-1])]), sizes
        )
        self._rows = np.concatenate([table.rows for table in tables])
        self._widths = np.concatenate([table.widths for table in tables])
        self._projections = np.concatenate([table.projection for table in tables])
        self._late_projections = np.concatenate([table.late_projection for table in tables])

    def levels(self, octaves: FloatArray) -> IntArray:
        """Index of the width of each row block, its octave rounded down."""
        return np.asarray((self._octaves <= octaves[:, None]).sum(1), dtype=np.int64)

    def num_parameters(self, octaves: FloatArray) -> int:
        """Parameters of all tables, their widths given as in :meth:`levels`."""
        levels = self.levels(octaves)
        options = levels + self._starts
        embeddings = self._rows @ self._widths[options]
        after_full = ~self._is_first
        after_full[1:] &= levels[:-1] == self._highest[:-1]
        projections = self._is_first @ self._projections[options]
        return int(embeddings + projections + after_full @ self._late_projections[options])


class SpaceWalk:
    """Draws within a budget: widths that fall with the rank, projections paid per table."""

    def __init__(self, tables: Sequence[Table], budget: int, n: int) -> None:
        self._left = np.full(n, budget, dtype=np.int64)
        self._where = {
            name: (table, index) for table in tables for index, name in enumerate(table.names)
        }
        self._previous = {
            table.spec.name: np.full(n, len(table.widths) - 1)
            for table in tables
            if table.mode == "multi"
        }

    def _price(self, name: str) -> tuple[NDArray[Any], BoolArray | None]:
        table, index = self._where[name]
        if table.mode == "single":
            return table.costs(index)[None, :], None
        previous = self._previous[table.spec.name]
        options = np.arange(len(table.widths))
        if index == 0:
            projection = table.projection[None, :]
        else:
            after_full = previous == len(table.widths) - 1
            projection = after_full[:, None] * table.late_projection
        cost = table.rows[index] * table.widths + projection
        return cost, options[None, :] <= previous[:, None]

    def allowed(self, name: str) -> BoolArray:
        """Options that can still be taken."""
        cost, falling = self._price(name)
        fits = cost <= self._left[:, None]
        return np.asarray(fits if falling is None else fits & falling)

    def take(self, name: str, options: IntArray) -> None:
        """Record the options taken, and pay for them."""
        cost, falling = self._price(name)
        n = len(self._left)
        paid = np.broadcast_to(cost, (n, cost.shape[1]))[np.arange(n), options]
        self._left -= paid.astype(np.int64)
        if falling is not None:
            table, _ = self._where[name]
            self._previous[table.spec.name] = np.minimum(self._previous[table.spec.name], options)
