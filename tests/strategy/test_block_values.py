"""What blocks are worth, from gradients along paths."""

from __future__ import annotations

import numpy as np
import pytest

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.strategy.block_values import BlockValues, Path, path_around, random_path

SPACE = SearchSpace(
    [EmbeddingSpec("user", 200, 8), EmbeddingSpec("city", 60, 8, row_blocks=2)], budget="25%"
)


def test_a_path_is_between_nested_choices() -> None:
    rng = np.random.default_rng(0)
    center = SPACE.widths(SPACE.sample(rng, SPACE.budget))
    for path in (random_path(SPACE, rng), path_around(SPACE, center, rng)):
        assert 0 <= path.share < 1
        for name in ("user", "city"):
            assert all(a <= b for a, b in zip(path.low[name], path.high[name]))
            assert max(path.high[name]) <= 8


def test_paths_between_random_choices_cross_the_budget() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        path = random_path(SPACE, rng)
        low, high = (
            sum(
                rows * width
                for spec in SPACE.specs
                for rows, width in zip(spec.row_blocks, end[spec.name])
            )
            for end in (path.low, path.high)
        )
        assert low <= 0.8 * SPACE.budget
        assert high >= low


def test_a_path_around_a_choice_has_it_inside() -> None:
    rng = np.random.default_rng(0)
    center = {"user": (8, 6, 4, 1, 0), "city": (4, 0)}
    for _ in range(20):
        path = path_around(SPACE, center, rng)
        for name, widths in center.items():
            for low, own, high in zip(path.low[name], widths, path.high[name]):
                assert low <= own <= max(high, own)
                assert high <= 8
    # What the choice leaves out is offered, too.
    assert any(path_around(SPACE, center, rng).high["city"][1] > 0 for _ in range(5))


def test_the_mean_is_over_the_paths_that_change_a_column() -> None:
    space = SearchSpace([EmbeddingSpec("user", 10, 2, row_blocks=[10])])
    values = BlockValues(space)
    for low, high, gradient in ((0, 1, -1.0), (0, 2, -3.0), (1, 2, -9.0)):
        path = Path({"user": (low,)}, {"user": (high,)}, 0.5)
        values.add(path, {"user": np.array([[gradient, gradient]])})
    assert values.counts()["user"].tolist() == [[2, 2]]
    assert values.means()["user"].tolist() == [[2.0, 6.0]]
    assert values.standard_errors()["user"] == pytest.approx(np.array([[1.0, 3.0]]))


def test_the_standard_error_is_that_of_the_mean() -> None:
    space = SearchSpace([EmbeddingSpec("user", 10, 1, row_blocks=[10])])
    rng = np.random.default_rng(0)
    path = Path({"user": (0,)}, {"user": (1,)}, 0.5)
    means, errors = [], []
    for _ in range(300):
        values = BlockValues(space)
        for _ in range(16):
            values.add(path, {"user": rng.normal(1.0, 2.0, (1, 1))})
        means.append(values.means()["user"].item())
        errors.append(values.standard_errors()["user"].item())
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_without_two_paths_nothing_is_known_of_the_error() -> None:
    values = BlockValues(SPACE)
    assert np.isinf(values.standard_errors()["user"]).all()
    assert not values.means()["user"].any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "'user' must be finite numbers of shape .5, 8., got none"),
        ({"user": np.ones((5, 7))}, r"got shape \(5, 7\)"),
        ({"user": np.full((5, 8), np.inf)}, "got numbers that are not"),
    ],
)
def test_gradients_of_another_shape(wrong: dict[str, np.ndarray], message: str) -> None:  # type: ignore[type-arg]
    values = BlockValues(SPACE)
    gradients = {"city": np.ones((2, 8))} | wrong
    with pytest.raises(ValueError, match=message):
        values.add(random_path(SPACE, np.random.default_rng(0)), gradients)
    assert not values.counts()["city"].any()
