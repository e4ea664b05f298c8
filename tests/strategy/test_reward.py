from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
import pytest

from optuna_nis.strategy.reward import Reward, penalised_reward


@given(
    quality=st.floats(-1, 1),
    cost=st.integers(0, 10_000),
    budget=st.integers(1, 10_000),
    weight=st.floats(0, 10),
)
def test_soft_penalty_counts_only_what_exceeds_the_budget(
    quality: float, cost: int, budget: int, weight: float
) -> None:
    soft = penalised_reward(quality, cost, budget, penalty_weight=weight)
    absolute = penalised_reward(quality, cost, budget, penalty_weight=weight, mode="absolute")
    assert soft.quality == absolute.quality == quality
    assert soft.num_parameters == cost
    assert soft.value == quality - soft.penalty
    if cost <= budget:
        assert soft.penalty == 0.0
        assert absolute.penalty == pytest.approx(weight * (1 - cost / budget))
    else:
        assert soft.penalty == absolute.penalty == pytest.approx(weight * (cost / budget - 1))


def test_the_formula() -> None:
    assert penalised_reward(0.75, 125, 100, penalty_weight=2.0) == Reward(0.25, 0.75, 0.5, 125)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quality": math.nan}, "`quality` must be a finite number, got nan"),
        ({"quality": -math.inf}, "`quality` must be a finite number, got -inf"),
        ({"num_parameters": -1}, "`num_parameters` must not be negative, got -1"),
        ({"budget": 0}, "`budget` must be positive, got 0"),
        ({"penalty_weight": -0.1}, "`penalty_weight` must be finite and not negative"),
        ({"penalty_weight": math.inf}, "`penalty_weight` must be finite and not negative"),
        ({"mode": "hard"}, '`mode` must be "soft" or "absolute", got \'hard\''),
    ],
)
def test_penalised_reward_refuses(arguments: dict[str, object], message: str) -> None:
    defaults: dict[str, object] = {"quality": 0.7, "num_parameters": 10, "budget": 5}
    with pytest.raises(ValueError, match=message):
        penalised_reward(**{**defaults, **arguments})  # type: ignore[arg-type]
