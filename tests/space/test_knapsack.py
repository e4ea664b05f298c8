"""The choice that is worth most, compared with all choices of tiny spaces."""

from __future__ import annotations

import itertools
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from numpy.typing import NDArray
import pytest

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace

Values = dict[str, NDArray[np.float64]]
MODES = st.sampled_from(["multi", "single"])


def space_of(mode: Literal["multi", "single"], budget: int | None = None) -> SearchSpace:
    return SearchSpace(
        [
            EmbeddingSpec("user", 60, 4, row_blocks=[5, 20, 35], col_blocks=[1, 1, 2]),
            EmbeddingSpec("city", 7, 4, col_blocks=[2, 2]),
        ],
        budget=budget,
        mode=mode,
    )


def values_of(seed: int, space: SearchSpace) -> Values:
    rng = np.random.default_rng(seed)
    return {
        spec.name: rng.normal(0.3, 1.0, (len(spec.row_blocks), spec.embedding_dim))
        for spec in space.specs
    }


def worth(space: SearchSpace, choice: Allocation, values: Values) -> float:
    return sum(
        float(values[name][block, :width].sum())
        for name, widths in space.widths(choice).items()
        for block, width in enumerate(widths)
    )


def every_choice(space: SearchSpace) -> list[Allocation]:
    distributions = space.distributions()
    options = [each.choices for each in distributions.values()]
    found = [
        space.allocation(dict(zip(distributions, choice)))
        for choice in itertools.product(*options)
    ]
    return list(dict.fromkeys(found))


EVERY = {mode: every_choice(space_of(mode)) for mode in ("multi", "single")}  # type: ignore[arg-type]


@given(mode=MODES, seed=st.integers(0, 10_000), budget=st.integers(20, 268))
@settings(deadline=None, max_examples=60)
def test_it_keeps_to_the_budget_and_no_choice_is_worth_much_more(
    mode: Literal["multi", "single"], seed: int, budget: int
) -> None:
    space = space_of(mode, budget)
    values = values_of(seed, space)
    found = space.most_valuable(values)
    assert found.num_parameters <= budget
    known = [(worth(space, c, values), c.num_parameters) for c in EVERY[mode]]
    best = max(value for value, cost in known if cost <= budget)
    # What a price on memory finds: the best of those that are best at some price.
    hull = max(_value_of_hull(known, budget), 0.0)
    assert hull - 1e-9 <= worth(space, found, values) <= best + 1e-9


@given(mode=MODES, seed=st.integers(0, 10_000), budget=st.integers(20, 268))
@settings(deadline=None, max_examples=40)
def test_shared_rows_are_taken_where_they_are_worth_it(
    mode: Literal["multi", "single"], seed: int, budget: int
) -> None:
    spec = EmbeddingSpec("user", 60, 4, row_blocks=[5, 20, 35], col_blocks=[2, 2], oov="hash")
    city = EmbeddingSpec("city", 7, 4, col_blocks=[2, 2], oov="hash")
    space = SearchSpace([spec, city], budget=min(budget, 268), mode=mode)
    assert space.choices["user[shared]"] == (0, 1, 16)
    assert "city[shared]" not in space.choices
    values = values_of(seed, space)
    gains = space.gains(values)
    gains["user[shared]"] = np.array([0.0, *np.random.default_rng(seed).normal(1.0, 1.0, 2)])
    of_number = dict(zip((0, 1, 16), gains["user[shared]"]))

    def worth_of(choice: Allocation) -> float:
        return worth(space, choice, values) + of_number[choice["user"].num_shared]

    found = space.best(gains)
    assert found.nbytes() <= space.budget_nbytes
    # A number that is more than there are ids to share it is another choice, not counted here.
    every = [c for c in every_choice(space) if c["user"].num_shared in of_number]
    known = [(worth_of(c), c.num_parameters) for c in every]
    hull = max(_value_of_hull(known, space.budget), 0.0)
    best = max(value for value, cost in known if cost <= space.budget)
    assert hull - 1e-9 <= worth_of(found) <= best + 1e-9


def _value_of_hull(known: list[tuple[float, int]], budget: int) -> float:
    """The value of the best choice within a budget that is the best at some price."""
    best: dict[int, float] = {}
    for value, cost in known:
        best[cost] = max(best.get(cost, value), value)
    hull: list[tuple[int, float]] = []
    for cost, value in sorted(best.items()):
        if hull and value <= hull[-1][1]:
            continue
        while len(hull) > 1 and _rise(hull[-2], hull[-1]) <= _rise(hull[-2], (cost, value)):
            hull.pop()
        hull.append((cost, value))
    return max(value for cost, value in hull if cost <= budget)


def _rise(a: tuple[int, float], b: tuple[int, float]) -> float:
    return (b[1] - a[1]) / (b[0] - a[0])


@given(mode=MODES, seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=30)
def test_with_room_for_all_it_is_the_best_of_all(
    mode: Literal["multi", "single"], seed: int
) -> None:
    space = space_of(mode)
    values = values_of(seed, space)
    best = max(worth(space, c, values) for c in EVERY[mode] if c.num_parameters <= space.budget)
    found = space.most_valuable(values)
    assert worth(space, found, values) == pytest.approx(best)


def test_what_is_worth_nothing_is_left_out() -> None:
    space = space_of("multi", 200)
    values = {"user": np.full((3, 4), -1.0), "city": np.zeros((1, 4))}
    assert space.most_valuable(values).num_parameters == 0
    values["user"][0, 0] = 10.0
    assert str(space.most_valuable(values)["user"]) == "user: 5x1 (of 60x4)"


def test_a_projection_is_paid_for() -> None:
    space = SearchSpace([EmbeddingSpec("city", 7, 4, col_blocks=[2, 2])], budget=26)
    # Two columns of 7 rows take 14 numbers and a projection of 8, all four take 28.
    assert space.most_valuable({"city": np.ones((1, 4))}).num_parameters == 22


def test_many_blocks_are_solved_at_once() -> None:
    specs = [EmbeddingSpec(f"feature {n}", 1000 + n, 32) for n in range(60)]
    space = SearchSpace(specs, budget="20%")
    rng = np.random.default_rng(0)
    values = {spec.name: rng.exponential(1.0, (5, 32)) / np.arange(1, 33) for spec in specs}
    found = space.most_valuable(values)
    assert 0.999 * space.budget < found.num_parameters <= space.budget


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.ones((3, 3)), r"`values\['user'\]` must be finite numbers of shape \(3, 4\)"),
        (np.full((3, 4), np.nan), r"`values\['user'\]` must be finite numbers"),
        (None, r"got shape \(0,\)"),
    ],
)
def test_values_of_another_shape(wrong: NDArray[np.float64] | None, message: str) -> None:
    values = {"city": np.ones((1, 4))} | ({} if wrong is None else {"user": wrong})
    with pytest.raises(ValueError, match=message):
        space_of("multi").most_valuable(values)
