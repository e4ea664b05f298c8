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
from optuna_nis.space.sizes import Sizes
from optuna_nis.space.spec import EmbeddingSpec

# Of random tables, in octaves: the standard deviation of their widths, and by how much a row block
# is narrower than the one before it on average.
_WIDTH_SPREAD = 2.0
_MEAN_FALL = 0.7
# Of random tables: how often a row block is less precise than the one before it.
_FALL_OF_BITS = 0.25


class Table(ABC):
    """One feature of a space: its parameters, and what they cost.

    Attributes:
        spec: The feature.
        names: Names of its parameters, in the order in which they are drawn.
        options: The choices of each of them.
        log_weights: Weight of each option that grows with the width, e-fold per octave.
        sizes: The sizes of its row blocks.
    """

    names: list[str]
    options: tuple[Choice, ...]
    log_weights: FloatArray

    def __init__(self, spec: EmbeddingSpec) -> None:
        self.spec = spec
        self.rows = np.array(spec.row_blocks)
        self.sizes = Sizes(spec)

    @property
    def min_nbytes(self) -> int:
        """Bytes of the smallest choice that keeps any embedding."""
        costs, _ = self.price(0, np.array([self.start]))
        return int(costs[0, 1:].min())

    @property
    def start(self) -> int:
        """The state before anything was taken: what :meth:`price` depends on, as a number."""
        return len(self.options) - 1

    def after(self, index: int, state: IntArray, options: IntArray) -> IntArray:
        """The states after options of a parameter were taken, shape ``(n,)`` as both."""
        return self.meet(state, options)

    def choices(self, index: int) -> tuple[Choice, ...]:
        """The choices of a parameter."""
        return self.options

    def weights(self, index: int) -> FloatArray:
        """The logarithms of the weights of its choices."""
        return self.log_weights

    def allocation(self, params: Mapping[str, Any]) -> TableAllocation:
        """What a choice for each parameter stands for."""
        sizes = self.block_sizes(params)
        widths, bits = [width for width, _ in sizes], [bits for _, bits in sizes]
        return self.spec.table(widths, bits, self.num_shared(params))

    def num_shared(self, params: Mapping[str, Any]) -> int:
        """How many rows ids without one share at most."""
        return 0

    def meet(self, one: IntArray, other: IntArray) -> IntArray:
        """The largest option that is nowhere larger than either of two."""
        return np.minimum(one, other)

    def join(self, one: IntArray, other: IntArray) -> IntArray:
        """The smallest option that is nowhere smaller than either of two."""
        return np.maximum(one, other)

    def meant(self, given: Mapping[int, int]) -> dict[int, int]:
        """What options mean that are given: none is larger than one before it.

        Args:
            given: Options by the places of their parameters.
        """
        found, state = {}, np.array(self.start)
        for index in sorted(given):
            state = self.meet(state, np.array(given[index]))
            found[index] = int(state)
        return found

    def floors(self, given: Mapping[int, int]) -> list[int] | None:
        """The smallest option of each parameter that leaves options open that are given.

        Args:
            given: Options by the places of their parameters.

        Returns:
            An option for every parameter; None if those given cannot be taken together.
        """
        floors = [0]
        for index in reversed(range(len(self.names))):
            option = given.get(index, floors[-1])
            if int(self.join(np.array(floors[-1]), np.array(option))) != option:
                return None
            floors.append(option)
        return floors[:0:-1]

    def above(self, index: int, floor: int) -> BoolArray:
        """Which options of a parameter are nowhere smaller than one of them."""
        options = np.arange(len(self.options))
        return np.asarray(self.join(options, np.full_like(options, floor)) == options)

    @abstractmethod
    def costs(self, index: int) -> FloatArray:
        """About the bytes of each option of a parameter, whatever was chosen before it."""

    @abstractmethod
    def price(self, index: int, previous: IntArray) -> tuple[NDArray[Any], BoolArray]:
        """The bytes of each option of a parameter, exactly, and whether it may be taken.

        Args:
            index: Place of the parameter among :attr:`names`.
            previous: The option of the row block before it in each of ``n`` draws, as it counts;
                the largest one where there is none.

        Returns:
            Two arrays of shape ``(n or 1, options)``.
        """

    @abstractmethod
    def sharing(self, index: int) -> IntArray:
        """What each option of a parameter adds to whether any shared row is in use, 0 or 1.

        None is where every id has a row, nor where none has.
        """

    @abstractmethod
    def shared_costs(self, index: int, shared: IntArray, previous: IntArray) -> IntArray:
        """What each option changes in the bytes of rows that the ids without one share.

        Args:
            index: As in :meth:`price`.
            shared: Number of those rows in each of ``n`` draws, if there are as many ids.
            previous: As in :meth:`price`.

        Returns:
            Shape ``(n, options)``.
        """

    @abstractmethod
    def block_sizes(self, params: Mapping[str, Any]) -> Sequence[tuple[int, int]]:
        """The width of each row block and its bits, each at most that of the one before it."""

    @abstractmethod
    def params(self, sizes: Sequence[tuple[int, int]]) -> dict[str, Choice]:
        """The inverse of :meth:`block_sizes`."""

    def shared_params(self, table: TableAllocation) -> dict[str, Choice]:
        """The parameter for the number of shared rows, if there is one."""
        return {}

    @abstractmethod
    def gains(self, values: FloatArray) -> list[FloatArray]:
        """What each option of each parameter is worth.

        Args:
            values: Of every column of every row block, shape ``(row blocks, embedding_dim)``.
        """

    def _worth_of_sizes(self, values: FloatArray) -> FloatArray:
        """What each size of each row block is worth: rounding takes its share of all columns."""
        widest = np.cumsum(values, axis=1)
        worth = np.pad(widest, ((0, 0), (1, 0)))[:, self.sizes.widths]
        return np.asarray(worth * self.sizes.kept)

    def random_octaves(self, rng: np.random.Generator) -> FloatArray:
        """Random octaves of the row blocks up to a common shift, falling with the rank."""
        level = rng.normal(0.0, _WIDTH_SPREAD)
        return np.asarray(level - self._random_falls(rng), dtype=np.float64)

    def random_share(self, rng: np.random.Generator) -> int:
        """A random number of rows that ids without one share."""
        return 0

    @abstractmethod
    def _random_falls(self, rng: np.random.Generator) -> FloatArray:
        """By how many octaves each row block is narrower than the first."""

    @abstractmethod
    def random_bits(self, rng: np.random.Generator) -> IntArray:
        """Random precisions of the row blocks, as places among those that rise."""


