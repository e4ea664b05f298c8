from __future__ import annotations

import math

import pytest

from optuna_nis.strategy.decision import decide, tie, within_error


def test_the_best_is_taken_where_others_are_worse():
    found = decide([[0.70, 0.72, 0.71], [0.75, 0.77, 0.76], [0.60, 0.62, 0.61]], [10, 30, 20])
    assert (found.taken, found.best, found.tied) == (1, 1, (1,))


def test_of_those_that_cannot_be_told_apart_the_cheapest_is_taken():
    # Seed by seed the first is .04 better and .03 worse: noise; the last is always worse.
    found = decide([[0.80, 0.70], [0.76, 0.73], [0.74, 0.64]], [30, 20, 10])
    assert (found.taken, found.best, found.tied) == (1, 0, (0, 1))


def test_differences_are_paired_by_seed():
    # The seeds differ far more than the choices, which differ by .01 with each.
    values = [[0.70, 0.80, 0.90], [0.69, 0.791, 0.889]]
    assert decide(values, [20, 10]).tied == (0,)
    shuffled = [values[0], [0.889, 0.69, 0.791]]
    assert decide(shuffled, [20, 10]).tied == (0, 1)


def test_a_single_seed_goes_by_a_quarter_of_the_error_of_the_metric():
    values, costs = [[0.780], [0.776], [0.774]], [30, 20, 10]
    assert decide(values, costs, error=0.02).tied == (0, 1)
    assert decide(values, costs, error=0.02).taken == 1
    assert decide(values, costs, error=0.0).tied == (0,)
    for unknown in (None, math.inf):
        assert decide(values, costs, error=unknown).tied == (0,)


def test_the_error_of_a_tie_is_a_quarter_of_that_of_the_metric():
    assert tie(0.02) == pytest.approx(0.005)
    assert [tie(unknown) for unknown in (None, math.inf, math.nan, 0.0)] == [0.0] * 4


def test_costs_that_are_nearly_the_same_decide_nothing():
    values = [[0.770, 0.772], [0.774, 0.771], [0.7735, 0.7715]]
    assert decide(values, [100, 104, 105]).taken == 1
    assert decide(values, [100, 106, 107]).taken == 0
    # Beside the cheapest of those that tie, not of all.
    assert decide([[0.77], [0.77], [0.5]], [104, 100, 10], error=0.1).tied == (0, 1)


def test_of_equals_the_better_then_the_first():
    assert decide([[0.7], [0.7]], [10, 10]).taken == 0
    assert decide([[0.7, 0.8], [0.78, 0.74]], [10, 10]).taken == 1


@pytest.mark.parametrize(
    ("values", "costs"),
    [([], []), ([[]], [1]), ([[0.5], [0.5, 0.6]], [1, 2]), ([[0.5]], [1, 2])],
)
def test_values_of_different_lengths_are_refused(values, costs):
    with pytest.raises(ValueError, match="`values` must hold as many numbers"):
        decide(values, costs)


def test_an_error_is_not_negative():
    with pytest.raises(ValueError, match=r"`error` must be a number of 0 or more, got -1.0"):
        decide([[0.5], [0.6]], [1, 2], error=-1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_must_be_finite(bad):
    with pytest.raises(ValueError, match="`values` must be finite"):
        decide([[0.5], [bad]], [1, 2])


def test_what_a_single_training_cannot_tell_apart():
    assert within_error([0.70, 0.75, 0.80], 0.05) == [1, 2]
    assert within_error([-1.0, -2.0], 0.5) == [0]
    for unknown in (None, math.inf):
        assert within_error([0.1, 0.9], unknown) == [0, 1]
