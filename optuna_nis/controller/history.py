"""How the policy of a study came about."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from optuna import Study

from optuna_nis.controller.replay import FINISHED, Replay, replay_order
from optuna_nis.controller.settings import PolicySettings, settings_of
from optuna_nis.space.constraint import Choice, Constraint, FloatArray, check_budget


@dataclass(frozen=True)
class PolicyHistory:
    """A policy at several moments of a study.

    Attributes:
        trial_numbers: Number of the trial that was learned last at each moment.
        choices: Options of every parameter.
        probabilities: For every parameter, the probability of each option at each moment, shape
            ``(moments, options)``.
        entropy: Entropy of the policy in nats at each moment.
    """

    trial_numbers: list[int] = field(default_factory=list)
    choices: dict[str, tuple[Choice, ...]] = field(default_factory=dict)
    probabilities: dict[str, FloatArray] = field(default_factory=dict)
    entropy: list[float] = field(default_factory=list)


def policy_history(
    study: Study,
    budget: Constraint | None = None,
    num_points: int = 50,
    settings: PolicySettings | None = None,
) -> PolicyHistory:
    """How the policy of a study came about, by replay of its finished trials.

    Args:
        study: The study, whatever sampler it used.
        budget: The ``budget`` of the study's :class:`~optuna_nis.NISSampler`.
        num_points: Largest number of moments, spread evenly over the trials; the last is today.
        settings: The ``settings`` of the study's sampler; by default those that it has noted in
            the study, from its eighth trial on.

    Returns:
        The history; it is empty while no trial has finished.

    Raises:
        TypeError: If the budget is not a constraint.
        ValueError: If the study has several objectives or ``num_points`` is not positive.

    Example:
        >>> import optuna
        >>> from optuna_nis.controller.sampler import NISSampler
        >>> study = optuna.create_study(sampler=NISSampler(seed=0))
        >>> study.optimize(lambda trial: trial.suggest_categorical("x", [1, 2, 3]), n_trials=20)
        >>> history = policy_history(study, num_points=5)
        >>> history.trial_numbers
        [0, 5, 9, 14, 19]
        >>> history.probabilities["x"].shape
        (5, 3)
    """
    if isinstance(num_points, bool) or not isinstance(num_points, int) or num_points < 1:
        raise ValueError(f"`num_points` must be a positive integer, got {num_points!r}.")
    check_budget(budget)
    if len(study.directions) > 1:
        raise ValueError(
            f"`study` must have a single objective, got {len(study.directions)} directions."
        )
    trials = sorted(study.get_trials(deepcopy=False, states=FINISHED), key=replay_order)
    replay = Replay(study.direction, budget, settings or settings_of(study))
    replay.expect(trials)
    if replay.policy is None or not trials:
        return PolicyHistory()
    ends = np.unique(np.linspace(1, len(trials), min(num_points, len(trials))).round().astype(int))
    logits = []
    start = 0
    for end in ends.tolist():
        replay.learn(trials[start:end])
        start = end
        logits.append(replay.policy.logits)
    probabilities, entropy = replay.policy.summaries(logits)
    return PolicyHistory(
        trial_numbers=[trials[end - 1].number for end in ends.tolist()],
        choices=dict(replay.policy.choices),
        probabilities=probabilities,
        entropy=entropy.tolist(),
    )
