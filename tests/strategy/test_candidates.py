"""Which choices become candidates, with qualities that are given for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import math

import pytest

from optuna_nis import Allocation, EmbeddingSpec, SearchPlan, SearchSpace, TableAllocation, Tier
from optuna_nis.strategy import candidates
from optuna_nis.strategy.candidates import Found, find_candidates
from optuna_nis.strategy.reward import Reward, penalised_reward
from optuna_nis.strategy.scoring import Scoring

SPACE = SearchSpace(
    [EmbeddingSpec(name, 8, 8, row_blocks=[1] * 8) for name in ("user", "item")], budget=1.0
)
PLAN = SearchPlan(proposal_groups=2)


def choice(users: int, items: int = 0) -> Allocation:
    """So many full rows of each."""
    tables = (("user", users), ("item", items))
    return Allocation(TableAllocation(n, 8, 8, (Tier(k, 8),) * (k > 0)) for n, k in tables)


def found(
    proposals: Mapping[str, Sequence[Sequence[Allocation]]],
    quality: Mapping[Allocation, float],
    *,
    by_popularity: Sequence[Sequence[Allocation]] = ((), ()),
    frequent: Sequence[Allocation] = (),
    uniform: Sequence[Allocation] = (),
    tolerance: float = 0.0,
) -> Found:
    """What is found where all that is not named is worth nothing."""

    def reward(value: float, of: Allocation) -> Reward:
        return penalised_reward(value, of.num_parameters, SPACE.budget)

    asking = find_candidates(
        proposals,
        by_popularity,
        frequent,
        uniform,
        PLAN,
        reward,
        tolerance,
    )
    scoring: Scoring = next(asking)
    while True:
        try:
            scoring = asking.send([quality.get(each, 0.0) for each in scoring.choices])
        except StopIteration as stop:
            result: Found = stop.value
            return result


def test_values_and_policy_compete_for_one_place_for_the_whole_budget() -> None:
    policy, values, random = choice(1, 7), choice(7, 1), choice(4, 4)
    quality = {policy: 0.6, values: 0.7, random: 0.5}
    proposals: dict[str, list[list[Allocation]]] = {
        "random": [[random], []],
        "values": [[values], []],
        "policy": [[policy], []],
    }
    result = found(proposals, quality)
    assert result.candidates == [values, random]
    result = found(proposals, quality | {policy: 0.8})
    assert result.candidates == [policy, random]
    assert result.origins == {random: "random", values: "values", policy: "policy"} | {
        each: "policy" for each in result.origins if each not in quality
    }


def test_for_a_smaller_budget_all_compete_for_one_place() -> None:
    whole = [choice(k, 8 - k) for k in range(1, 7)]
    small = [choice(k, 3 - k) for k in range(4)]
    quality = {each: 0.5 + 0.01 * index for index, each in enumerate([*small, *whole])}
    proposals = {
        "random": [[whole[0]], [small[0]]],
        "values": [[whole[1]], [small[1]]],
        "policy": [[whole[2]], [small[2]]],
    }
    result = found(
        proposals,
        quality,
        by_popularity=([whole[3]], [small[3]]),
        frequent=[whole[4]],
        uniform=[whole[5]],
    )
    # Uniform, frequent, by popularity, of the two, random; and the best for less.
    best = [whole[5], whole[4], whole[3], whole[2], whole[0], small[3]]
    assert result.candidates == best
    assert result.origins[whole[4]] == result.origins[small[3]] == "formula"


@pytest.mark.parametrize("quality", [math.nan, math.inf, -math.inf])
def test_a_quality_that_is_no_number_is_last(quality: float) -> None:
    policy = [choice(k, 6) for k in range(1, 4)]
    work = candidates._finalists({"policy": [policy]}, SearchPlan(proposal_groups=1))
    assert next(work).choices == tuple(policy)
    with pytest.raises(StopIteration) as ended:
        work.send([0.4, quality, 0.3])
    assert ended.value.value == {"policy": [[policy[0]]]}


def test_of_each_kind_the_best_on_some_examples_is_scored_on_all_data() -> None:
    policy = [choice(k, 6) for k in range(1, 8)]
    quality = {each: 0.5 + 0.01 * index for index, each in enumerate(policy)}
    result = found({"policy": [policy, []]}, quality)
    assert result.candidates == [policy[-1]]
    assert not {*policy[:-1]} & {*result.rewards}


def test_the_best_competes_without_what_its_quality_does_not_show() -> None:
    best, other, small = choice(4, 4), choice(2, 2), choice(4, 0)
    quality = {best: 0.8, other: 0.6, small: 0.795}
    proposals: dict[str, list[list[Allocation]]] = {"policy": [[best], [other]]}
    assert found(proposals, quality).candidates == [best, other]
    result = found(proposals, quality, tolerance=0.01)
    assert result.candidates == [best, small, other]
    assert result.rewards[small].quality == 0.795
    assert result.origins[small] == "policy"
    assert list(result.origins) == list(result.rewards)


def test_what_is_known_already_keeps_what_proposed_it() -> None:
    best, small = choice(4, 4), choice(4, 0)
    quality = {best: 0.8, small: 0.8}
    result = found({"policy": [[best], []]}, quality, uniform=[small])
    assert result.origins[small] == "uniform"
    assert list(result.origins) == list(result.rewards)
    assert set(result.candidates) == {best, small}


@pytest.mark.parametrize("turned", [False, True])
def test_equals_stay_in_the_order_in_which_they_were_proposed(turned: bool) -> None:
    # Several processes must agree about it.
    uniform, formula, frequent, policy = (choice(k, 8 - k) for k in (1, 3, 5, 7))
    small = choice(1, 1)
    every = [uniform, formula, frequent, policy, small]
    if turned:
        uniform, formula, frequent, policy = policy, frequent, formula, uniform
        every = [uniform, formula, frequent, policy, small]
    result = found(
        {"policy": [[policy], [small]]},
        dict.fromkeys(every, 0.5),
        by_popularity=([formula], []),
        frequent=[frequent],
        uniform=[uniform],
    )
    assert result.candidates == every
