from __future__ import annotations

from typing import Any

from finished_trials import BUDGET, replayed, study_of, trial
import numpy as np
import optuna
import pytest

from optuna_nis.controller.history import policy_history
from optuna_nis.controller.settings import PolicySettings


def test_history_is_the_replay_at_several_moments() -> None:
    rng = np.random.default_rng(0)
    trials = [trial(number, float(rng.normal())) for number in range(40)]
    history = policy_history(study_of(trials), BUDGET, num_points=4)
    assert history.trial_numbers == [0, 13, 26, 39]
    assert history.choices == {name: tuple(options) for name, options in BUDGET.choices.items()}
    for moment, number in enumerate(history.trial_numbers):
        policy = replayed(trials[: number + 1]).policy
        assert policy is not None
        assert history.entropy[moment] == policy.entropy()
        for name, probabilities in policy.probabilities().items():
            np.testing.assert_array_equal(history.probabilities[name][moment], probabilities)


def test_history_has_no_more_moments_than_trials() -> None:
    history = policy_history(
        study_of([trial(0), trial(1)]), BUDGET, settings=PolicySettings(learning_rate=0.1)
    )
    assert history.trial_numbers == [0, 1]


def test_history_of_a_study_without_parameters_is_empty() -> None:
    assert policy_history(optuna.create_study()).trial_numbers == []
    assert policy_history(study_of([trial(0, 1.0, {})])).choices == {}


@pytest.mark.parametrize("num_points", [0, -1, 2.5, True])
def test_history_refuses_a_number_of_moments(num_points: Any) -> None:
    with pytest.raises(ValueError, match="`num_points` must be a positive integer"):
        policy_history(optuna.create_study(), num_points=num_points)


def test_history_refuses_several_objectives_and_plain_numbers() -> None:
    with pytest.raises(ValueError, match="`study` must have a single objective, got 2"):
        policy_history(optuna.create_study(directions=["minimize", "minimize"]))
    with pytest.raises(TypeError, match="`budget` must be a `SearchSpace`"):
        policy_history(optuna.create_study(), budget=5)  # type: ignore[arg-type]
