from __future__ import annotations

import numpy as np
import pytest

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace
from optuna_nis.controller.policy import Policy
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.proposers import (
    at_random,
    budgets,
    by_popularity,
    frequent_ids,
    from_policy,
    one_width,
)

ZIPF = [100_000 // (rank + 1) for rank in range(1_000)]


def _space(budget: float = 0.25) -> SearchSpace:
    return SearchSpace(
        [EmbeddingSpec.from_counts("user", ZIPF, 32), EmbeddingSpec.from_counts("city", ZIPF, 8)],
        budget=budget,
    )


def test_the_policy_proposes_for_each_budget_what_uses_it() -> None:
    space, plan = _space(), SearchPlan()
    groups = from_policy(Policy(constraint=space), space, plan, np.random.default_rng(0))
    assert len(groups) == len(budgets(space, plan)) == 5
    for group, share in zip(groups, plan.budget_shares):
        assert 1 <= len(group) <= plan.proposals
        for choice in group:
            assert 0.9 * share * space.budget <= choice.num_parameters <= share * space.budget


def test_no_choice_without_a_row_is_proposed() -> None:
    # Of one feature, most draws for a small budget keep nothing, and none uses nearly all of it.
    space = SearchSpace([EmbeddingSpec("user", 300, 16, row_blocks=[200, 100])], budget=0.9)
    plan = SearchPlan(proposal_use=0.5, random_proposals=20)
    for seed in range(5):
        policy = Policy(constraint=space)
        rng = np.random.default_rng(seed)
        for group in [*from_policy(policy, space, plan, rng), *at_random(space, plan, rng)]:
            assert all(choice.num_parameters for choice in group)


def test_smaller_budgets_than_any_choice_are_left_out() -> None:
    space = SearchSpace([EmbeddingSpec("user", 1000, 8)], budget=60)
    assert len(budgets(space, SearchPlan())) == 1
    assert [each.budget for each in budgets(space, SearchPlan(budget_shares=(1.0,)))] == [60]


@pytest.mark.parametrize(
    ("precisions", "budget", "further"),
    [
        ((32, 4), 0.3, [1 / 64, 1 / 256]),
        ((4,), 0.3, [1 / 64, 1 / 256]),
        ((32, 4), 0.1, [1 / 64]),
        ((32, 4), 0.05, []),
        ((32,), 1.0, []),
    ],
)
def test_large_budgets_of_few_bits_reach_down_as_far_as_small_ones(
    precisions: tuple[int, ...], budget: float, further: list[float]
) -> None:
    space = SearchSpace([EmbeddingSpec("user", 10_001, 15, precisions=precisions)], budget=budget)
    found = [each.budget / space.budget for each in budgets(space, SearchPlan())]
    assert found == pytest.approx([1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, *further], rel=0.01)
    assert len(budgets(space, SearchPlan(further_shares=()))) == 5


def test_sizes_by_popularity_need_counts_and_room() -> None:
    plan = SearchPlan(popularity_powers=(0.2, 0.4, 0.6))
    found = by_popularity(_space(), plan)
    assert len(found) == 3
    assert all(choice.num_parameters <= _space().budget for choice in found)
    assert by_popularity(_space(), SearchPlan(popularity_powers=())) == []
    unknown = SearchSpace([EmbeddingSpec("user", 1000, 32)], budget=0.25)
    assert by_popularity(unknown, plan) == []
    narrow = SearchSpace([EmbeddingSpec.from_counts("user", ZIPF, 32)], budget=500)
    assert by_popularity(narrow, plan) == []
    single = SearchSpace(_space().specs, budget=0.25, mode="single")
    assert by_popularity(single, plan) == []


@pytest.mark.parametrize(
    ("budget", "rivals"),
    [
        (0.5, ["350x32", "150x32", "350x32"]),
        (0.1, ["50x32", "50x32", "150x16"]),
        (0.05, ["50x32", "50x32"]),
        (0.04, ["50x14"]),
    ],
)
def test_frequent_ids_compete_as_far_as_the_budget_goes(budget: float, rivals: list[str]) -> None:
    space = SearchSpace([EmbeddingSpec("item", 1000, 32)], budget=budget)
    found = [str(rival["item"]) for rival in frequent_ids(space, SearchPlan())]
    assert found == [f"item: {tier} (of 1000x32)" for tier in rivals]
    single = SearchSpace([EmbeddingSpec("item", 1000, 32)], budget=budget, mode="single")
    assert frequent_ids(single, SearchPlan()) == []


def test_formulas_are_tried_with_the_precisions_that_go_furthest() -> None:
    precisions = (32, 8, 4, 2)
    space = SearchSpace(
        [
            EmbeddingSpec.from_counts("user", ZIPF, 32, precisions=precisions),
            EmbeddingSpec.from_counts("city", ZIPF, 8, precisions=precisions),
        ],
        budget="10%",
    )

    def bits(choices: list[Allocation]) -> list[set[int]]:
        return [{t.bits for table in each.values() for t in table.tiers} for each in choices]

    plan = SearchPlan(popularity_powers=(0.2, 0.4), frequent_shares=(1.0,))
    popular, frequent, uniform = (
        by_popularity(space, plan),
        frequent_ids(space, plan),
        one_width(space),
    )
    assert bits(popular) == [{4}, {4}, {2}, {2}]
    assert bits(frequent) == [{4}, {4}, {2}, {2}]
    assert bits(uniform) == [{32}, {8}, {4}, {2}]
    # With 2 bits a number, all rows at full width.
    assert uniform[-1] == space.with_precisions([2]).full()
    for choice in (*popular, *frequent, *uniform):
        assert space.fits(choice)
        assert space.allocation(space.params(choice)) == choice


def test_features_of_other_precisions_have_the_nearest_that_is_theirs() -> None:
    space = SearchSpace(
        [
            EmbeddingSpec.from_counts("user", ZIPF, 32, precisions=(8, 4)),
            EmbeddingSpec.from_counts("city", ZIPF, 8),
            EmbeddingSpec.from_counts("shop", ZIPF, 8, precisions=(16, 2)),
        ],
        budget="30%",
    )
    plan = SearchPlan(popularity_powers=(0.3,), frequent_shares=(1.0,), frequent_narrower=False)
    for choices, bits in (
        (one_width(space), [(8, 32, 16), (8, 32, 2), (4, 32, 2)]),
        (by_popularity(space, plan), [(4, 32, 2)]),
        (frequent_ids(space, plan), [(4, 32, 2)]),
    ):
        assert [tuple(t.tiers[0].bits for t in each.values()) for each in choices] == bits
        for choice in choices:
            assert space.fits(choice)
            assert space.allocation(space.params(choice)) == choice
