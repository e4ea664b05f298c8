"""The end of a search: what is proposed once the supernet is trained, and what of it is best."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
import math
from typing import Any

import numpy as np

from optuna_nis.controller.policy import Policy
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.constraint import FloatArray
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy.asking import Request
from optuna_nis.strategy.candidates import RANDOM, Found, find_candidates
from optuna_nis.strategy.journal import Journal
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.pricing import Pricer
from optuna_nis.strategy.proposers import (
    at_random,
    budgets,
    by_popularity,
    frequent_ids,
    from_policy,
    one_width,
)
from optuna_nis.strategy.reward import Reward


class Ending:
    """Finds the candidates of a search.

    Args:
        space: The search space.
        plan: The numbers that shape the search.
    """

    def __init__(self, space: SearchSpace, plan: SearchPlan) -> None:
        self._plan = plan
        self._spaces = budgets(space, plan)
        self._by_popularity = [_widened(by_popularity(each, plan)) for each in self._spaces]
        self._frequent = _widened(frequent_ids(space, plan))
        self._uniform = _widened(one_width(space))

    def find(
        self,
        policy: Policy,
        rng: np.random.Generator,
        journal: Journal,
        reward: Callable[[float, Allocation], Reward],
        pricer: Pricer | None,
        num_batches: int,
        tolerance: float,
    ) -> Generator[Request, Any, Found]:
        """Ask for what is needed to find them.

        Args:
            policy: What the controller has learned.
            rng: Source of the policy's draws.
            journal: Shares what the first of several processes draws.
            reward: The reward of a choice by its quality.
            pricer: Asks for gradients of the loss; None if there are none.
            num_batches: Batches that the supernet was trained on.
            tolerance: What a reward may be lower for the sake of a simpler choice.
        """
        proposals: dict[str, list[list[Allocation]]] = {}
        if pricer is not None:
            # Those for few bits take nothing away from the others.
            each = num_batches / min(len(self._spaces), len(self._plan.budget_shares))
            counts = [math.ceil(share * each) for share in self._plan.price_shares]
            proposals["values"] = yield from pricer.proposals(self._spaces, counts, journal.same)
        space, plan = self._spaces[0], self._plan
        values = pricer.values if pricer is not None else []
        priors = [each.gains(own) for each, own in zip(self._spaces, values)]
        made = journal.of_the_first(
            lambda: {
                "policy": self._with_best(policy, from_policy(policy, space, plan, rng), priors),
                RANDOM: at_random(space, plan, rng),
            }
        )
        proposals = {RANDOM: made[RANDOM], **proposals, "policy": made["policy"]}
        proposals = {origin: [*map(_widened, own)] for origin, own in proposals.items()}
        return (
            yield from find_candidates(
                proposals,
                self._by_popularity,
                self._frequent,
                self._uniform,
                plan,
                reward,
                tolerance,
            )
        )

    def safe(
        self, candidates: Sequence[Allocation], origins: Mapping[Allocation, str]
    ) -> list[Allocation]:
        """The candidates that weights of a supernet do not do justice.

        Args:
            candidates: Best first.
            origins: What proposed each of them.
        """
        found = [each for each in candidates if each in self._frequent]
        found = found if self._plan.keep_frequent else []
        for kind in ("formula", "uniform") if self._plan.keep_simple else ():
            own = [each for each in candidates if origins.get(each) == kind]
            found += [each for each in own if each not in self._frequent][:1]
        return found

    def _with_best(
        self,
        policy: Policy,
        proposals: list[list[Allocation]],
        priors: Sequence[Mapping[str, FloatArray]],
    ) -> list[list[Allocation]]:
        """With what is worth most by all that is known: the rewards, and the prices of blocks."""
        worth = policy.worth(priors or [{} for _ in self._spaces])
        best = [space.best(own) for space, own in zip(self._spaces, worth)]
        return [[c] * (c.num_parameters > 0) + own for c, own in zip(best, proposals)]


def _widened(choices: Sequence[Allocation]) -> list[Allocation]:
    """Choices as they are cheapest, each once."""
    return list(dict.fromkeys(choice.widened() for choice in choices))
