from __future__ import annotations

import math
from typing import Literal

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


@given(
    quality=st.floats(-1, 1),
    costs=st.lists(st.integers(0, 10_000), min_size=2, max_size=5, unique=True),
    price=st.floats(1e-6, 1),
)
def test_with_a_price_of_memory_the_smallest_of_equal_quality_is_best(
    quality: float, costs: list[int], price: float
) -> None:
    budget = max(costs)
    found = [penalised_reward(quality, cost, budget, memory_price=price) for cost in costs]
    assert max(found, key=lambda each: each.value).num_parameters == min(costs)
    for each in found:
        assert each.quality == quality
        assert each.penalty == pytest.approx(price * each.num_parameters / budget)


@pytest.mark.parametrize("mode", ["soft", "absolute"])
def test_the_price_of_memory_comes_on_top_of_the_penalty(
    mode: Literal["soft", "absolute"],
) -> None:
    plain, priced = (
        penalised_reward(0.5, 150, 100, penalty_weight=0.2, memory_price=price, mode=mode)
        for price in (0.0, 0.01)
    )
    assert plain.penalty == pytest.approx(0.1)
    assert priced.penalty == pytest.approx(0.1 + 0.015)
    assert priced.value == pytest.approx(0.5 - priced.penalty)


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
        ({"memory_price": -0.1}, "`memory_price` must be finite and not negative, got -0.1"),
        ({"memory_price": math.nan}, "`memory_price` must be finite and not negative, got nan"),
        ({"memory_price": math.inf}, "`memory_price` must be finite and not negative, got inf"),
        ({"mode": "hard"}, '`mode` must be "soft" or "absolute", got \'hard\''),
    ],
)
def test_penalised_reward_refuses(arguments: dict[str, object], message: str) -> None:
    defaults: dict[str, object] = {"quality": 0.7, "num_parameters": 10, "budget": 5}
    with pytest.raises(ValueError, match=message):
        penalised_reward(**{**defaults, **arguments})  # type: ignore[arg-type]
