"""What the parameters of a space stand for and cost, feature by feature."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optuna_nis.space.allocation import TableAllocation
from optuna_nis.space.constraint import BoolArray, Choice, FloatArray, IntArray
from optuna_nis.space.spec import EmbeddingSpec

# Of random tables, in octaves: the standard deviation of their widths, and by how much a row block
# is narrower than the one before it on average.
_WIDTH_SPREAD = 2.0
_MEAN_FALL = 0.7


class Table(ABC):
    """One feature of a space: its parameters, and what they cost.

    Attributes:
        spec: The feature.
        names: Names of its parameters, in the order in which they are drawn.
        options: The choices of each of them.
        log_weights: Weight of each option that grows with the width, e-fold per octave.
    """

    names: list[str]
    options: tuple[Choice, ...]
    log_weights: FloatArray

    def __init__(self, spec: EmbeddingSpec) -> None:
        self.spec = spec
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

    @property
    def min_parameters(self) -> int:
        """Cost of the smallest choice that keeps any embedding."""
        costs, _ = self.price(0, np.array([len(self.options) - 1]))
        return int(costs[0, 1:].min())

    def allocation(self, params: Mapping[str, Any]) -> TableAllocation:
        """What a choice for each parameter stands for."""
        return self.spec.table(self.block_widths(params))

    @abstractmethod
    def costs(self, index: int) -> FloatArray:
        """About what each option of a parameter costs, whatever was chosen before it."""

    @abstractmethod
    def price(self, index: int, previous: IntArray) -> tuple[NDArray[Any], BoolArray]:
        """What each option of a parameter costs to the number, and whether it may be taken.

        Args:
            index: Place of the parameter among :attr:`names`.
            previous: The smallest option taken for an earlier one in each of ``n`` draws.

        Returns:
            Two arrays of shape ``(n or 1, options)``.
        """

    @abstractmethod
    def block_widths(self, params: Mapping[str, Any]) -> Sequence[int]:
        """The width of each row block, at most that of the one before it."""

    @abstractmethod
    def params(self, widths: Sequence[int]) -> dict[str, Choice]:
        """The inverse of :meth:`block_widths`."""

    @abstractmethod
    def gains(self, values: FloatArray) -> list[FloatArray]:
        """What each option of each parameter is worth.

        Args:
            values: Of every column of every row block, shape ``(row blocks, embedding_dim)``.
        """

    def _worth_of_widths(self, values: FloatArray) -> FloatArray:
        """What each width of each row block is worth."""
        widest = np.cumsum(values, axis=1)
        return np.pad(widest, ((0, 0), (1, 0)))[:, self.widths]

    def random_octaves(self, rng: np.random.Generator) -> FloatArray:
        """Random octaves of the row blocks up to a common shift, falling with the rank."""
        level = rng.normal(0.0, _WIDTH_SPREAD)
        return np.asarray(level - self._random_falls(rng), dtype=np.float64)

    @abstractmethod
    def _random_falls(self, rng: np.random.Generator) -> FloatArray:
        """By how many octaves each row block is narrower than the first."""


class MultiSizeTable(Table):
    """A parameter for the width of each row block."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__(spec)
        cuts = pairwise([0, *spec.row_cuts])
        self.names = [f"{spec.name}[{start}:{end}]" for start, end in cuts]
        if len(self.names) == 1:
            self.names = [spec.name]
        self.options = spec.widths
        self.log_weights = self.octaves

    def costs(self, index: int) -> FloatArray:
        """What the rows cost, without projections."""
        return np.asarray(self.rows[index] * self.widths, dtype=np.float64)

    def price(self, index: int, previous: IntArray) -> tuple[NDArray[Any], BoolArray]:
        """With projections; a block may be as wide as those before it at most."""
        if index == 0:
            projection = self.projection[None, :]
        else:
            after_full = previous == len(self.widths) - 1
            projection = after_full[:, None] * self.late_projection
        falling = np.arange(len(self.widths)) <= previous[:, None]
        return self.rows[index] * self.widths + projection, falling

    def block_widths(self, params: Mapping[str, Any]) -> Sequence[int]:
        """The choices themselves."""
        return [params[name] for name in self.names]

    def params(self, widths: Sequence[int]) -> dict[str, Choice]:
        """The widths by the names of their blocks."""
        return dict(zip(self.names, widths))

    def gains(self, values: FloatArray) -> list[FloatArray]:
        """Of each width of each row block."""
        return list(self._worth_of_widths(values))

    def _random_falls(self, rng: np.random.Generator) -> FloatArray:
        falls = rng.exponential(rng.exponential(_MEAN_FALL), size=len(self.rows))
        falls[0] = 0.0
        return np.cumsum(falls)


