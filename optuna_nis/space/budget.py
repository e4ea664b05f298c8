"""Memory budgets: what a user may write, and hard limits that a policy obeys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Choice = None | bool | int | float | str
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]

_BYTES_PER_ELEMENT = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int8": 1,
}
_UNITS = {
    "": 1,
    "K": 10**3,
    "M": 10**6,
    "G": 10**9,
    "T": 10**12,
    "KI": 2**10,
    "MI": 2**20,
    "GI": 2**30,
    "TI": 2**40,
}


def bytes_per_element(dtype: str) -> int:
    """Size of one embedding parameter in bytes.

    Args:
        dtype: ``"float64"``, ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int8"``; the
            ``torch.`` prefix of ``str(torch.float32)`` is accepted.

    Raises:
        ValueError: If the type is not one of these.

    Example:
        >>> bytes_per_element("float16")
        2
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _BYTES_PER_ELEMENT:
        known = ", ".join(sorted(_BYTES_PER_ELEMENT))
        raise ValueError(f"`dtype` must be one of {known}, got {dtype!r}.")
    return _BYTES_PER_ELEMENT[name]


def parse_budget(budget: int | float | str, full: int, dtype: str = "float32") -> int:
    """Turn a budget as people write it into a number of parameters.

    Args:
        budget: An :obj:`int` is a number of parameters, a :obj:`float` in (0, 1] a fraction of
            the full tables, a :obj:`str` either a percentage (``"20%"``) or bytes
            (``"64MB"``, ``"1.5GiB"``).
        full: Number of parameters of the full tables.
        dtype: Type of one parameter, for budgets in bytes.

    Returns:
        The number of embedding parameters allowed.

    Raises:
        TypeError: If the budget is none of these types.
        ValueError: If it is not positive, not finite, cannot be read, or is larger than the
            full tables.

    Example:
        >>> parse_budget("25%", full=1_000)
        250
        >>> parse_budget("1kB", full=1_000, dtype="float32")
        250
    """
    if isinstance(budget, bool) or not isinstance(budget, (int, float, str)):
        raise TypeError(
            "`budget` must be a number of parameters (int), a fraction of the full tables "
            f'(float), or a string such as "64MB" or "20%", got {budget!r}.'
        )
    if isinstance(budget, str):
        parameters = _parse_text(budget, full, dtype)
    elif isinstance(budget, float):
        if not 0.0 < budget <= 1.0:
            raise ValueError(
                f"`budget` as a float is a fraction of the full tables in (0, 1], got {budget!r}; "
                "give an int for a number of parameters."
            )
        parameters = math.floor(budget * full)
    else:
        parameters = budget
    if parameters <= 0:
        raise ValueError(
            f"`budget` must be positive, got {budget!r}, which is {parameters} parameters."
        )
    if parameters > full:
        raise ValueError(
            f"`budget` must be at most the full tables ({full:,} parameters), got {budget!r}, "
            f"which is {parameters:,} parameters."
        )
    return parameters


def _parse_text(budget: str, full: int, dtype: str) -> int:
    text = budget.strip().upper()
    match = re.fullmatch(r"([-+]?\d+(?:\.\d*)?|\.\d+)\s*(%|(?:[KMGT]I?)?B)?", text)
    if match is None:
        raise ValueError(
            '`budget` as a string must be bytes such as "64MB" or "1.5GiB", a percentage such as '
            f'"20%", or a number of parameters, got {budget!r}.'
        )
    number, unit = float(match[1]), match[2]
    if unit is None:
        return int(number) if number.is_integer() else parse_budget(number, full, dtype)
    if unit == "%":
        parameters = number / 100 * full
    else:
        parameters = number * _UNITS[unit.removesuffix("B")] / bytes_per_element(dtype)
    if not math.isfinite(parameters):
        raise ValueError(
            f"`budget` must be at most the full tables ({full:,} parameters), got a number of "
            f"{len(text)} digits."
        )
    return math.floor(parameters)


class Walk(Protocol):
    """Choices drawn one parameter after the other, several draws side by side."""

    def allowed(self, name: str) -> BoolArray:
        """Options of ``name`` that can still be taken, shape ``(n, number of options)``."""

    def take(self, name: str, options: IntArray) -> None:
        """Record the option taken by each draw, shape ``(n,)``."""


