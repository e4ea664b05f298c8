"""Which choices compete at the end of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from optuna_nis.controller.policy import Policy
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace

# Shares of the budget for each of which the policy proposes choices, and how many of them.
_BUDGET_SHARES = (1.0, 0.5, 0.25, 0.125, 0.0625)
_PROPOSALS_PER_SHARE = 8
# What the policy proposes for a budget should use it: of many draws, those are taken that leave
# less than a tenth.
_DRAWS = 64
_MIN_USE = 0.9


def budgets(space: SearchSpace) -> list[SearchSpace]:
    """The space for its budget and for the shares of it that leave any room."""
    smaller = [int(share * space.budget) for share in _BUDGET_SHARES[1:]]
    return [space, *(space.with_budget(b) for b in smaller if b >= space.min_parameters)]


def proposals(
    policy: Policy, space: SearchSpace, rng: np.random.Generator
) -> list[list[Allocation]]:
    """For each of the :func:`budgets`, the likeliest choices of the policy that use it."""
    groups = []
    for each in budgets(space):
        if each is not space:
            policy = policy.under(each)
        draws, _ = policy.sample(_DRAWS, rng)
        options = np.unique(np.concatenate([policy.mode(), draws]), axis=0)
        options = options[np.argsort(-policy.log_prob(options), kind="stable")]
        choices = [space.allocation(params) for params in policy.params(options)]
        using = [c for c in choices if c.num_parameters >= _MIN_USE * each.budget]
        groups.append((using or choices)[:_PROPOSALS_PER_SHARE])
    return groups


def proposed(
    name: str, propose: Callable[[SearchSpace], Sequence[Allocation]] | None, space: SearchSpace
) -> list[Allocation]:
    """What a function gives for a budget, if it is of the space and within it.

    Raises:
        ValueError: If it is not.
    """
    given = [] if propose is None else list(propose(space))
    for allocation in given:
        space.params(allocation)
        if allocation.num_parameters > space.budget:
            raise ValueError(
                f"`{name}` must keep to the budget of {space.budget} parameters, it gave "
                f"a choice of {allocation.num_parameters}."
            )
    return given