class SingleSizeTable(Table):
    """One parameter for the number of rows and their width."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__(spec)
        self.names = [spec.name]
        blocks, levels = np.indices((len(self.rows), len(self.widths) - 1)).reshape(2, -1) + 1
        self._blocks, self._levels = np.append(0, blocks), np.append(0, levels)
        self._kept = np.append(0, spec.row_cuts)[self._blocks]
        self._widths = self.widths[self._levels]
        self.options = tuple(f"{rows}x{width}" for rows, width in zip(self._kept, self._widths))
        self.log_weights = self.octaves[self._levels]

    def costs(self, index: int) -> FloatArray:
        """With projections: nothing else decides about them."""
        costs = self._kept * self._widths + self.projection[self._levels]
        return np.asarray(costs, dtype=np.float64)

    def price(self, index: int, previous: IntArray) -> tuple[NDArray[Any], BoolArray]:
        """Every option may be taken."""
        return self.costs(index)[None, :], np.ones((1, len(self.options)), dtype=np.bool_)

    def block_widths(self, params: Mapping[str, Any]) -> Sequence[int]:
        """The same for every row block that is kept."""
        option = self.options.index(params[self.spec.name])
        return [int(self._widths[option])] * int(self._blocks[option])

    def params(self, widths: Sequence[int]) -> dict[str, Choice]:
        """The choice that keeps as many row blocks.

        Raises:
            ValueError: If the widths differ.
        """
        kept = [width for width in widths if width]
        if len(set(kept)) > 1:
            raise ValueError(
                f"`allocation` of {self.spec.name!r} must have one width in a single-size space, "
                f"got {sorted(set(kept), reverse=True)}."
            )
        rows = sum(self.spec.row_blocks[: len(kept)])
        return {self.spec.name: f"{rows}x{kept[0]}" if kept else "0x0"}

    def gains(self, values: FloatArray) -> list[FloatArray]:
        """Of each number of rows with each width."""
        kept = np.pad(np.cumsum(self._worth_of_widths(values), axis=0), ((1, 0), (0, 0)))
        return [kept[self._blocks, self._levels]]

    def _random_falls(self, rng: np.random.Generator) -> FloatArray:
        kept = rng.integers(1, len(self.rows) + 1)
        return np.where(np.arange(len(self.rows)) < kept, 0.0, np.inf)


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
        self._previous = {table.spec.name: np.full(n, len(table.options) - 1) for table in tables}

    def _price(self, name: str) -> tuple[NDArray[Any], BoolArray]:
        table, index = self._where[name]
        return table.price(index, self._previous[table.spec.name])

    def allowed(self, name: str) -> BoolArray:
        """Options that can still be taken."""
        cost, falling = self._price(name)
        return np.asarray((cost <= self._left[:, None]) & falling)

    def take(self, name: str, options: IntArray) -> None:
        """Record the options taken, and pay for them."""
        cost, _ = self._price(name)
        n = len(self._left)
        paid = np.broadcast_to(cost, (n, cost.shape[1]))[np.arange(n), options]
        self._left -= paid.astype(np.int64)
        feature = self._where[name][0].spec.name
        self._previous[feature] = np.minimum(self._previous[feature], options)