class Constraint(Protocol):
    """A hard limit on categorical choices, obeyed by construction.

    Parameters are visited in the order of :attr:`choices`. At least one option of every
    parameter stays allowed as long as only allowed options are taken.
    """

    @property
    def choices(self) -> Mapping[str, Sequence[Choice]]:
        """The options of every parameter, in the order in which they are drawn."""

    def walk(self, n: int) -> Walk:
        """Start ``n`` draws."""

    def initial_log_weights(self) -> Mapping[str, NDArray[np.float64]]:
        """Log-weights of the options from which a policy starts to learn."""

    def tilt(
        self, log_weights: Mapping[str, NDArray[np.float64]]
    ) -> Mapping[str, NDArray[np.float64]]:
        """The nearest log-weights whose expected cost is within the limit."""

    def canonical(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """Params that a policy might have drawn and that mean the same as those given."""


class AdditiveBudget:
    """A limit on the sum of the costs of the chosen options, for any categorical space.

    Args:
        limit: Largest total cost allowed.
        costs: For every parameter, the cost of each of its choices.

    Raises:
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
        if not costs:
            raise ValueError("`costs` must name at least one parameter, got an empty mapping.")
        for name, options in costs.items():
            if not options:
                raise ValueError(f"`costs[{name!r}]` must hold at least one choice, got none.")
            for choice, cost in options.items():
                if not (math.isfinite(cost) and cost >= 0):
                    raise ValueError(
                        f"`costs[{name!r}][{choice!r}]` must be finite and not negative, "
                        f"got {cost!r}."
                    )
        cheapest = sum(min(options.values()) for options in costs.values())
        if not (math.isfinite(limit) and limit >= cheapest):
            raise ValueError(
                f"`limit` must be at least {cheapest}, the cost of the cheapest choices, "
                f"got {limit!r}."
            )
        self._limit = limit
        self._choices = {name: tuple(options) for name, options in costs.items()}
        self._costs = {
            name: np.array(list(options.values()), dtype=np.float64)
            for name, options in costs.items()
        }

    @property
    def choices(self) -> Mapping[str, Sequence[Choice]]:
        """The options of every parameter."""
        return self._choices

    def walk(self, n: int) -> Walk:
        """Start ``n`` draws under the limit."""
        return _AdditiveWalk(self._limit, self._costs, n)

    def initial_log_weights(self) -> Mapping[str, NDArray[np.float64]]:
        """The distribution of maximum entropy whose expected cost is within the limit."""
        return self.tilt({name: np.zeros(len(cost)) for name, cost in self._costs.items()})

    def tilt(
        self, log_weights: Mapping[str, NDArray[np.float64]]
    ) -> Mapping[str, NDArray[np.float64]]:
        """The nearest log-weights whose expected cost is within the limit."""
        return tilt_to_budget(self._costs, self._limit, log_weights)

    def canonical(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The params themselves: every choice means something else."""
        return params


class _AdditiveWalk:
    def __init__(self, limit: float, costs: Mapping[str, NDArray[np.float64]], n: int) -> None:
        self._costs = costs
        # What is left once every parameter still to come has taken its cheapest option. The
        # tolerance keeps a sum of floats that equals the limit on paper on the right side of it.
        self._left = np.full(n, limit - sum(cost.min() for cost in costs.values()))
        self._tolerance = 1e-9 * max(1.0, abs(limit))

    def allowed(self, name: str) -> BoolArray:
        extra = self._costs[name] - self._costs[name].min()
        return np.asarray(extra[None, :] <= self._left[:, None] + self._tolerance)

    def take(self, name: str, options: IntArray) -> None:
        self._left -= self._costs[name][options] - self._costs[name].min()


def tilt_to_budget(
    costs: Mapping[str, NDArray[np.float64]],
    limit: float,
    log_weights: Mapping[str, NDArray[np.float64]],
) -> dict[str, NDArray[np.float64]]:
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

    def tilted(mu: float) -> dict[str, NDArray[np.float64]]:
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
