"""The reward of a choice: its quality, less what its memory costs."""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Literal


@dataclass(frozen=True)
class Reward:
    """A reward and what it is made of.

    Attributes:
        value: ``quality - penalty``.
        quality: The metric on validation data, larger is better.
        penalty: What the cost takes away, not negative.
        num_parameters: The cost, in the unit of the budget, or the numbers in all tables where
            their bytes are known.
        nbytes: The bytes of the tables, if they are known.
    """

    value: float
    quality: float
    penalty: float
    num_parameters: int
    nbytes: int | None = None


def penalised_reward(
    quality: float,
    num_parameters: int,
    budget: int,
    *,
    penalty_weight: float = 1.0,
    memory_price: float = 0.0,
    mode: Literal["soft", "absolute"] = "soft",
) -> Reward:
    """Penalise a quality by the memory above a budget.

    ``"soft"`` is the paper's reward (Joglekar et al., 2020, section 4.3),
    ``quality - penalty_weight * max(0, cost / budget - 1)``. ``"absolute"`` also penalises
    memory left unused, ``quality - penalty_weight * |cost / budget - 1|``, as in TuNAS (Bender et
    al., 2020). In both, what is used of the budget can have a price, ``memory_price * cost /
    budget``: so that of choices of the same quality the smallest is best.

    Args:
        quality: ROC-AUC, Recall@k or any other number of which more is better.
        num_parameters: Cost of the choice, in parameters, bytes or any other unit.
        budget: What is allowed, in the same unit.
        penalty_weight: The weight lambda.
        memory_price: What the whole budget costs, in units of the quality.
        mode: ``"soft"`` or ``"absolute"``.

    Raises:
        ValueError: If the quality is NaN or infinite, the cost negative, the budget not positive,
            the weight or the price negative or not finite, or the mode unknown.

    Example:
        >>> penalised_reward(0.75, num_parameters=150, budget=100, penalty_weight=0.1).value
        0.7
    """
    if not math.isfinite(quality):
        raise ValueError(
            f"`quality` must be a finite number, got {quality!r}; a diverged training or a metric "
            "without one of its classes in the data gives such a value."
        )
    if num_parameters < 0:
        raise ValueError(f"`num_parameters` must not be negative, got {num_parameters!r}.")
    if budget <= 0:
        raise ValueError(f"`budget` must be positive, got {budget!r}.")
    if not (math.isfinite(penalty_weight) and penalty_weight >= 0):
        raise ValueError(
            f"`penalty_weight` must be finite and not negative, got {penalty_weight!r}."
        )
    if not (math.isfinite(memory_price) and memory_price >= 0):
        raise ValueError(f"`memory_price` must be finite and not negative, got {memory_price!r}.")
    excess = num_parameters / budget - 1
    if mode == "soft":
        penalty = penalty_weight * max(0.0, excess)
    elif mode == "absolute":
        penalty = penalty_weight * abs(excess)
    else:
        raise ValueError(f'`mode` must be "soft" or "absolute", got {mode!r}.')
    penalty += memory_price * num_parameters / budget
    return Reward(quality - penalty, quality, penalty, num_parameters)
