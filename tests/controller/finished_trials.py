"""Finished trials for tests of what learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_nis.controller.replay import Replay
from optuna_nis.space.constraint import AdditiveBudget

BUDGET = AdditiveBudget(4, {"x": {0: 0, 1: 1, 2: 2}, "y": {0: 0, 3: 3}, "z": {0: 0, 1: 1}})
SPACE = {name: CategoricalDistribution(options) for name, options in BUDGET.choices.items()}
EPOCH = datetime(2024, 1, 1)


def trial(
    number: int,
    value: float | None = 1.0,
    params: dict[str, Any] | None = None,
    *,
    second: int | None = None,
    state: TrialState = TrialState.COMPLETE,
    reports: dict[int, float] | None = None,
    attrs: dict[str, Any] | None = None,
    distributions: dict[str, Any] | None = None,
) -> FrozenTrial:
    params = {"x": number % 3, "y": 0, "z": number % 2} if params is None else params
    frozen = optuna.create_trial(
        state=state,
        value=value,
        params=params,
        distributions=distributions or {name: SPACE[name] for name in params},
        intermediate_values=reports,
        system_attrs=attrs,
    )
    frozen.number = number
    frozen.datetime_complete = EPOCH + timedelta(seconds=number if second is None else second)
    return frozen


def replayed(trials: Sequence[FrozenTrial], budget: AdditiveBudget | None = BUDGET) -> Replay:
    replay = Replay(StudyDirection.MAXIMIZE, budget)
    replay.learn(trials)
    return replay


def study_of(trials: Sequence[FrozenTrial], direction: str = "maximize") -> optuna.Study:
    study = optuna.create_study(direction=direction)
    study.add_trials(trials)
    return study
