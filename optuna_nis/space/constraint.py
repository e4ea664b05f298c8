"""Hard limits on categorical choices, which a policy obeys by construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Choice = None | bool | int | float | str
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class Walk(Protocol):
    """Choices drawn one parameter after the other, several draws side by side."""

    def allowed(self, name: str) -> BoolArray:
        """Options of ``name`` that can still be taken, shape ``(n, number of options)``."""

    def take(self, name: str, options: IntArray) -> None:
        """Record the option taken by each draw, shape ``(n,)``."""


class Constraint(Protocol):
    """A hard limit on categorical choices, obeyed by construction.

    Parameters are visited in the order of :attr:`choices`. At least one option of every
    parameter stays allowed as long as only allowed options are taken. A walk that can leave
    options open which are given, such as those of enqueued trials, has a method
    ``reserve(given)``, which is called before all others with an option by the name of each of
    these parameters. Where given choices may mean others, a constraint has a method
    ``meant(given)``.
    """

    @property
    def choices(self) -> Mapping[str, Sequence[Choice]]:
        """The options of every parameter, in the order in which they are drawn."""

    def walk(self, n: int) -> Walk:
        """Start ``n`` draws."""

    def initial_log_weights(self) -> Mapping[str, FloatArray]:
        """Log-weights of the options from which a policy starts to learn."""

    def tilt(self, log_weights: Mapping[str, FloatArray]) -> Mapping[str, FloatArray]:
        """The nearest log-weights whose expected cost is within the limit."""

    def canonical(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Params that a policy might have drawn and that mean the same as those given."""


def check_budget(budget: object) -> None:
    """Refuse what is not a constraint.

    Raises:
        TypeError: If the budget is not a constraint.
    """
    if budget is None or all(
        hasattr(budget, member)
        for member in ("choices", "walk", "initial_log_weights", "canonical")
    ):
        return
    raise TypeError(
        "`budget` must be a `SearchSpace`, which knows the cost of every choice, or an "
        f"`AdditiveBudget`, got {budget!r}; pass a number to the space: "
        "`NISSampler(budget=SearchSpace(specs, budget=...))`."
    )


