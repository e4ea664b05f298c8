from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from optuna_nis.controller.covariance import Covariance

RNG = np.random.default_rng(0)
PRIORS = [np.full((1, 1), 3.0), 0.5 + np.eye(30), np.diag([1.0, 2.0])]
VECTORS = RNG.normal(size=(70, 33)) * (RNG.random((70, 33)) < 0.5)


def lessened(dense: bool) -> Iterator[tuple[int, Covariance]]:
    covariance = Covariance(PRIORS, dense)
    for count, vector in enumerate(VECTORS):
        yield count, covariance
        covariance.subtract(0.1 * vector)
    yield len(VECTORS), covariance


@pytest.mark.parametrize("dense", [True, False])
def test_outer_products_are_subtracted(dense: bool) -> None:
    expected = np.zeros((33, 33))
    expected[0, 0], expected[1:31, 1:31], expected[31:, 31:] = 3, 0.5 + np.eye(30), PRIORS[2]
    for count, covariance in lessened(dense):
        vector = VECTORS[count - 1]
        np.testing.assert_allclose(covariance.full(), expected, atol=1e-12)
        np.testing.assert_allclose(covariance.times(vector), expected @ vector, atol=1e-12)
        if count < len(VECTORS):
            expected -= 0.01 * np.outer(VECTORS[count], VECTORS[count])


def test_few_outer_products_are_kept_and_many_written_out() -> None:
    sizes = [covariance.num_copied for _, covariance in lessened(dense=False)]
    assert max(sizes[:33]) < 33**2 < min(sizes[48:])


@pytest.mark.parametrize("dense", [True, False])
def test_copies_change_on_their_own(dense: bool) -> None:
    copies = []
    for _, covariance in lessened(dense):
        copies.append((covariance.copy(), [array.copy() for array in covariance.arrays()]))
    for twin, before in copies:
        for array, old in zip(twin.arrays(), before):
            np.testing.assert_array_equal(array, old)
    twin, before = copies[20]
    twin.subtract(VECTORS[0])
    assert not np.array_equal(twin.full(), copies[21][0].full())
    for array, old in zip(copies[21][0].arrays(), copies[21][1]):
        np.testing.assert_array_equal(array, old)