class MultiSizeTable(Table):
    """A parameter for the size of each row block."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__(spec)
        self._ends = np.append(0, spec.row_cuts)
        cuts = pairwise([0, *spec.row_cuts])
        self.names = [f"{spec.name}[{start}:{end}]" for start, end in cuts]
        if len(self.names) == 1:
            self.names = [spec.name]
        self.options = self.sizes.names
        self.log_weights = self.sizes.log_weights

    def costs(self, index: int) -> FloatArray:
        """What the rows cost, without steps and projections."""
        return np.asarray(self.rows[index] * self.sizes.row_nbytes, dtype=np.float64)

    def price(self, index: int, previous: IntArray) -> tuple[NDArray[Any], BoolArray]:
        """With steps and projections; a block may be as large as those before it at most."""
        sizes = self.sizes
        rows = self.rows[index] * sizes.row_nbytes
        if index == 0:
            return (rows + sizes.projection + sizes.steps)[None, :], sizes.fits[previous]
        # Those before have paid for the projection and, if they are of the same size, the step.
        return rows + sizes.late_costs[previous], sizes.fits[previous]

    def sharing(self, index: int) -> IntArray:
        """From the first row block on, up to the last one."""
        is_kept = (np.arange(len(self.options)) > 0).astype(np.int64)
        return np.asarray(is_kept * ((index == 0) - (index == len(self.rows) - 1)))

    def shared_costs(self, index: int, shared: IntArray, previous: IntArray) -> IntArray:
        """As large as the rows of the last block that has any."""
        row_nbytes, left = self.sizes.row_nbytes, self.spec.num_embeddings - self._ends
        costs: IntArray = np.minimum(shared, left[index + 1])[:, None] * row_nbytes
        if index:
            costs[:, 1:] -= (np.minimum(shared, left[index]) * row_nbytes[previous])[:, None]
        return costs

    def meet(self, one: IntArray, other: IntArray) -> IntArray:
        """The option of the smaller width and the smaller precision."""
        return self.sizes.meets[one, other]

    def join(self, one: IntArray, other: IntArray) -> IntArray:
        """The option of the larger width and the larger precision."""
        return self.sizes.joins[one, other]

    def block_sizes(self, params: Mapping[str, Any]) -> Sequence[tuple[int, int]]:
        """The choices themselves."""
        return [self.sizes.of(params[name]) for name in self.names]

    def params(self, sizes: Sequence[tuple[int, int]]) -> dict[str, Choice]:
        """The sizes by the names of their blocks."""
        return dict(zip(self.names, map(self.sizes.name, sizes)))

    def gains(self, values: FloatArray) -> list[FloatArray]:
        """Of each size of each row block."""
        return list(self._worth_of_sizes(values))

    def _random_falls(self, rng: np.random.Generator) -> FloatArray:
        falls = rng.exponential(rng.exponential(_MEAN_FALL), size=len(self.rows))
        falls[0] = 0.0
        return np.cumsum(falls)

    def random_bits(self, rng: np.random.Generator) -> IntArray:
        """Of every row block, at random, falling with the rank."""
        number = len(self.spec.precisions)
        if number == 1:
            return np.zeros(len(self.rows), dtype=np.int64)
        first = rng.integers(number)
        falls = rng.random(len(self.rows)) < _FALL_OF_BITS
        falls[0] = False
        return np.maximum(first - np.cumsum(falls), 0)


class SingleSizeTable(Table):
    """One parameter for the number of rows and their size."""

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__(spec)
        self.names = [spec.name]
        sizes = self.sizes
        blocks, chosen = np.indices((len(self.rows), len(sizes.names) - 1)).reshape(2, -1) + 1
        self._blocks, self._chosen = np.append(0, blocks), np.append(0, chosen)
        self._kept = np.append(0, spec.row_cuts)[self._blocks]
        self.options = tuple(
            f"{rows}x{0 if rows == 0 else sizes.names[size]}"
            for rows, size in zip(self._kept, self._chosen)
        )
        self.log_weights = sizes.log_weights[self._chosen]

    def costs(self, index: int) -> FloatArray:
        """With steps and projections: nothing else decides about them."""
        sizes = self.sizes
        costs = self._kept * sizes.row_nbytes[self._chosen]
        costs = costs + (sizes.projection + sizes.steps)[self._chosen]
        return np.asarray(costs, dtype=np.float64)

    def price(self, index: int, previous: IntArray) -> tuple[NDArray[Any], BoolArray]:
        """Every option may be taken."""
        return self.costs(index)[None, :], np.ones((1, len(self.options)), dtype=np.bool_)

    def sharing(self, index: int) -> IntArray:
        """With all numbers of rows but none and all."""
        left = (self._kept > 0) & (self._kept < self.spec.num_embeddings)
        return np.asarray(left, dtype=np.int64)

    def shared_costs(self, index: int, shared: IntArray, previous: IntArray) -> IntArray:
        """As large as the other rows."""
        left = self.spec.num_embeddings - self._kept
        return np.asarray(np.minimum(shared[:, None], left) * self.sizes.row_nbytes[self._chosen])

    def block_sizes(self, params: Mapping[str, Any]) -> Sequence[tuple[int, int]]:
        """The same for every row block that is kept."""
        option = self.options.index(params[self.spec.name])
        return [self.sizes.pairs[self._chosen[option]]] * int(self._blocks[option])

    def params(self, sizes: Sequence[tuple[int, int]]) -> dict[str, Choice]:
        """The choice that keeps as many row blocks.

        Raises:
            ValueError: If the sizes differ.
        """
        kept = [size for size in sizes if size[0]]
        if len(set(kept)) > 1:
            several = len(self.spec.precisions) > 1
            shown = sorted({size if several else size[0] for size in kept}, reverse=True)
            raise ValueError(
                f"`allocation` of {self.spec.name!r} must have one width"
                f"{' and precision' if several else ''} in a single-size space, got {shown}."
            )
        rows = sum(self.spec.row_blocks[: len(kept)])
        return {self.spec.name: f"{rows}x{self.sizes.name(kept[0])}" if kept else "0x0"}

    def gains(self, values: FloatArray) -> list[FloatArray]:
        """Of each number of rows of each size."""
        kept = np.pad(np.cumsum(self._worth_of_sizes(values), axis=0), ((1, 0), (0, 0)))
        return [kept[self._blocks, self._chosen]]

    def _random_falls(self, rng: np.random.Generator) -> FloatArray:
        kept = rng.integers(1, len(self.rows) + 1)
        return np.where(np.arange(len(self.rows)) < kept, 0.0, np.inf)

    def random_bits(self, rng: np.random.Generator) -> IntArray:
        """The same of every row block."""
        number = len(self.spec.precisions)
        bits = 0 if number == 1 else rng.integers(number)
        return np.full(len(self.rows), bits, dtype=np.int64)
