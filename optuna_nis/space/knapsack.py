"""The choice that is worth most under a budget, where blocks are worth what they are alone.

A knapsack problem: choices have a value and a cost, both sums over the parameters of the space, of
which a cost may depend on what was taken before in the same table. With a price on memory
(a Lagrange multiplier) every table is solved on its own, by a dynamic programme over its
parameters; the price is the lowest at which all of them together keep to the budget (Everett,
1963, "Generalized Lagrange Multiplier Method"). That is exact where the budget is spent to the
last number; what is left of it otherwise goes to the changes that are worth most for their cost.
"""

from __future__ import annotations

from collections.abc import Sequence
import math

import numpy as np
from numpy.typing import NDArray

from optuna_nis.space.constraint import FloatArray, IntArray
from optuna_nis.space.sharing import SharingTable
from optuna_nis.space.tables import Table

# Prices that are tried at once, and how often the range between two of them is cut anew.
_PRICES = 16
_ROUNDS = 6
# The lowest price that is tried first, as a share of the highest.
_LEAST_PRICE = 1e-9
# Bytes of a choice that is not allowed.
_TOO_MUCH = 2**56


def best_options(
    tables: Sequence[Table], gains: Sequence[Sequence[FloatArray]], nbytes: int
) -> list[IntArray]:
    """The options of every table that are worth most within a budget.

    Args:
        tables: The tables.
        gains: For every table what each option of each of its parameters is worth.
        nbytes: Bytes allowed.

    Returns:
        For every table the index of the option of each of its parameters. What is worth nothing is
        left out.
    """
    problems = [_problem(table, own) for table, own in zip(tables, gains)]
    # No option is worth a higher price: nothing is left.
    high = max(problem.highest_price() for problem in problems)
    found = [problem.solve(np.zeros(1))[0] for problem in problems]
    if _cost(problems, found) <= nbytes:
        return found
    low = high * _LEAST_PRICE
    for _ in range(_ROUNDS):
        prices = np.geomspace(low, high, _PRICES)
        solved = [problem.solve(prices) for problem in problems]
        costs = sum(problem.costs(own) for problem, own in zip(problems, solved))
        fits = np.asarray(costs) <= nbytes
        # Costs fall with the price, and the highest one always fits.
        first = int(fits.argmax())
        found = [own[first] for own in solved]
        low, high = prices[max(first - 1, 0)], prices[first]
    return _filled(problems, found, nbytes)


class _Problem:
    """One table: its options, what they are worth and what they cost.

    Args:
        table: The table.
        gains: What each option of each of its parameters is worth.
        share: Of a table with shared rows, the number of them that is taken, as its index; the
            parameters are the others then.
    """

    def __init__(
        self, table: Table, gains: Sequence[FloatArray], share: int | None = None
    ) -> None:
        self._table, self._gains = table, gains
        # What each option costs, by the smallest one before it; the last one stands for none.
        every = np.arange(len(table.options))
        first = 0
        if share is not None:
            assert isinstance(table, SharingTable)
            every, first = table.states(share, every), 1
        prices = [table.price(first + index, every) for index in range(len(gains))]
        shape = (len(every), len(every))
        self._costs = [np.broadcast_to(cost, shape) for cost, _ in prices]
        self._allowed = [np.broadcast_to(allowed, shape) for _, allowed in prices]
        self._open_gains = [
            np.where(own, each, -np.inf) for own, each in zip(self._allowed, gains)
        ]

    def highest_price(self) -> float:
        """A price on memory at which nothing is worth taking."""
        total = sum(max(float(gains.max()), 0.0) for gains in self._gains)
        return 2.0 * total / self._table.min_nbytes

    def solve(self, prices: FloatArray) -> IntArray:
        """The best options at each of some prices, shape ``(prices, parameters)``."""
        number = len(prices)
        last = len(self._table.options) - 1
        best = np.full((number, last + 1), -np.inf)
        best[:, last] = 0.0
        steps: list[IntArray] = []
        for gains, cost in zip(self._open_gains, self._costs):
            # In place: with several precisions there are many pairs of options.
            total = prices[:, None, None] * cost
            np.subtract(best[:, :, None], total, out=total)
            total += gains
            steps.append(total.argmax(1))
            best = np.take_along_axis(total, steps[-1][:, None], 1)[:, 0]
        # Of equals the first, which is the smallest.
        option = best.argmax(1)
        options = []
        for step in reversed(steps):
            options.append(option)
            option = step[np.arange(number), option]
        return np.stack(options[::-1], 1)

    def costs(self, options: IntArray) -> NDArray[np.int64]:
        """What some choices cost, given in shape ``(n, parameters)``; too much if not allowed."""
        previous = np.full(len(options), len(self._table.options) - 1)
        total = np.zeros(len(options), dtype=np.int64)
        for own, cost, allowed in zip(options.T, self._costs, self._allowed):
            paid = np.where(allowed[previous, own], cost[previous, own], _TOO_MUCH)
            total += paid.astype(np.int64)
            previous = own
        return total

    def values(self, options: IntArray) -> FloatArray:
        """What some choices are worth."""
        return np.asarray(sum(gains[own] for gains, own in zip(self._gains, options.T)))

    def changes(self, options: IntArray) -> IntArray:
        """Choices in which one parameter has another option, those before it no smaller one."""
        number, every = len(options), np.arange(len(self._table.options))
        changed = np.broadcast_to(options, (number, len(every), number)).copy()
        for index in range(number):
            changed[index, :, :index] = self._table.join(options[:index], every[:, None])
            changed[index, :, index] = every
        return changed.reshape(-1, number)


