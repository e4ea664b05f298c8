from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
import pytest

from optuna_nis.controller.choices import enumerate_choices, find_choice, option_finder


def test_find_choice_forgives_rounding_and_finds_nan() -> None:
    assert find_choice((0.1, 0.2, 0.3), 0.1 + 0.2) == 2
    assert find_choice((1.0, float("nan")), float("nan")) == 1
    assert find_choice((None, "a"), None) == 0
    assert find_choice(("a", 1), 1.5) is None
    assert find_choice(("a", 1), "b") is None


def test_options_are_found_for_all_parameters_or_none() -> None:
    find = option_finder({"x": ((3, 3), None, 1, True), "y": (0.3, {"a": 1})})
    assert find({"x": True, "y": 0.1 + 0.2, "z": 5}) == [2, 0]  # the first that is equal
    assert find({"x": [3, 3], "y": {"a": 1}}) == [0, 1]
    assert find({"x": (3, 3), "y": 0.3}) == [0, 0]
    assert find({"x": None}) is None
    assert find({"x": None, "y": "a"}) is None


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (CategoricalDistribution(["a", None]), ("a", None)),
        (CategoricalDistribution(["a"]), None),
        (CategoricalDistribution(range(257)), None),
        (IntDistribution(1, 4, log=True), (1, 2, 3, 4)),
        (IntDistribution(0, 10, step=5), (0, 5, 10)),
        (IntDistribution(0, 32), None),
        (IntDistribution(3, 3), None),
        (FloatDistribution(0, 1, step=0.5), (0.0, 0.5, 1.0)),
        (FloatDistribution(0, 1), None),
        (FloatDistribution(1e-3, 1, log=True), None),
    ],
)
def test_enumerate_choices(distribution: Any, values: Any) -> None:
    assert enumerate_choices(distribution) == values


@given(low=st.integers(-20, 20), count=st.integers(2, 31), step=st.integers(1, 40))
def test_values_of_floats_are_those_that_optuna_takes(low: int, count: int, step: int) -> None:
    # Optuna may take the highest off, which is a sum of floats here too.
    distribution = FloatDistribution(low / 20, low / 20 + count * step / 20, step=step / 20)
    choices = enumerate_choices(distribution)
    assert choices is not None
    assert len(choices) in (count, count + 1)
    assert all(distribution._contains(choice) for choice in choices)
