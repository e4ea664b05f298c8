"""A search as its study knows it, written by the first of its processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from optuna import Study

from optuna_nis._logging import get_logger
from optuna_nis.controller.policy import Policy
from optuna_nis.controller.sampler import NISSampler
from optuna_nis.controller.settings import PolicySettings
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.processes import Processes
from optuna_nis.strategy.reward import Reward
from optuna_nis.strategy.shortlist import Candidate
from optuna_nis.study.keys import DROPPED, SUPERNET, TRAINED
from optuna_nis.study.recording import TrialRecorder
from optuna_nis.study.searches import Search, join, new_search_id, num_groups, num_scored
from optuna_nis.study.settings import plan_of, save_plan, save_space

_T = TypeVar("_T")

_logger = get_logger(__name__)


def plan_in(study: Study | None) -> SearchPlan | None:
    """The plan that a study was searched with, None if it was not.

    Raises:
        TypeError: If it is no study.
    """
    if not isinstance(study, Study | None):
        raise TypeError(f"`study` must be a study of Optuna, got {study!r}.")
    known = None if study is None else plan_of(study)
    return None if known is None else SearchPlan.from_dict(known)


def sampler_of(study: Study, space: SearchSpace) -> NISSampler:
    """The sampler of a study that is searched.

    Raises:
        ValueError: If it is no NISSampler, or its budget is another one than the space.
    """
    sampler = study.sampler
    if isinstance(sampler, NISSampler) and sampler.budget == space:
        return sampler
    found = type(sampler).__name__
    if isinstance(sampler, NISSampler):
        found += f" with `budget={sampler.budget!r}`"
    raise ValueError(
        f"`study` must have a NISSampler with `budget=space`, {space!r}, its sampler is {found}."
    )


class Journal:
    """What a search writes into its study, and reads there.

    Args:
        study: The study.
        space: The search space.
        processes: The processes that train together; all of them read what the first one does.
        plan: Its numbers, written into a study that has none.
        search_id: The id of the search; None makes a new one.
        seed: The seed of the search.

    Raises:
        ValueError: If the study's sampler is no NISSampler of the space or has other settings than
            the plan, or the study is of another space.
    """

    def __init__(
        self,
        study: Study,
        space: SearchSpace,
        processes: Processes,
        plan: SearchPlan,
        *,
        search_id: str | None,
        seed: int,
    ) -> None:
        self._sampler = sampler_of(study, space)
        own = self._sampler.settings
        if plan.policy not in (own, PolicySettings()):
            raise ValueError(
                "`plan.policy` must be the settings of the sampler of `study`, by which the "
                f"policy learns: got {plan.policy} and {own}."
            )
        self._study = study
        self._processes = processes
        if processes.is_first:
            save_space(study, space)
            if plan_of(study) is None:
                save_plan(study, plan.to_dict())
        self.search: Search = self.of_the_first(
            lambda: join(study, search_id or new_search_id(), seed=seed)
        )
        if processes.is_first:
            self._recorder = TrialRecorder(study, space, self.search.id)

    def num_updates(self, most: int) -> int:
        """Updates that the search has made already, at most so many."""
        return self.of_the_first(
            lambda: min(num_groups(self._study, self.search.id, SUPERNET), most)
        )

    def policy(self) -> Policy:
        """The policy that the trials of the study add up to, in the first process."""
        return self._sampler.policy(self._study)

    def write(
        self, params: Sequence[Mapping[str, Any]], rewards: Sequence[Reward], **how: Any
    ) -> bool:
        """Write a group of scored choices; as :meth:`TrialRecorder.record`.

        Returns:
            Whether others may have added trials since the last group; False except in the first
            process.
        """
        return self._processes.is_first and self._recorder.record(params, rewards, **how)

    def note(self, policy: Policy) -> None:
        """Note how the policy is doing."""
        if self._processes.is_first:
            self._recorder.note(policy)

    def tell(self, text: str) -> None:
        """Tell people how the search goes."""
        if self._processes.is_first:
            _logger.info(text)

    def tell_progress(self, done: int, updates: int, mean_reward: float) -> None:
        """Tell people, with every quarter of the updates, how good choices are by now."""
        quarter, before = (4 * (done - k) // updates for k in (0, 1))
        if quarter > before:
            self.tell(
                f"{done} of {updates} updates: the mean reward of a group is {mean_reward:.4f}."
            )

    def same(self, value: _T) -> _T:
        """What the first process has, in all processes."""
        return self._processes.share(value)

    def of_the_first(self, make: Callable[[], _T]) -> _T:
        """What the first process makes, in all processes."""
        made: Any = make() if self._processes.is_first else None
        shared: _T = self._processes.share(made)
        return shared


def write_found(
    study: Study,
    space: SearchSpace,
    search_id: str,
    found: Sequence[Candidate],
    reward: Callable[[float, Allocation], Reward],
    step: int,
    origins: Mapping[Allocation, str],
) -> None:
    """Write the choices that a search has trained for real, unless that was done before.

    Args:
        study: The study.
        space: The search space.
        search_id: The id of the search.
        found: The choices; those that were dropped before the last round are written as such.
        reward: The reward of a choice by its metric.
        step: The last training step of the supernet.
        origins: What proposed them, as far as that is known.
    """
    for fidelity, is_finalist in ((DROPPED, False), (TRAINED, True)):
        alike = [each for each in found if each.is_finalist == is_finalist]
        if num_scored(study, search_id, fidelity) < len(alike):
            TrialRecorder(study, space, search_id).record(
                [space.params(each.allocation) for each in alike],
                [reward(each.val_metric, each.allocation) for each in alike],
                fidelity=fidelity,
                step=step,
                origins=[origins.get(each.allocation) for each in alike],
            )
