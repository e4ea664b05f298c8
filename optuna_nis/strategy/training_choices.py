"""Which choices a supernet is trained under."""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

import numpy as np

from optuna_nis.lightning._batch import batch_length
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace

# Share of the random choices that come from the controller, where each step has room for one.
_DRAWN_SHARE = 1 / 3
# Share of the random choices that cost about the budget. Where the weights are trained, they rank
# best.
_NEAR_BUDGET = 0.8


def training_choices(
    space: SearchSpace,
    batch: Any,
    batch_idx: int,
    rng: np.random.Generator,
    *,
    count: int,
    draw: Callable[[int], list[Allocation]] | None = None,
) -> list[Allocation]:
    """The full tables and some choices for a batch; if there is room for one only, in turns.

    Args:
        space: The space of the choices.
        batch: The training batch.
        batch_idx: Its index in the epoch.
        rng: Source of the random choices.
        count: Choices that the batch is shared among, if its examples can be told apart.
        draw: Draws choices from the controller; None in the warm-up.
    """
    length = 0
    if count > 1:
        try:
            length = batch_length(batch)
        except ValueError:
            count = 1
    if count == 1:
        if batch_idx % 2 == 0:
            return [space.full()]
        if draw is not None and rng.random() < _DRAWN_SHARE:
            return draw(1)
        return [_random_choice(space, rng)]
    choices = [space.full()]
    if draw is not None:
        choices += draw((count - 1) // 2)
    choices += [_random_choice(space, rng) for _ in range(count - len(choices))]
    while length % len(choices):
        choices.pop()
    return choices


def _random_choice(space: SearchSpace, rng: np.random.Generator) -> Allocation:
    """Most choices cost about the budget, the others anything below it."""
    if rng.random() < _NEAR_BUDGET:
        return space.sample(rng, rng.uniform(0.8, 1.05) * space.budget)
    low = min(space.min_parameters * 4, space.budget)
    cost = math.exp(rng.uniform(math.log(low), math.log(space.budget)))
    return space.sample(rng, cost, removal=0.15)
