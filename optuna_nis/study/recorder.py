"""Scored choices as trials of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
import uuid

from optuna import Study, create_trial
from optuna.distributions import BaseDistribution

from optuna_nis.controller.policy import Policy
from optuna_nis.controller.replay import GROUP_KEY, GROUP_SIZE_KEY, LOG_PROB_KEY
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy.reward import Reward
from optuna_nis.study.moments import Moment, is_due, mean_and_std, save_moment
from optuna_nis.study.recording import add_finished_trials
from optuna_nis.study.results import (
    FIDELITY_ATTR,
    NUM_PARAMETERS_ATTR,
    PENALTY_ATTR,
    QUALITY_ATTR,
    SEARCH_ATTR,
    STEP_ATTR,
    save_space,
)

_GROUPS_PER_MOMENT = 4


class TrialRecorder:
    """Writes groups of choices that were scored on the same examples.

    Args:
        study: Where the trials go. It remembers the space.
        space: The space of the choices.
        search_id: The search that scores them.

    Raises:
        ValueError: If the study is of another space.
    """

    def __init__(self, study: Study, space: SearchSpace, search_id: str) -> None:
        save_space(study, space)
        self._study = study
        self._search_id = search_id
        self._groups = 0
        self._last: int | None = None
        self._lag = 0
        self._last_moment = 0
        self._distributions: dict[str, BaseDistribution] = dict(space.distributions())

    def record(
        self,
        params: Sequence[Mapping[str, Any]],
        rewards: Sequence[Reward],
        *,
        fidelity: str,
        step: int,
        log_probs: Sequence[float] | None = None,
    ) -> bool:
        """Add a group of choices, all or none.

        Args:
            params: The parameters of each choice.
            rewards: What each was worth.
            fidelity: How they were scored, ``"supernet"`` or ``"trained"``.
            step: Training step of the supernet at which they were scored.
            log_probs: Log-probability of each under the policy that drew it; None if none did.

        Returns:
            Whether others may have added trials since the last group. To know it costs nothing,
            the numbers of the trials tell.
        """
        group: dict[str, Any] = {GROUP_KEY: uuid.uuid4().hex[:12], GROUP_SIZE_KEY: len(params)}
        trials = []
        for index, (choice, reward) in enumerate(zip(params, rewards)):
            drawn = {} if log_probs is None else {LOG_PROB_KEY: float(log_probs[index])}
            trials.append(
                create_trial(
                    params=dict(choice),
                    distributions=self._distributions,
                    value=reward.value,
                    user_attrs={
                        QUALITY_ATTR: reward.quality,
                        PENALTY_ATTR: reward.penalty,
                        NUM_PARAMETERS_ATTR: reward.num_parameters,
                        FIDELITY_ATTR: fidelity,
                        STEP_ATTR: step,
                        SEARCH_ATTR: self._search_id,
                    },
                    system_attrs=group | drawn,
                )
            )
        # One moment for the whole group, so that trials sort by group whatever their clocks say.
        now = datetime.now()
        for trial in trials:
            trial.datetime_start = trial.datetime_complete = now
        numbers = add_finished_trials(self._study, trials)
        before = numbers[0] - 1 if self._last is None else self._last
        self._lag = numbers[-1] - before
        others = self._last is None or self._lag != len(numbers)
        self._last = numbers[-1]
        self._groups += 1
        return others

    def note(self, policy: Policy) -> None:
        """Note in the study how the policy is doing, now and then.

        Args:
            policy: The policy that has learned the group recorded last.
        """
        num_trials = 0 if self._last is None else self._last + 1
        if self._groups % _GROUPS_PER_MOMENT or not is_due(num_trials, self._last_moment):
            return
        self._last_moment = num_trials
        mean, std = mean_and_std(policy.advantages.tolist())
        save_moment(self._study, Moment(num_trials, policy.entropy(), mean, std, self._lag))
