"""Draws from a space, which stay within its budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optuna_nis.space.constraint import BoolArray, IntArray
from optuna_nis.space.tables import Table


class SpaceWalk:
    """Draws within a budget: sizes that fall with the rank, projections paid per table.

    Args:
        tables: The features.
        nbytes: The budget.
        n: Number of draws.
    """

    def __init__(self, tables: Sequence[Table], nbytes: int, n: int) -> None:
        self._tables = tables
        self._left = np.full(n, nbytes, dtype=np.int64)
        self._where = {
            name: (table, index) for table in tables for index, name in enumerate(table.names)
        }
        self._previous = {table.spec.name: np.full(n, table.start) for table in tables}
        # Of the features with options to come that are given: the smallest options that leave
        # these open, and what they cost in each draw.
        self._floors: dict[str, list[int]] = {}
        self._reserved: dict[str, IntArray] = {}

    def reserve(self, given: Mapping[str, int]) -> None:
        """Leave options open that are given, if all of them can be taken within the budget.

        Args:
            given: An option by the name of its parameter. None has been taken yet.
        """
        floors, reserved = {}, {}
        for table in self._tables:
            places = {i: given[name] for i, name in enumerate(table.names) if name in given}
            if not places:
                continue
            feature, own = table.spec.name, table.floors(places)
            if own is None:
                return
            floors[feature] = own
            reserved[feature] = _least(table, own, 0, self._previous[feature])
        if (sum(reserved.values(), np.zeros_like(self._left)) <= self._left).all():
            self._floors, self._reserved = floors, reserved

    def allowed(self, name: str) -> BoolArray:
        """Options that can still be taken."""
        table, index = self._where[name]
        cost, falling = self._price(name)
        feature = table.spec.name
        left = self._left
        for other, nbytes in self._reserved.items():
            if other != feature:
                left = left - nbytes
        if floors := self._floors.get(feature):
            before = self._previous[feature]
            options = np.arange(cost.shape[1])
            states = table.after(index, before.repeat(len(options)), np.tile(options, len(before)))
            cost = cost + _least(table, floors, index + 1, states).reshape(len(before), -1)
            falling = falling & table.above(index, floors[index])
        return np.asarray((cost <= left[:, None]) & falling)

    def take(self, name: str, options: IntArray) -> None:
        """Record the options taken, and pay for them."""
        cost, _ = self._price(name)
        n = len(self._left)
        paid = np.broadcast_to(cost, (n, cost.shape[1]))[np.arange(n), options]
        self._left -= paid.astype(np.int64)
        table, index = self._where[name]
        feature = table.spec.name
        self._previous[feature] = table.after(index, self._previous[feature], options)
        if floors := self._floors.get(feature):
            self._reserved[feature] = _least(table, floors, index + 1, self._previous[feature])

    def _price(self, name: str) -> tuple[NDArray[Any], BoolArray]:
        table, index = self._where[name]
        return table.price(index, self._previous[table.spec.name])


def _least(table: Table, floors: Sequence[int], start: int, states: IntArray) -> IntArray:
    """The bytes of the smallest options of the parameters from one on.

    Args:
        table: The feature.
        floors: The options.
        start: Place of the first parameter.
        states: What was taken before it, shape ``(n,)``.

    Returns:
        Shape ``(n,)``.
    """
    total = np.zeros(len(states), dtype=np.int64)
    for index in range(start, len(floors)):
        option = floors[index]
        cost, _ = table.price(index, states)
        total += cost[:, option].astype(np.int64)
        states = table.after(index, states, np.full_like(states, option))
    return total
