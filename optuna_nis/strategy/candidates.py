"""Which choices are scored at the end of a search, and which of them are the candidates."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optuna_nis.space.allocation import Allocation
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.reward import Reward
from optuna_nis.strategy.scoring import Scoring
from optuna_nis.strategy.simplifying import simplify

RANDOM = "random"


@dataclass(frozen=True)
class Found:
    """What is known at the end of a search.

    Attributes:
        rewards: Of all choices that were scored on all validation data, with shared weights.
        candidates: Those to be trained for real, in the order of their rewards.
        origins: What proposed each of the choices scored: ``"policy"``, ``"values"``,
            ``"random"``, ``"formula"`` or ``"uniform"``; of several that proposed the same one,
            what is simplest.
    """

    rewards: dict[Allocation, Reward]
    candidates: list[Allocation]
    origins: dict[Allocation, str]


def find_candidates(
    proposals: Mapping[str, Sequence[Sequence[Allocation]]],
    by_popularity: Sequence[Sequence[Allocation]],
    frequent: Sequence[Allocation],
    uniform: Sequence[Allocation],
    plan: SearchPlan,
    reward: Callable[[float, Allocation], Reward],
    tolerance: float,
) -> Generator[Scoring, Sequence[float], Found]:
    """Ask for scores and find the candidates.

    Args:
        proposals: By what made them, for each share of the budget; the simplest first.
        by_popularity: Sizes by popularity, for each share of the budget.
        frequent: Choices of the most frequent ids alone.
        uniform: Choices of one width for all.
        plan: The numbers that shape the search.
        reward: The reward of a choice by its quality.
        tolerance: What a reward may be lower for the sake of a simpler choice.
    """
    finalists = yield from _finalists(proposals, plan)
    drawn = finalists.pop(RANDOM, [[] for _ in by_popularity])
    found = [_distinct(own[index] for own in finalists.values()) for index in range(len(drawn))]
    # It is for the whole budget that a supernet is most unfair to what it has trained least.
    groups = [uniform, by_popularity[0], frequent, drawn[0], found[0]]
    groups += [[*each, *own, *more] for each, own, more in zip(by_popularity, drawn, found)][1:]
    origins = dict.fromkeys(uniform, "uniform")
    formulas = _distinct([*by_popularity, frequent])
    origins |= {choice: "formula" for choice in formulas if choice not in origins}
    for origin, own in {RANDOM: drawn, **finalists}.items():
        origins |= {choice: origin for choice in _distinct(own) if choice not in origins}
    qualities = yield Scoring(tuple(origins), None)
    rewards = {choice: reward(q, choice) for q, choice in zip(qualities, origins)}

    def value(choice: Allocation) -> float:
        return rewards[choice].value

    best = list(dict.fromkeys(max(group, key=value) for group in groups if group))
    top = max(best, key=value)
    simple, more = yield from simplify(
        top,
        rewards[top],
        reward,
        tolerance=tolerance,
        num_examples=plan.score_examples,
    )
    rewards |= more
    origins |= {choice: origins[top] for choice in more if choice not in origins}
    if simple is not None and simple not in best:
        best.append(simple)
    return Found(rewards, sorted(best, key=value, reverse=True), origins)


def _finalists(
    proposals: Mapping[str, Sequence[Sequence[Allocation]]], plan: SearchPlan
) -> Generator[Scoring, Sequence[float], dict[str, list[list[Allocation]]]]:
    """Of the proposals of each kind for each share of the budget, the best on some examples."""
    distinct = _distinct(group for own in proposals.values() for group in own)
    total = np.zeros(len(distinct))
    for _ in range(plan.proposal_groups):
        qualities = np.array((yield Scoring(distinct, plan.score_examples)))
        total += np.where(np.isfinite(qualities), qualities, -np.inf)
    value = dict(zip(distinct, total.tolist()))
    return {
        origin: [[max(group, key=value.__getitem__)] if group else [] for group in own]
        for origin, own in proposals.items()
    }


def _distinct(groups: Iterable[Sequence[Allocation]]) -> tuple[Allocation, ...]:
    return tuple(dict.fromkeys(choice for group in groups for choice in group))