class _SharingProblem:
    """A table whose ids without a row may share some: a problem for each number of those rows."""

    def __init__(self, table: SharingTable, gains: Sequence[FloatArray]) -> None:
        of_shares, *others = gains
        shares = [table.sharing(index) for index in range(len(others))]
        self._each = [
            _Problem(table, [own + worth * share for own, share in zip(others, shares)], number)
            for number, worth in enumerate(of_shares)
        ]

    def highest_price(self) -> float:
        """A price on memory at which nothing is worth taking."""
        return max(problem.highest_price() for problem in self._each)

    def solve(self, prices: FloatArray) -> IntArray:
        """The best options at each of some prices, shape ``(prices, parameters)``."""
        found = [
            np.pad(problem.solve(prices), ((0, 0), (1, 0)), constant_values=share)
            for share, problem in enumerate(self._each)
        ]
        worth = [self.values(own) - prices * self.costs(own) for own in found]
        best = np.argmax(worth, axis=0)
        return np.asarray(np.stack(found)[best, np.arange(len(prices))])

    def costs(self, options: IntArray) -> NDArray[np.int64]:
        """What some choices cost, given in shape ``(n, parameters)``; too much if not allowed."""
        every = np.stack([problem.costs(options[:, 1:]) for problem in self._each])
        return np.asarray(every[options[:, 0], np.arange(len(options))])

    def values(self, options: IntArray) -> FloatArray:
        """What some choices are worth."""
        every = np.stack([problem.values(options[:, 1:]) for problem in self._each])
        return np.asarray(every[options[:, 0], np.arange(len(options))])

    def changes(self, options: IntArray) -> IntArray:
        """Choices in which one parameter has another option."""
        share, others = options[0], options[1:]
        own = np.pad(self._each[share].changes(others), ((0, 0), (1, 0)), constant_values=share)
        shares = np.arange(len(self._each))[:, None]
        return np.concatenate([np.insert(shares, [1], others, axis=1), own])


_AnyProblem = _Problem | _SharingProblem


def _problem(table: Table, gains: Sequence[FloatArray]) -> _AnyProblem:
    if isinstance(table, SharingTable):
        return _SharingProblem(table, gains)
    return _Problem(table, gains)


def _cost(problems: Sequence[_AnyProblem], options: Sequence[IntArray]) -> int:
    return sum(int(p.costs(own[None])[0]) for p, own in zip(problems, options))


def _filled(
    problems: Sequence[_AnyProblem], options: Sequence[IntArray], nbytes: int
) -> list[IntArray]:
    """Spend what is left of a budget on the changes that are worth most for their cost."""
    found = list(options)
    left = nbytes - _cost(problems, found)
    changes = [_Changes(problem, own) for problem, own in zip(problems, found)]
    while True:
        ratios = [each.best_ratio(left) for each in changes]
        index = int(np.argmax(ratios))
        if ratios[index] <= 0:
            return found
        found[index], paid = changes[index].best(left)
        left -= paid
        changes[index] = _Changes(problems[index], found[index])


class _Changes:
    """The changes of a table that are worth more than what it has."""

    def __init__(self, problem: _AnyProblem, options: IntArray) -> None:
        changed = problem.changes(options)
        both = np.concatenate([options[None], changed])
        costs, values = problem.costs(both), problem.values(both)
        gains, extra = values[1:] - values[0], costs[1:] - costs[0]
        # Rounding is no gain.
        better = gains > 1e-12 * max(1e-300, float(np.abs(values).max()))
        self._options, self._gains, self._extra = changed[better], gains[better], extra[better]

    def _ratios(self, left: int) -> FloatArray:
        ratios = np.where(self._extra > 0, self._gains / np.maximum(self._extra, 1), np.inf)
        return np.where(self._extra <= left, ratios, -np.inf)

    def best_ratio(self, left: int) -> float:
        """Worth by cost of the best change that costs no more than what is left."""
        return float(self._ratios(left).max(initial=-math.inf))

    def best(self, left: int) -> tuple[IntArray, int]:
        """The best change, and what it costs."""
        index = int(self._ratios(left).argmax())
        return self._options[index], int(self._extra[index])
