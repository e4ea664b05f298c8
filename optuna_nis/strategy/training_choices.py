"""Which choices a supernet is trained under."""

from __future__ import annotations

from collections.abc import Callable
import math

import numpy as np

from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy.plan import SearchPlan


def training_choices(
    space: SearchSpace,
    plan: SearchPlan,
    rng: np.random.Generator,
    *,
    count: int,
    num_examples: int | None,
    full: bool,
    draw: Callable[[int], list[Allocation]] | None = None,
) -> list[Allocation]:
    """The full tables and some choices for a batch; if there is room for one only, in turns.

    Args:
        space: The space of the choices.
        plan: The numbers that shape the search.
        rng: Source of the random choices.
        count: Choices that the batch is shared among, if its examples can be told apart.
        num_examples: Examples of the batch, None if they cannot be told apart.
        full: Whether it is the turn of the full tables, where there is room for one choice only.
        draw: Draws choices from the controller; None in the warm-up.
    """
    if count == 1 or num_examples is None:
        if full:
            return [space.full()]
        if draw is not None and rng.random() < plan.drawn_share:
            return draw(1)
        return [_random_choice(space, plan, rng)]
    choices = [space.full()]
    if draw is not None:
        choices += draw((count - 1) // 2)
    choices += [_random_choice(space, plan, rng) for _ in range(count - len(choices))]
    while num_examples % len(choices):
        choices.pop()
    return choices


def _random_choice(space: SearchSpace, plan: SearchPlan, rng: np.random.Generator) -> Allocation:
    """Most choices cost about the budget, the others anything below it."""
    if rng.random() < plan.near_budget:
        return space.sample(rng, rng.uniform(*plan.near_costs) * space.budget)
    low = min(space.min_parameters * 4, space.budget)
    cost = math.exp(rng.uniform(math.log(low), math.log(space.budget)))
    return space.sample(rng, cost, removal=plan.removal)
