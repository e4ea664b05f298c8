"""Which of several trained choices is taken, by a rule that knows how noisy a metric is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math

import numpy as np

# With a single seed nothing says how much another would have changed. Sizes that are trained alike
# err on the same examples alike, so their difference varies much less than each of them does.
_SHARE_OF_ERROR = 0.25
# Costs that are this little apart are no reason to take what is not the best.
_SAME_COST = 1.05


@dataclass(frozen=True)
class Decision:
    """What is taken.

    Attributes:
        taken: Index of the choice that is taken, the best of the cheapest of ``tied``.
        best: Index of the one with the highest mean.
        tied: Indexes of those that cannot be told apart from the best, itself included.
    """

    taken: int
    best: int
    tied: tuple[int, ...]


def decide(
    values: Sequence[Sequence[float]], costs: Sequence[int], *, error: float | None = None
) -> Decision:
    """Take the best choice, or the cheapest of those that cannot be told apart from it.

    The best has the highest mean over the seeds. Another one ties with it where the mean of their
    differences, seed by seed, is not above the standard error of that mean; with a single seed,
    where the difference is not above a quarter of the standard error of the metric. Of those that
    tie the cheapest is taken, and of those that cost up to a twentieth more the one with the
    highest mean.

    Args:
        values: The metric on validation data, larger being better: for each choice a value for
            each seed, the same seeds in the same order.
        costs: What each choice costs, such as its parameters.
        error: Standard error of the metric, for a single seed; by default nothing is known, and
            only equal values tie.

    Raises:
        ValueError: If there is no choice or no seed, they are not as many everywhere, or a value
            is not finite, or the error is negative.

    Example:
        >>> decide([[0.775, 0.777], [0.776, 0.777], [0.764, 0.765]], [1_000, 2_000, 500])
        Decision(taken=0, best=1, tied=(0, 1))
    """
    if len({len(each) for each in values}) != 1 or not values[0] or len(costs) != len(values):
        raise ValueError(
            "`values` must hold as many numbers for each choice, and as many choices as `costs`, "
            f"got {[len(each) for each in values]} for {len(costs)}."
        )
    if error is not None and error < 0:
        raise ValueError(f"`error` must be a number of 0 or more, got {error!r}.")
    each = np.asarray(values, dtype=float)
    if not np.isfinite(each).all():
        raise ValueError(f"`values` must be finite, got {each.tolist()}.")
    best = int(each.mean(axis=1).argmax())
    behind = each[best] - each
    num_seeds = each.shape[1]
    if num_seeds > 1:
        errors = behind.std(axis=1, ddof=1) / math.sqrt(num_seeds)
    else:
        errors = np.full(len(each), tie(error))
    tied = np.flatnonzero(behind.mean(axis=1) <= errors).tolist()
    most = _SAME_COST * min(costs[index] for index in tied)
    cheap = (index for index in tied if costs[index] <= most)
    taken = min(cheap, key=lambda index: (-each[index].mean(), costs[index]))
    return Decision(taken, best, tuple(tied))


def tie(error: float | None) -> float:
    """By how much a single training may be behind another one and still tie with it.

    Args:
        error: Standard error of the metric; if that is unknown, only equal values tie.
    """
    return _SHARE_OF_ERROR * error if error is not None and math.isfinite(error) else 0.0


def within_error(values: Sequence[float], error: float | None) -> list[int]:
    """Indexes of the choices that a single training cannot tell from the best.

    Args:
        values: The metric on validation data, larger being better.
        error: Standard error of the metric; if that is unknown, none can be told apart.

    Example:
        >>> within_error([0.75, 0.77, 0.765], 0.01)
        [1, 2]
        >>> within_error([0.75, 0.77, 0.765], None)
        [0, 1, 2]
    """
    least = max(values) - (math.inf if error is None else error)
    return [index for index, value in enumerate(values) if value >= least]
