"""What can be left out of a choice, with qualities that are functions of the choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
import math

from hypothesis import assume, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis.strategy.reward import Reward, penalised_reward
from optuna_nis.strategy.scoring import Scoring
from optuna_nis.strategy.simplifying import simpler, simplify

NUM_EXAMPLES = 64
Quality = Callable[[Allocation], float]


def space_of(*names: str, mode: str = "multi") -> SearchSpace:
    specs = [EmbeddingSpec(name, 100, 4, row_blocks=[20, 80]) for name in names]
    return SearchSpace(specs, budget=1.0, mode=mode)  # type: ignore[arg-type]


def choice_of(**tables: tuple[tuple[int, int], ...]) -> Allocation:
    return Allocation(
        TableAllocation(name, 100, 4, tuple(Tier(*tier) for tier in tiers))
        for name, tiers in tables.items()
    )


BOTH = ((20, 4), (80, 1))
"""Frequent ids and rare ones."""


def tiers(choice: Allocation) -> dict[str, int]:
    return {name: len(table.tiers) for name, table in choice.items()}


@dataclass
class Simplified:
    """What came of a choice, and what was asked for."""

    choice: Allocation | None
    scored: dict[Allocation, Reward]
    asked: list[Scoring] = field(default_factory=list)


def run(
    space: SearchSpace,
    choice: Allocation,
    quality: Quality,
    *,
    tolerance: float = 0.0,
    price: float = 0.0,
) -> Simplified:
    def reward(value: float, of: Allocation) -> Reward:
        return penalised_reward(value, of.num_parameters, space.budget, memory_price=price)

    asked = []
    asking = simplify(
        choice,
        reward(quality(choice), choice),
        reward,
        tolerance=tolerance,
        num_examples=NUM_EXAMPLES,
    )
    scoring = next(asking)
    while True:
        asked.append(scoring)
        try:
            scoring = asking.send([quality(each) for each in scoring.choices])
        except StopIteration as stop:
            return Simplified(*stop.value, asked)


def lost(choice: Allocation, weights: dict[str, float], *, rare: float = 0.0) -> float:
    """A quality that falls by its weight with each feature that is gone, a bit with its rare ids.

    Weights are those of what features say: two with the same first letter say the same.
    """
    present = {name[0] for name, number in tiers(choice).items() if number}
    whole = {name[0] for name, number in tiers(choice).items() if number == 2}
    return (
        0.7
        - sum(weight for name, weight in weights.items() if name not in present)
        - rare * sum(name not in whole for name in weights)
    )


def test_what_can_be_left_out_is_a_feature_or_its_rarest_ids() -> None:
    found = simpler(choice_of(user=BOTH, item=((20, 2),), city=()))
    assert {part: tiers(each) for part, each in found.items()} == {
        ("user", 1): {"user": 1, "item": 1, "city": 0},
        ("user", 0): {"user": 0, "item": 1, "city": 0},
        ("item", 0): {"user": 2, "item": 0, "city": 0},
    }


def test_shared_rows_go_before_the_tier_that_has_them() -> None:
    shared = TableAllocation("user", 200, 8, (Tier(20, 8), Tier(100, 1)), num_shared=64)
    city = TableAllocation("city", 3, 4, (Tier(3, 4),))
    choice = Allocation([shared, city])
    found = simpler(choice)
    assert set(found) == {("user", 2), ("user", 0), ("city", 0)}
    assert found["user", 2]["user"] == replace(shared, num_shared=0)
    assert set(simpler(found["user", 2])) == {("user", 1), ("user", 0), ("city", 0)}
    assert all(each.nbytes() < choice.nbytes() for each in found.values())


def test_nothing_that_keeps_no_row_is_scored() -> None:
    # A measure need not be defined for a model without any embedding.
    choice = choice_of(user=BOTH, item=())
    result = run(space_of("user", "item"), choice, lambda each: 1 / each.num_parameters)
    assert result.choice == choice_of(user=((20, 4),), item=())


def test_where_features_have_one_size_only_whole_ones_go() -> None:
    found = simpler(choice_of(user=((20, 4),), item=((100, 2),)))
    assert set(found) == {("user", 0), ("item", 0)}


def test_a_feature_that_says_nothing_goes_and_one_that_does_stays() -> None:
    space = space_of("user", "noise")
    choice = choice_of(user=((100, 4),), noise=((100, 4),))
    result = run(space, choice, lambda each: lost(each, {"u": 0.1}))
    assert result.choice == choice_of(user=((100, 4),), noise=())


def test_rare_ids_that_say_nothing_go_without_the_others() -> None:
    space = space_of("user")
    choice = choice_of(user=BOTH)
    assert run(space, choice, lambda each: lost(each, {"u": 0.1})).choice == choice_of(
        user=((20, 4),)
    )
    assert run(space, choice, lambda each: lost(each, {"u": 0.1}, rare=0.01)).choice is None


def test_of_two_copies_of_a_feature_only_one_goes() -> None:
    space = space_of("same", "s2", "user")
    whole = ((100, 4),)
    choice = choice_of(same=whole, s2=whole, user=whole)
    result = run(space, choice, lambda each: lost(each, {"s": 0.1, "u": 0.1}))
    assert result.choice is not None
    left = tiers(result.choice)
    assert left["same"] + left["s2"] == 1
    assert left["user"] == 1


def test_of_two_that_cost_nothing_together_both_go() -> None:
    space = space_of("user", "noise", "more")
    whole = ((100, 4),)
    choice = choice_of(user=whole, noise=whole, more=whole)
    result = run(space, choice, lambda each: lost(each, {"u": 0.1}))
    assert result.choice == choice_of(user=whole, noise=(), more=())


def test_the_first_of_equals_goes_first() -> None:
    names = [f"s{number}" for number in range(9)]
    whole = ((100, 4),)
    choice = choice_of(**dict.fromkeys(names, whole))
    result = run(space_of(*names), choice, lambda each: lost(each, {"s": 0.1}))
    assert result.choice is not None
    gone = [name for name, number in tiers(result.choice).items() if number == 0]
    assert gone == names[: len(gone)]
    assert len(gone) > 1


@pytest.mark.parametrize(("cost", "goes"), [(0.0, True), (0.004, True), (0.006, False)])
def test_what_is_left_out_may_cost_as_much_as_is_tolerated(cost: float, goes: bool) -> None:
    whole = ((100, 4),)
    choice = choice_of(user=whole, city=whole)
    result = run(
        space_of("user", "city"),
        choice,
        lambda each: lost(each, {"u": 0.2, "c": cost}),
        tolerance=0.005,
    )
    assert result.choice == (choice_of(user=whole, city=()) if goes else None)


def test_several_may_cost_no_more_together_than_is_tolerated() -> None:
    names = ["user", "a", "b", "c", "d"]
    whole = ((100, 4),)
    choice = choice_of(**dict.fromkeys(names, whole))
    weights = {"u": 0.2, "a": 0.002, "b": 0.002, "c": 0.002, "d": 0.002}
    result = run(space_of(*names), choice, lambda each: lost(each, weights), tolerance=0.005)
    assert result.choice is not None
    assert sum(tiers(result.choice).values()) == 3


def test_memory_that_is_saved_pays_for_what_is_lost() -> None:
    whole = ((100, 4),)
    choice = choice_of(user=whole, city=whole)

    def quality(each: Allocation) -> float:
        return lost(each, {"u": 0.2, "c": 0.006})

    space = space_of("user", "city")
    # Half of the budget, at .004 for all of it, is worth .002.
    assert run(space, choice, quality, tolerance=0.005, price=0.004).choice is not None
    assert run(space, choice, quality, tolerance=0.005, price=0.001).choice is None


def test_what_is_far_too_bad_on_some_examples_is_not_scored_on_all() -> None:
    whole = ((100, 4),)
    choice = choice_of(user=whole, city=whole, noise=whole)
    result = run(
        space_of("user", "city", "noise"),
        choice,
        # Ten times what is tolerated shows at once.
        lambda each: lost(each, {"u": 0.02, "c": 0.009}),
        tolerance=0.001,
    )
    on_some, *on_all = result.asked
    assert on_some.num_examples == NUM_EXAMPLES
    assert on_some.choices[0] == choice
    assert len(on_some.choices) == 4
    assert [each.num_examples for each in on_all] == [None] * len(on_all)
    without_user = choice_of(user=(), city=whole, noise=whole)
    assert all(without_user not in each.choices for each in on_all)
    assert on_all[0].choices == (
        choice_of(user=whole, city=(), noise=whole),
        choice_of(user=whole, city=whole, noise=()),
        choice,
    )


def test_of_very_many_features_those_that_look_best_are_scored_on_all_data() -> None:
    names = [f"f{number}" for number in range(100)]
    whole = ((100, 4),)
    choice = choice_of(**dict.fromkeys(names, whole))

    def quality(each: Allocation) -> float:
        return 0.7 - sum(1e-5 * n for n, name in enumerate(names) if not each[name].tiers)

    result = run(space_of(*names), choice, quality, tolerance=0.001)
    on_some, *on_all = result.asked
    assert len(on_some.choices) == 101
    gone = [[n for n in names if not each[n].tiers] for each in on_all[0].choices]
    assert gone == [*([name] for name in names[:24]), []]
    # Once it is known what each is worth, only what may be best is scored again.
    assert [len(each.choices) for each in on_all] == [25, 3, 3, 3]
    assert result.choice is not None
    assert [n for n in names if not result.choice[n].tiers] == names[:4]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("on_all", [False, True])
def test_what_has_no_quality_stays_whatever_else_goes(bad: float, on_all: bool) -> None:
    whole = ((100, 4),)
    choice = choice_of(user=whole, noise=whole)
    asking = simplify(
        choice,
        Reward(0.7, 0.7, 0.0, choice.num_parameters),
        lambda value, of: penalised_reward(value, of.num_parameters, 1000),
        tolerance=0.001,
        num_examples=NUM_EXAMPLES,
    )
    scoring = next(asking)
    while True:
        # A measure that fails on examples of rare ids alone, say, and only without their rows.
        fails = (scoring.num_examples is None) == on_all
        qualities = [
            bad if fails and not each["user"].tiers else 0.7 - 0.001 * (not each["user"].tiers)
            for each in scoring.choices
        ]
        try:
            scoring = asking.send(qualities)
        except StopIteration as stop:
            simple, scored = stop.value
            break
    assert simple == choice_of(user=whole, noise=())
    assert all(math.isfinite(each.value) for each in scored.values())


@pytest.mark.parametrize("cost", [0.0, 0.004])
@pytest.mark.parametrize("luck", [0.01, -0.01])
def test_how_easy_the_examples_of_a_pass_are_does_not_count(cost: float, luck: float) -> None:
    # Validation data may be drawn anew for each pass, with random negatives, say.
    whole = ((100, 4),)
    choice = choice_of(user=whole, city=whole)
    passes = 0

    def quality(each: Allocation) -> float:
        return lost(each, {"u": 0.2, "c": cost}) + luck * passes

    asking = simplify(
        choice,
        Reward(quality(choice), quality(choice), 0.0, choice.num_parameters),
        lambda value, of: penalised_reward(value, of.num_parameters, 1000),
        tolerance=0.001,
        num_examples=NUM_EXAMPLES,
    )
    scoring = next(asking)
    while True:
        passes += 1
        try:
            scoring = asking.send([quality(each) for each in scoring.choices])
        except StopIteration as stop:
            simple, scored = stop.value
            break
    without_city = choice_of(user=whole, city=())
    assert simple == (without_city if cost == 0.0 else None)
    assert scored[without_city].quality == pytest.approx(0.7 - cost)


def test_what_costs_too_much_alone_is_not_tried_again() -> None:
    whole = ((100, 4),)
    choice = choice_of(user=whole, noise=whole, more=whole)
    # Five times what is tolerated: not seen on some examples.
    result = run(
        space_of("user", "noise", "more"),
        choice,
        lambda each: lost(each, {"u": 0.005}),
        tolerance=0.001,
    )
    _, first, second = result.asked
    assert len(first.choices) == 4
    assert len(second.choices) == 2
    assert result.choice == choice_of(user=whole, noise=(), more=())


def test_something_is_left() -> None:
    space = space_of("user", "item")
    choice = choice_of(user=((100, 4),), item=((100, 4),))
    result = run(space, choice, lambda _: 0.5)
    assert result.choice is not None
    assert sum(tiers(result.choice).values()) == 1


def test_all_that_was_scored_on_all_data_is_told_with_its_reward() -> None:
    whole = ((100, 4),)
    choice = choice_of(user=whole, noise=whole)
    result = run(space_of("user", "noise"), choice, lambda each: lost(each, {"u": 0.1}))
    on_all = [each for scoring in result.asked[1:] for each in scoring.choices if each != choice]
    assert list(result.scored) == on_all
    assert result.scored[on_all[0]].quality == pytest.approx(0.7)
    assert choice not in result.scored


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    tolerance=st.sampled_from([0.0, 0.001, 0.1]),
    price=st.sampled_from([0.0, 0.001, 0.1]),
    mode=st.sampled_from(["multi", "single"]),
)
def test_the_result_is_smaller_of_the_space_and_about_as_good(
    seed: int, tolerance: float, price: float, mode: str
) -> None:
    space = space_of("user", "item", "city", mode=mode)
    rng = np.random.default_rng(seed)
    choice = space.sample(rng, space.full_parameters, removal=0.2)
    qualities: dict[Allocation, float] = {}

    def quality(each: Allocation) -> float:
        return qualities.setdefault(each, 0.5 + 0.1 * float(rng.standard_normal()))

    result = run(space, choice, quality, tolerance=tolerance, price=price)
    total = space.budget
    before = quality(choice) - price * choice.num_parameters / total
    for each in result.scored:
        assert 0 < each.num_parameters < choice.num_parameters
        space.params(each)
    if result.choice is not None:
        assert result.choice in result.scored
        assert result.scored[result.choice].value >= before - tolerance - 1e-12
    else:
        on_some = result.asked[0].choices[1:]
        after = [quality(each) - price * each.num_parameters / total for each in on_some]
        reward = dict(zip(on_some, after))
        assert all(
            reward[each] < before - tolerance or quality(each) < quality(choice) - 10 * tolerance
            for each in on_some
            if each.num_parameters
        )


@given(
    costs=st.lists(st.integers(0, 30), min_size=2, max_size=8),
    both=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=6),
)
def test_what_goes_is_what_is_best_at_each_step(
    costs: list[int], both: list[tuple[int, int]]
) -> None:
    """Though not all is scored again: what two features say is lost when both are gone."""
    names = [f"f{number}" for number in range(len(costs))]
    choice = choice_of(**dict.fromkeys(names, ((100, 4),)))

    def quality(each: Allocation) -> float:
        gone = {n for n, name in enumerate(names) if not each[name].tiers}
        lost = sum(costs[n] for n in gone) + sum(10 for a, b in both if {a, b} <= gone)
        return 0.7 - 1e-4 * lost

    left = choice
    for _ in range(4):
        options = [each for each in simpler(left).values() if each.num_parameters]
        best = max(options, key=quality, default=None)
        if best is None or quality(best) < quality(choice) - 0.0021:
            break
        left = best
    found = run(space_of(*names), choice, quality, tolerance=0.0021).choice or choice
    assert quality(found) == pytest.approx(quality(left))


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=2, max_size=6),
    st.integers(0, 3000),
)
def test_rare_ids_that_are_gone_are_no_loss_of_their_feature(
    costs: list[tuple[int, int]], tolerance: int
) -> None:
    """The same with rare ids, whose loss is a part of that of their feature."""
    all_costs = [cost for rare, frequent in costs for cost in (rare, frequent, rare + frequent)]
    assume(len(set(all_costs)) == len(all_costs))
    names = [f"f{number}" for number in range(len(costs))]
    choice = choice_of(**dict.fromkeys(names, BOTH))

    def quality(each: Allocation) -> float:
        lost = sum(sum(own[: 2 - len(each[name].tiers)]) for name, own in zip(names, costs))
        return 0.7 - 1e-6 * lost

    least, left = 0.7 - 1e-6 * (tolerance + 0.5), choice
    for _ in range(4):
        best = max(simpler(left).values(), key=quality, default=None)
        if best is None or quality(best) < least:
            break
        left = best
    result = run(space_of(*names), choice, quality, tolerance=0.7 - least)
    assert (result.choice or choice) == left
