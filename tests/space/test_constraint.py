from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from optuna_nis.space.constraint import AdditiveBudget, tilt_to_budget

costs = st.dictionaries(
    st.sampled_from("abcdef"),
    st.dictionaries(st.integers(0, 9), st.floats(0, 100), min_size=1, max_size=5),
    min_size=1,
)


@pytest.mark.parametrize(
    ("limit", "costs", "message"),
    [
        (1, {}, "`costs` must name at least one parameter"),
        (1, {"x": {"a": -1.0}}, r"`costs\['x'\]\['a'\]` must be finite and not negative"),
        (1, {"x": {"a": float("inf")}}, r"`costs\['x'\]\['a'\]` must be finite"),
        (1, {"x": {"a": 1}, "y": {"b": 0.5}}, "`limit` must be finite and at least 1.5"),
        (float("nan"), {"x": {"a": 1}}, "`limit` must be finite and at least 1"),
    ],
)
def test_additive_budget_refuses(limit: float, costs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdditiveBudget(limit, costs)


def test_additive_budget_refuses_a_parameter_without_choices() -> None:
    with pytest.raises(ValueError, match=r"`costs\['x'\]` must hold at least one choice"):
        AdditiveBudget(1, {"x": {}})


@given(costs=costs, slack=st.floats(0, 200), seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4))
def test_every_walk_stays_within_the_limit(
    costs: dict[str, dict[int, float]], slack: float, seed: int, n: int
) -> None:
    limit = sum(min(options.values()) for options in costs.values()) + slack
    budget = AdditiveBudget(limit, costs)
    rng = np.random.default_rng(seed)
    walk = budget.walk(n)
    spent = np.zeros(n)
    for name, options in budget.choices.items():
        allowed = walk.allowed(name)
        assert allowed.shape == (n, len(options))
        assert allowed.any(axis=1).all()
        taken = np.array([rng.choice(np.flatnonzero(row)) for row in allowed])
        walk.take(name, taken)
        spent += np.array(list(costs[name].values()))[taken]
    assert (spent <= limit * (1 + 1e-6) + 1e-6).all()


def test_an_option_is_allowed_as_long_as_the_cheapest_rest_fits() -> None:
    budget = AdditiveBudget(10, {"x": {"s": 1, "l": 8}, "y": {"s": 2, "l": 9}})
    walk = budget.walk(2)
    assert walk.allowed("x").all()
    walk.take("x", np.array([0, 1]))
    assert walk.allowed("y").tolist() == [[True, True], [True, False]]


def test_sums_of_floats_that_equal_the_limit_are_allowed() -> None:
    budget = AdditiveBudget(0.3, {"x": {0: 0.0, 1: 0.1}, "y": {0: 0.0, 1: 0.2}})
    walk = budget.walk(1)
    walk.take("x", np.array([1]))
    assert walk.allowed("y").tolist() == [[True, True]]


@given(costs=costs, share=st.floats(0.01, 1.5))
def test_the_tilt_brings_the_expected_cost_within_the_limit(
    costs: dict[str, dict[int, float]], share: float
) -> None:
    arrays = {name: np.array(list(options.values())) for name, options in costs.items()}
    cheapest = sum(cost.min() for cost in arrays.values())
    mean = sum(cost.mean() for cost in arrays.values())
    limit = cheapest + share * (mean - cheapest)
    weights = tilt_to_budget(arrays, limit, {name: 0 * cost for name, cost in arrays.items()})
    expected = 0.0
    for name, cost in arrays.items():
        p = np.exp(weights[name])
        expected += float((p * cost).sum() / p.sum())
        assert (np.diff(weights[name][np.argsort(cost)]) <= 1e-12).all()
    assert expected <= limit * (1 + 1e-6) + 1e-6
    if share > 1 + 1e-6:
        assert all((weight == 0).all() for weight in weights.values())


def test_the_tilt_uses_the_limit_up() -> None:
    weights = tilt_to_budget({"x": np.array([0.0, 1.0])}, 0.25, {"x": np.zeros(2)})["x"]
    assert np.exp(weights[1]) / np.exp(weights).sum() == pytest.approx(0.25)


def test_a_limit_of_zero_allows_only_what_is_free() -> None:
    budget = AdditiveBudget(0, {"x": {0: 0, 1: 1}, "y": {0: 0}})
    walk = budget.walk(1)
    assert walk.allowed("x").tolist() == [[True, False]]
    weights = budget.initial_log_weights()["x"]
    assert weights[1] < -10
    assert np.isfinite(weights).all()


@pytest.mark.parametrize(
    ("limit", "cost", "fits"),
    [(10**12, 10**12 + 900, False), (1e-9, 1.9e-9, False), (0.3, 0.1 + 0.2, True)],
)
def test_the_limit_is_as_fine_as_the_costs(limit: float, cost: float, fits: bool) -> None:
    walk = AdditiveBudget(limit, {"x": {0: 0, 1: cost}}).walk(1)
    assert walk.allowed("x").tolist() == [[True, fits]]