class AdditiveBudget:
    """A limit on the sum of the costs of the chosen options, for any categorical space.

    Args:
        limit: Largest total cost allowed.
        costs: For every parameter, the cost of each of its choices, in the order in which
            ``suggest_categorical`` is given them.

    Raises:
        TypeError: If the costs are no mapping of mappings.
        ValueError: If a parameter has no choice, a cost is negative or not finite, or even the
            cheapest choices exceed the limit.

    Example:
        >>> budget = AdditiveBudget(3, {"x": {"small": 1, "large": 2}, "y": {0: 0, 1: 2}})
        >>> walk = budget.walk(1)
        >>> walk.take("x", np.array([1]))
        >>> walk.allowed("y").tolist()
        [[True, False]]
    """

    def __init__(self, limit: float, costs: Mapping[str, Mapping[Choice, float]]) -> None:
        _check_mapping("costs", costs)
        if not costs:
            raise ValueError("`costs` must name at least one parameter, got an empty mapping.")
        for name, options in costs.items():
            _check_mapping(f"costs[{name!r}]", options)
            if not options:
                raise ValueError(f"`costs[{name!r}]` must hold at least one choice, got none.")
            for choice, cost in options.items():
                if not (_is_finite(cost) and cost >= 0):
                    raise ValueError(
                        f"`costs[{name!r}][{choice!r}]` must be finite and not negative, "
                        f"got {cost!r}."
                    )
        cheapest = sum(min(options.values()) for options in costs.values())
        if not (_is_finite(limit) and limit >= cheapest):
            raise ValueError(
                f"`limit` must be finite and at least {cheapest}, the cost of the cheapest "
                f"choices, got {limit!r}."
            )
        self._limit = limit
        self._choices = {name: tuple(options) for name, options in costs.items()}
        self._costs = {
            name: np.array(list(options.values()), dtype=np.float64)
            for name, options in costs.items()
        }
        # It keeps a sum of floats that equals the limit on paper on the right side of it.
        whole = limit % 1 == 0 and all((cost % 1 == 0).all() for cost in self._costs.values())
        self._tolerance = 0.0 if whole else 1e-9 * limit

    @property
    def choices(self) -> Mapping[str, Sequence[Choice]]:
        """The options of every parameter."""
        return self._choices

    def walk(self, n: int) -> Walk:
        """Start ``n`` draws under the limit."""
        return _AdditiveWalk(self._limit, self._costs, self._tolerance, n)

    def initial_log_weights(self) -> Mapping[str, FloatArray]:
        """The distribution of maximum entropy whose expected cost is within the limit."""
        return self.tilt({name: np.zeros(len(cost)) for name, cost in self._costs.items()})

    def tilt(self, log_weights: Mapping[str, FloatArray]) -> Mapping[str, FloatArray]:
        """The nearest log-weights whose expected cost is within the limit."""
        return tilt_to_budget(self._costs, self._limit, log_weights)

    def canonical(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The params themselves: every choice means something else."""
        return params


def _check_mapping(name: str, given: object) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"`{name}` must be a mapping, got {given!r}.")


def _is_finite(number: object) -> bool:
    try:
        return math.isfinite(number)  # type: ignore[arg-type]
    except TypeError:
        return False


class _AdditiveWalk:
    def __init__(
        self, limit: float, costs: Mapping[str, FloatArray], tolerance: float, n: int
    ) -> None:
        self._costs = costs
        self._tolerance = tolerance
        # What is left once every parameter still to come has taken its cheapest option.
        self._left = np.full(n, limit - sum(cost.min() for cost in costs.values()))
        self._reserved: dict[str, float] = {}

    def reserve(self, given: Mapping[str, int]) -> None:
        reserved = {name: float(self._extra(name)[option]) for name, option in given.items()}
        total = sum(reserved.values())
        if (total <= self._left + self._tolerance).all():
            self._left -= total
            self._reserved = reserved

    def allowed(self, name: str) -> BoolArray:
        left = self._left + self._reserved.get(name, 0.0)
        return np.asarray(self._extra(name)[None, :] <= left[:, None] + self._tolerance)

    def take(self, name: str, options: IntArray) -> None:
        self._left += self._reserved.pop(name, 0.0) - self._extra(name)[options]

    def _extra(self, name: str) -> FloatArray:
        """What each option costs more than the cheapest one."""
        return np.asarray(self._costs[name] - self._costs[name].min())


def tilt_to_budget(
    costs: Mapping[str, FloatArray],
    limit: float,
    log_weights: Mapping[str, FloatArray],
) -> dict[str, FloatArray]:
    """The distribution nearest to a given one whose expected cost is within a limit.

    Every option's weight is multiplied by ``exp(-mu * cost / limit)`` with the smallest
    ``mu >= 0`` whose expected total cost does not exceed the limit, which changes the distribution
    least in the sense of Kullback and Leibler.

    Args:
        costs: For every parameter, the cost of each option.
        limit: Budget on the expected sum.
        log_weights: For every parameter, the log-weights of its options.

    Returns:
        For every parameter, log-weights of the shape of its costs.
    """

    def tilted(mu: float) -> dict[str, FloatArray]:
        return {
            name: log_weights[name] - mu * (cost - cost.min()) / scale
            for name, cost in costs.items()
        }

    def too_much(mu: float) -> bool:
        total = 0.0
        for name, logits in tilted(mu).items():
            weights = np.exp(logits - logits.max())
            total += float((weights * costs[name]).sum() / weights.sum())
        return total > limit

    scale = limit if limit > 0 else 1.0
    low, high = 0.0, 1.0
    if not too_much(0.0):
        return tilted(0.0)
    while too_much(high) and high < 1e9:
        low, high = high, high * 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if too_much(middle) else (low, middle)
    return tilted(high)
