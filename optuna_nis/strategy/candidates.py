"""Which choices are scored at the end of a search, and which of them are the candidates."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from optuna_nis.space.allocation import Allocation
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.reward import Reward


@dataclass(frozen=True)
class Scoring:
    """Choices whose quality a search asks for.

    Attributes:
        choices: The choices, to be scored on the same examples with the weights of the moment.
        num_examples: Score on the next so many validation examples, going over them again and
            again; None is all validation data.
    """

    choices: tuple[Allocation, ...]
    num_examples: int | None


@dataclass(frozen=True)
class Found:
    """What is known at the end of a search.

    Attributes:
        rewards: Of all choices that were scored on all validation data, with shared weights.
        candidates: Those to be trained for real, in the order of their rewards.
    """

    rewards: dict[Allocation, Reward]
    candidates: list[Allocation]


def find_candidates(
    proposals: Sequence[Sequence[Allocation]],
    by_popularity: Sequence[Sequence[Allocation]],
    frequent: Sequence[Allocation],
    plan: SearchPlan,
    reward: Callable[[float, Allocation], Reward],
) -> Generator[Scoring, Sequence[float], Found]:
    """Ask for scores and find the candidates.

    Args:
        proposals: Of the policy, for each share of the budget.
        by_popularity: Sizes by popularity, for each share of the budget.
        frequent: Choices of the most frequent ids alone.
        plan: The numbers that shape the search.
        reward: The reward of a choice by its quality.
    """
    finalists = [[choice] for choice in (yield from _finalists(proposals, plan))]
    # It is for the whole budget that a supernet is most unfair to what it has trained least.
    groups = [finalists[0], by_popularity[0], frequent]
    groups += [own + [*others] for own, others in zip(finalists[1:], by_popularity[1:])]
    distinct = _distinct(groups)
    qualities = yield Scoring(distinct, None)
    rewards = {choice: reward(q, choice) for q, choice in zip(qualities, distinct)}

    def value(choice: Allocation) -> float:
        return rewards[choice].value

    best = {max(group, key=value) for group in groups if group}
    return Found(rewards, sorted(best, key=value, reverse=True))


def _finalists(
    proposals: Sequence[Sequence[Allocation]], plan: SearchPlan
) -> Generator[Scoring, Sequence[float], list[Allocation]]:
    """For each share of the budget, the best of the policy's proposals on some examples."""
    distinct = _distinct(proposals)
    total = np.zeros(len(distinct))
    for _ in range(plan.proposal_groups):
        qualities = np.array((yield Scoring(distinct, plan.score_examples)))
        total += np.where(np.isnan(qualities), -np.inf, qualities)
    value = dict(zip(distinct, total.tolist()))
    return [max(group, key=value.__getitem__) for group in proposals]


def _distinct(groups: Sequence[Sequence[Allocation]]) -> tuple[Allocation, ...]:
    return tuple(dict.fromkeys(choice for group in groups for choice in group))
