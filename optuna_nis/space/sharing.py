"""A feature whose ids without a row may share some: one parameter more, for their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optuna_nis.space.allocation import TableAllocation
from optuna_nis.space.constraint import BoolArray, Choice, FloatArray, IntArray
from optuna_nis.space.tables import Table


def table_of(own: Table) -> Table:
    """A table with a parameter for shared rows, if its feature may have any."""
    return SharingTable(own) if len(own.spec.shares) > 1 else own


class SharingTable(Table):
    """A table with a parameter for the number of its shared rows, drawn before all others.

    With that number known, each of the others is charged for what its option changes: shared rows
    are as large as the last ones that an id has for itself, and never more than there are ids left
    to share them.

    Args:
        own: The table without shared rows.
    """

    def __init__(self, own: Table) -> None:
        super().__init__(own.spec)
        self._own = own
        self.names = [f"{own.spec.name}[shared]", *own.names]
        self.options, self.log_weights = own.options, own.log_weights
        self.shares = np.array(own.spec.shares)

    @property
    def min_nbytes(self) -> int:
        """Bytes of the smallest choice that keeps any embedding."""
        return self._own.min_nbytes

    @property
    def start(self) -> int:
        """No shared rows, and nothing before the first row block."""
        return self._own.start

    def after(self, index: int, state: IntArray, options: IntArray) -> IntArray:
        """The number of shared rows, and the state of the table without them."""
        if index == 0:
            return options * len(self.options) + state
        shared, previous = np.divmod(state, len(self.options))
        return shared * len(self.options) + self._own.after(index - 1, previous, options)

    def meant(self, given: Mapping[int, int]) -> dict[int, int]:
        """As in the table without shared rows, whose number stays."""
        own = self._own.meant({index - 1: given[index] for index in given if index})
        shared = {0: given[0]} if 0 in given else {}
        return shared | {index + 1: option for index, option in own.items()}

    def floors(self, given: Mapping[int, int]) -> list[int] | None:
        """No shared rows unless they are given."""
        own = self._own.floors({index - 1: given[index] for index in given if index})
        return None if own is None else [given.get(0, 0), *own]

    def above(self, index: int, floor: int) -> BoolArray:
        """The number of shared rows leaves all sizes open."""
        if index == 0:
            return np.ones(len(self.shares), dtype=np.bool_)
        return self._own.above(index - 1, floor)

    def choices(self, index: int) -> tuple[Choice, ...]:
        """The numbers of shared rows, then the options of the others."""
        return self._own.choices(index - 1) if index else self.spec.shares

    def weights(self, index: int) -> FloatArray:
        """The numbers of shared rows are alike."""
        return self._own.weights(index - 1) if index else np.zeros(len(self.shares))

    def costs(self, index: int) -> FloatArray:
        """About the bytes of each option; shared rows are of any size."""
        if index:
            return self._own.costs(index - 1)
        return np.asarray(self.shares * self.sizes.row_nbytes[1:].mean())

    def price(self, index: int, previous: IntArray) -> tuple[NDArray[Any], BoolArray]:
        """Shared rows cost nothing until there are others."""
        if index == 0:
            shape = (1, len(self.shares))
            return np.zeros(shape, dtype=np.int64), np.ones(shape, dtype=np.bool_)
        shared, before = np.divmod(previous, len(self.options))
        cost, allowed = self._own.price(index - 1, before)
        return cost + self._own.shared_costs(index - 1, self.shares[shared], before), allowed

    def states(self, share: int, previous: IntArray) -> IntArray:
        """The states in which one number of shared rows was taken, given as its index."""
        return share * len(self.options) + previous

    def meet(self, one: IntArray, other: IntArray) -> IntArray:
        """As in the table without shared rows."""
        return self._own.meet(one, other)

    def join(self, one: IntArray, other: IntArray) -> IntArray:
        """As in the table without shared rows."""
        return self._own.join(one, other)

    def sharing(self, index: int) -> IntArray:
        """As in the table without shared rows."""
        return self._own.sharing(index)

    def shared_costs(self, index: int, shared: IntArray, previous: IntArray) -> IntArray:
        """Those of the table without shared rows."""
        return self._own.shared_costs(index, shared, previous)

    def num_shared(self, params: Mapping[str, Any]) -> int:
        """The number of shared rows."""
        return int(params[self.names[0]])

    def block_sizes(self, params: Mapping[str, Any]) -> Sequence[tuple[int, int]]:
        """Those of the table without shared rows."""
        return self._own.block_sizes(params)

    def params(self, sizes: Sequence[tuple[int, int]]) -> dict[str, Choice]:
        """Those of the table without shared rows."""
        return self._own.params(sizes)

    def shared_params(self, table: TableAllocation) -> dict[str, Choice]:
        """The number of shared rows."""
        return {self.names[0]: self.spec.share_of(table)}

    def gains(self, values: FloatArray) -> list[FloatArray]:
        """Of the others; what shared rows are worth is not known from row blocks."""
        return [np.zeros(len(self.shares)), *self._own.gains(values)]

    def random_octaves(self, rng: np.random.Generator) -> FloatArray:
        """Those of the table without shared rows."""
        return self._own.random_octaves(rng)

    def random_bits(self, rng: np.random.Generator) -> IntArray:
        """Those of the table without shared rows."""
        return self._own.random_bits(rng)

    def random_share(self, rng: np.random.Generator) -> int:
        """Any number of shared rows."""
        return int(rng.choice(self.shares))

    def _random_falls(self, rng: np.random.Generator) -> FloatArray:
        return self._own._random_falls(rng)
