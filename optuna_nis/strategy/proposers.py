"""Which choices compete at the end of a search: of the policy, by popularity, frequent ids."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from optuna_nis.controller.policy import Policy
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy import baselines
from optuna_nis.strategy.plan import SearchPlan


def budgets(space: SearchSpace, plan: SearchPlan) -> list[SearchSpace]:
    """The space for its budget and for the shares of it that leave any room."""
    smaller = [int(share * space.budget) for share in plan.budget_shares[1:]]
    return [space, *(space.with_budget(b) for b in smaller if b >= space.min_parameters)]


def from_policy(
    policy: Policy, space: SearchSpace, plan: SearchPlan, rng: np.random.Generator
) -> list[list[Allocation]]:
    """For each of the :func:`budgets`, the likeliest choices of the policy that use it.

    For a smaller budget the policy is tilted to it (:meth:`~optuna_nis.Policy.under`).
    """
    groups = []
    for each in budgets(space, plan):
        if each is not space:
            policy = policy.under(each)
        draws, _ = policy.sample(plan.proposal_draws, rng)
        options = np.unique(np.concatenate([policy.mode(), draws]), axis=0)
        options = options[np.argsort(-policy.log_prob(options), kind="stable")]
        choices = [space.allocation(params) for params in policy.params(options)]
        using = [c for c in choices if c.num_parameters >= plan.proposal_use * each.budget]
        groups.append((using or choices)[: plan.proposals])
    return groups


def at_random(
    space: SearchSpace, plan: SearchPlan, rng: np.random.Generator
) -> list[list[Allocation]]:
    """For each of the :func:`budgets`, random choices that use it as a policy's do."""
    return [
        [
            each.sample(rng, rng.uniform(plan.proposal_use, 1.0) * each.budget)
            for _ in range(plan.random_proposals)
        ]
        for each in budgets(space, plan)
    ]


def by_popularity(space: SearchSpace, plan: SearchPlan) -> list[Allocation]:
    """Mixed dimensions for the whole budget of a space that knows how frequent its ids are."""
    if space.mode == "single" or any(spec.mean_counts is None for spec in space.specs):
        return []
    narrowest = baselines.uniform(space, width=1, projected=True)
    if narrowest.num_parameters > space.budget:
        return []
    return [
        baselines.mixed_dimensions(space, alpha=power, on_grid=True)
        for power in plan.popularity_powers
    ]


def one_width(space: SearchSpace) -> list[Allocation]:
    """The full tables if they fit the budget, else the widest uniform ones that do."""
    full = space.full()
    if full.num_parameters <= space.budget:
        return [full]
    for width in sorted({width for spec in space.specs for width in spec.widths}, reverse=True):
        # Not every space has every width.
        with suppress(ValueError):
            found = baselines.uniform(space, width=width, projected=True)
            if space.allocation(space.params(found)).num_parameters <= space.budget:
                return [found]
    return []


def frequent_ids(space: SearchSpace, plan: SearchPlan) -> list[Allocation]:
    """The most frequent ids only: at full width for shares of the budget, and narrower."""
    if space.mode == "single":
        return []
    wanted = [(share, True) for share in plan.frequent_shares]
    if plan.frequent_narrower:
        wanted.append((1.0, False))
    found = []
    for share, full_width in wanted:
        # Where the budget is too small there is none.
        with suppress(ValueError):
            smaller = space.with_budget(int(share * space.budget))
            found.append(baselines.frequent_ids(smaller, full_width=full_width))
    return found
