from __future__ import annotations

import math

import numpy as np
import pytest

from optuna_nis.study.uncertainty import auc_standard_error, effective_rows, share_standard_error


@pytest.mark.parametrize(
    ("auc", "positive", "negative", "error"),
    [
        # The example of Hanley and McNeil (1982).
        (0.893, 51, 58, 0.0325),
        # By hand: sqrt((0.21 + 9 * (0.7 / 1.3 - 0.49) + 9 * (0.98 / 1.7 - 0.49)) / 100).
        (0.7, 10, 10, 0.1193),
        # A score that knows nothing: sqrt((m + n + 1) / (12 m n)), as of Mann and Whitney.
        (0.5, 9, 11, math.sqrt(21 / (12 * 99))),
        (0.5, 1000, 1000, math.sqrt(2001 / 12e6)),
        (1.0, 5, 5, 0.0),
        (0.0, 5, 5, 0.0),
    ],
)
def test_standard_error_of_an_auc(auc, positive, negative, error):
    assert auc_standard_error(auc, positive, negative) == pytest.approx(error, abs=5e-5)


def test_standard_error_of_an_auc_is_the_deviation_of_many():
    rng = np.random.default_rng(0)
    scores = rng.random((4_000, 30))
    ranks = scores.argsort(1).argsort(1)
    auc = (ranks[:, :12].sum(1) - 66) / (12 * 18)
    assert auc_standard_error(0.5, 12, 18) == pytest.approx(auc.std(), rel=0.05)


def test_rows_of_equal_weight_that_say_as_much():
    assert effective_rows(np.full(7, 0.1)) == pytest.approx(7)
    assert effective_rows(np.array([3.0, 3.0, 0.0])) == pytest.approx(2)
    assert effective_rows(np.array([1e-300, 0.0])) == 1
    assert effective_rows(np.zeros(3)) == effective_rows(np.empty(0)) == 0


def test_standard_errors_under_weights_are_the_deviations_of_many():
    rng = np.random.default_rng(0)
    weights = rng.exponential(size=60) + 0.1
    positive, negative = weights[:25], weights[25:]
    # Of exponential scores the areas are those that Hanley and McNeil assume.
    scores = rng.exponential(size=(3_000, 60))
    scores[:, :25] *= 3.0
    wins = scores[:, :25, None] > scores[:, None, 25:]
    areas = np.einsum("nij,i,j->n", wins, positive, negative) / positive.sum() / negative.sum()
    found = auc_standard_error(0.75, effective_rows(positive), effective_rows(negative))
    assert areas.mean() == pytest.approx(0.75, abs=0.005)
    assert found == pytest.approx(areas.std(), rel=0.05)
    # Were they taken for rows that count alike, it would be too small.
    assert auc_standard_error(0.75, 25, 35) < 0.9 * areas.std()

    hits = rng.random((3_000, 60)) < 0.4
    shares = hits @ weights / weights.sum()
    assert share_standard_error(0.4, effective_rows(weights)) == pytest.approx(
        shares.std(), rel=0.08
    )


def test_standard_error_of_a_share():
    assert share_standard_error(0.2, 10_000) == pytest.approx(0.004, rel=0.01)
    # None of five is no certainty.
    assert share_standard_error(0.0, 5) > 0.1
    assert share_standard_error(1.0, 5) == share_standard_error(0.0, 5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auc_standard_error(1.1, 1, 1), "`auc` must be a number"),
        (
            lambda: auc_standard_error(0.5, 0, 1),
            r"`num_positive` must be a number in \[1, inf\), got 0",
        ),
        (
            lambda: auc_standard_error(0.5, 1, 0),
            r"`num_negative` must be a number in \[1, inf\), got 0",
        ),
        (lambda: share_standard_error(-0.1, 1), "`share` must be a number"),
        (
            lambda: share_standard_error(0.1, 0),
            r"`num_rows` must be a number in \[1, inf\), got 0",
        ),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
