"""Which choices compete at the end of a search: of the policy, by popularity, frequent ids."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from optuna_nis.controller.policy import Policy
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import replace_precisions
from optuna_nis.strategy import baselines
from optuna_nis.strategy.plan import SearchPlan

# Formulas know nothing of precisions: they are tried with so many of the lowest ones, whose
# numbers are worth nearly as much and cost least.
_LOW_PRECISIONS = 2
# Least share of the full tables in float32 that is proposed for where numbers have fewer bits.
_LEAST_OF_FULL = 1 / 1024


def budgets(space: SearchSpace, plan: SearchPlan) -> list[SearchSpace]:
    """The space for its budget and for the shares of it that leave any room."""
    shares = [*plan.budget_shares[1:]]
    if space.precisions[-1] < 32:
        # A budget that was given as a share was rounded down.
        most, least = space.budget + 1, _LEAST_OF_FULL * space.full_parameters
        shares += [share for share in plan.further_shares if share * most >= least]
    smaller = [int(share * space.budget) for share in shares]
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
        # A model of no table may be best by a metric that takes ties for hits.
        choices = [choice for choice in choices if choice.num_parameters]
        least = plan.proposal_use * each.budget_nbytes
        using = [choice for choice in choices if choice.nbytes() >= least]
        groups.append((using or choices)[: plan.proposals])
    return groups


def at_random(
    space: SearchSpace, plan: SearchPlan, rng: np.random.Generator
) -> list[list[Allocation]]:
    """For each of the :func:`budgets`, random choices that use it as a policy's do."""
    groups = []
    for each in budgets(space, plan):
        choices = [
            each.sample(rng, rng.uniform(plan.proposal_use, 1.0) * each.budget)
            for _ in range(plan.random_proposals)
        ]
        groups.append([choice for choice in choices if choice.num_parameters])
    return groups


def by_popularity(space: SearchSpace, plan: SearchPlan) -> list[Allocation]:
    """Mixed dimensions for the whole budget of a space that knows how frequent its ids are."""
    if space.mode == "single" or any(spec.mean_counts is None for spec in space.specs):
        return []
    found = []
    for each in of_low_precision(space).values():
        if each.fits(baselines.uniform(each, width=1, projected=True)):
            found += [
                baselines.mixed_dimensions(each, alpha=power, on_grid=True)
                for power in plan.popularity_powers
            ]
    return found


def one_width(space: SearchSpace) -> list[Allocation]:
    """For each precision the full tables if they fit the budget, else the widest that do."""
    found = [_one_width(each) for each in _of_one_precision(space, space.precisions).values()]
    return [choice for own in found for choice in own]


def _one_width(space: SearchSpace) -> list[Allocation]:
    full = space.full()
    if space.fits(full):
        return [full]
    for width in sorted({width for spec in space.specs for width in spec.widths}, reverse=True):
        # Not every space has every width.
        with suppress(ValueError):
            found = baselines.uniform(space, width=width, projected=True)
            if space.fits(space.allocation(space.params(found))):
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
    for each in of_low_precision(space).values():
        for share, full_width in wanted:
            # Where the budget is too small there is none.
            with suppress(ValueError):
                smaller = each.with_budget(int(share * each.budget))
                found.append(baselines.frequent_ids(smaller, full_width=full_width))
    return found


def of_low_precision(space: SearchSpace) -> dict[int, SearchSpace]:
    """The space with each of the precisions with which a budget goes furthest, by their bits.

    A feature that has not that precision has its next lower one, or its lowest.
    """
    return _of_one_precision(space, space.precisions[-_LOW_PRECISIONS:])


def _of_one_precision(space: SearchSpace, precisions: Sequence[int]) -> dict[int, SearchSpace]:
    found: dict[int, SearchSpace] = {}
    known = set()
    for bits in precisions:
        each = tuple(
            next((own for own in spec.precisions if own <= bits), spec.precisions[-1])
            for spec in space.specs
        )
        if each in known:
            continue
        known.add(each)
        if all(spec.precisions == (own,) for spec, own in zip(space.specs, each)):
            found[bits] = space
            continue
        specs = [replace_precisions(spec, (own,)) for spec, own in zip(space.specs, each)]
        # Where the budget is too small there is none.
        with suppress(ValueError):
            found[bits] = SearchSpace(specs, budget=space.budget, mode=space.mode)
    return found
