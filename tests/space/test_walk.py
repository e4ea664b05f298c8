from __future__ import annotations

from any_spaces import spaces
from hypothesis import assume, given
from hypothesis import strategies as st
import numpy as np
import pytest

from optuna_nis.space.constraint import IntArray
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec
from optuna_nis.space.tables import MultiSizeTable
from optuna_nis.space.walk import SpaceWalk


def test_sizes_fall_in_width_and_in_precision() -> None:
    table = MultiSizeTable(EmbeddingSpec("t", 10, 2, row_blocks=2, precisions=(8, 2)))
    assert table.options == ("0", "1x2bit", "1x8bit", "2x2bit", "2x8bit")
    walk = SpaceWalk([table], nbytes=1000, n=5)
    walk.take("t[0:5]", np.arange(5))
    allowed = [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [True, True, True, False, False],
        [True, True, False, True, False],
        [True, True, True, True, True],
    ]
    assert walk.allowed("t[5:10]").tolist() == allowed
    # Of a row that counts as narrower, or less precise, than was drawn, both are the smaller ones.
    assert table.meet(np.array([2, 3, 0]), np.array([3, 4, 4])).tolist() == [1, 3, 0]
    assert table.join(np.array([2, 3, 0]), np.array([3, 1, 2])).tolist() == [4, 3, 2]


def test_a_narrower_tier_after_a_full_one_pays_for_the_projection() -> None:
    table = MultiSizeTable(EmbeddingSpec("t", 10, 2, row_blocks=2))
    walk = SpaceWalk([table], nbytes=4 * (10 + 5 + 4), n=3)
    assert walk.allowed("t[0:5]").all()
    walk.take("t[0:5]", np.array([2, 1, 0]))
    allowed = [[True, True, False], [True, True, False], [True, False, False]]
    assert walk.allowed("t[5:10]").tolist() == allowed
    walk.take("t[5:10]", np.array([1, 1, 0]))
    assert walk._left.tolist() == [0, 4 * (19 - 5 - 2 - 5), 4 * 19]


def drawn(
    space: SearchSpace, n: int, rng: np.random.Generator, given: dict[str, int] | None = None
) -> dict[str, IntArray]:
    """Options of ``n`` draws, those that are given where they are open."""
    walk = space.walk(n)
    if given:
        walk.reserve(given)
    found = {}
    for name, choices in space.choices.items():
        allowed = np.broadcast_to(walk.allowed(name), (n, len(choices)))
        assert allowed.any(axis=1).all()
        if given and name in given and allowed[:, given[name]].all():
            options = np.full(n, given[name])
        else:
            options = np.array([rng.choice(np.flatnonzero(row)) for row in allowed])
        walk.take(name, options)
        found[name] = options
    return found


def nbytes(space: SearchSpace, options: dict[str, IntArray], draw: int) -> int:
    params = {name: space.choices[name][own[draw]] for name, own in options.items()}
    return space.allocation(params).nbytes()


@given(spaces(), st.integers(0, 1000), st.floats(0, 1))
def test_what_is_given_of_some_draw_is_left_open(
    space: SearchSpace, seed: int, share: float
) -> None:
    # Rows that are shared may cost less where more ids have rows of their own.
    assume({spec.oov for spec in space.specs} == {"zero"})
    rng = np.random.default_rng(seed)
    whole = drawn(space, 1, rng)
    given = {name: int(own[0]) for name, own in whole.items() if rng.random() < share}
    found = drawn(space, 4, rng, given)
    for name, option in given.items():
        assert (found[name] == option).all()
    assert max(nbytes(space, found, draw) for draw in range(4)) <= space.budget_nbytes


@given(spaces(), st.integers(0, 1000))
def test_no_choice_that_is_given_breaks_the_budget(space: SearchSpace, seed: int) -> None:
    rng = np.random.default_rng(seed)
    given = {
        name: int(rng.integers(len(choices)))
        for name, choices in space.choices.items()
        if rng.random() < 0.3
    }
    found = drawn(space, 4, rng, given)
    assert max(nbytes(space, found, draw) for draw in range(4)) <= space.budget_nbytes


@pytest.mark.parametrize("mode", ["multi", "single"])
@pytest.mark.parametrize("oov", ["zero", "shared"])
def test_all_that_fits_can_be_given_for_each_feature(mode: str, oov: str) -> None:
    specs = [EmbeddingSpec(n, 1000, 16, precisions=(32, 8), oov=oov) for n in ("a", "b", "c")]
    space = SearchSpace(specs, budget=0.34, mode=mode)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    for name, choices in space.choices.items():
        # A whole table of full width fits, nothing else does beside it.
        given = {name: len(choices) - 1}
        assert (drawn(space, 8, rng, given)[name] == given[name]).all()


def test_what_cannot_be_taken_together_is_not_reserved() -> None:
    space = SearchSpace([EmbeddingSpec("t", 10, 4, row_blocks=2)], budget=1.0)
    walk = space.walk(1)
    walk.reserve({"t[0:5]": 1, "t[5:10]": 4})
    assert walk.allowed("t[0:5]").all()
    walk.take("t[0:5]", np.array([1]))
    assert walk.allowed("t[5:10]").tolist() == [[True, True, False, False, False]]
