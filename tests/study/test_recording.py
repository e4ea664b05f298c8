from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
import pytest

from optuna_nis import EmbeddingSpec, NISSampler, SearchSpace, penalised_reward
from optuna_nis.study import results
from optuna_nis.study.moments import moments_of
from optuna_nis.study.recording import TrialRecorder, add_finished_trials


def _trials(count: int) -> list[FrozenTrial]:
    distribution = CategoricalDistribution((0, 4, 8))
    return [
        optuna.create_trial(
            params={"x": 4 * (i % 3)},
            distributions={"x": distribution},
            value=(0.0, 1 / 7, float("inf"), 3 / 7, None)[i],
            state=TrialState.PRUNED if i > 2 else TrialState.COMPLETE,
            user_attrs={"quality": i},
            system_attrs={"nis:group": "g"},
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("kind", ["memory", "sqlite", "journal"])
def test_as_if_added_one_by_one(kind: str, tmp_path: Path) -> None:
    storages = {
        "memory": lambda: None,
        "sqlite": lambda: f"sqlite:///{tmp_path}/study.db",
        "journal": lambda: JournalStorage(JournalFileBackend(str(tmp_path / "study.journal"))),
    }
    study = optuna.create_study(storage=storages[kind]())
    trials = _trials(5)
    study.add_trial(trials[0])
    running = study.ask()
    assert add_finished_trials(study, trials[1:]) == [2, 3, 4, 5]
    assert add_finished_trials(study, []) == []
    study.tell(running, 3.0)
    assert [trial.number for trial in study.trials] == list(range(6))
    found = [trial for trial in study.trials if trial.number != running.number]
    for wanted, trial in zip(trials, found):
        assert trial.params == wanted.params
        assert trial.distributions == wanted.distributions
        assert trial.value == wanted.value
        assert trial.user_attrs == wanted.user_attrs
        assert trial.system_attrs == wanted.system_attrs
        assert trial.state == wanted.state
        assert trial.datetime_complete == wanted.datetime_complete
    assert study.ask().number == 6


def test_all_or_none(tmp_path: Path) -> None:
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    trials = _trials(3)
    trials[1].user_attrs["quality"] = object()
    with pytest.raises(TypeError):
        add_finished_trials(study, trials)
    assert study.trials == []


SPACE = SearchSpace([EmbeddingSpec("user", 100, 8), EmbeddingSpec("item", 900, 8)], budget=0.5)


def record(
    study: optuna.Study, fidelity: str, qualities: list[float], reference: float | None = None
) -> list[dict[str, Any]]:
    """A group of random choices of the given qualities."""
    rng = np.random.default_rng(len(study.trials))
    choices = [SPACE.sample(rng, SPACE.budget) for _ in qualities]
    params = [SPACE.params(choice) for choice in choices]
    rewards = [
        penalised_reward(quality, choice.num_parameters, SPACE.budget)
        for quality, choice in zip(qualities, choices)
    ]
    recorder = TrialRecorder(study, SPACE, "s")
    recorder.record(params, rewards, fidelity=fidelity, step=0, reference=reference)
    return params


@pytest.mark.parametrize("storage", [None, "sqlite://"])
def test_the_best_trial_is_one_that_was_trained(storage: str | None) -> None:
    study = optuna.create_study(direction="maximize", storage=storage)
    record(study, "supernet", [0.9, 0.8])
    record(study, "validated", [0.85])
    with pytest.raises(ValueError, match=r"No trials are completed|Record does not exist"):
        study.best_trial  # noqa: B018
    assert results.best_trial(study).number == 2
    record(study, "dropped", [0.8])
    with pytest.raises(ValueError, match=r"No trials are completed|Record does not exist"):
        study.best_trial  # noqa: B018
    assert results.best_trial(study).number == 3
    trained = record(study, "trained", [0.6, 0.7])
    record(study, "supernet", [0.95, 0.2])
    assert study.best_trial.number == results.best_trial(study).number == 5
    assert study.best_value == pytest.approx(0.7)
    assert study.best_params == trained[1]
    states = [TrialState.PRUNED] * 4 + [TrialState.COMPLETE] * 2 + [TrialState.PRUNED] * 2
    assert [trial.state for trial in study.trials] == states
    assert all(not trial.intermediate_values for trial in study.trials)


@pytest.mark.parametrize("marked", [False, True])
def test_studies_whose_trials_are_all_complete_say_the_same(marked: bool) -> None:
    study = optuna.create_study(direction="maximize")
    complete = optuna.create_study(direction="maximize")
    sampler = NISSampler(budget=SPACE, seed=0)
    for fidelity in ("supernet", "supernet", "validated", "trained"):
        record(study, fidelity, [0.7, 0.8, 0.75])
        for trial in study.trials[-3:]:
            trial.state = TrialState.COMPLETE
            if marked:
                trial.system_attrs["constraints"] = [float(fidelity != "trained")]
            complete.add_trial(trial)
        policies = [sampler.policy(each) for each in (study, complete)]
        np.testing.assert_array_equal(policies[0].logits, policies[1].logits)
        assert (policies[0].logits != policies[0].initial_logits).any()
        assert results.best_trial(complete).number == results.best_trial(study).number
        assert len(results.finished_trials(complete)) == len(results.finished_trials(study))
    # A search that is resumed goes on in the new form.
    record(complete, "supernet", [0.9])
    assert results.best_trial(complete).number == 10


def test_what_was_added_to_a_quality_is_told() -> None:
    study = optuna.create_study(direction="maximize")
    record(study, "supernet", [0.7], reference=-0.02)
    record(study, "trained", [0.7])
    shared, trained = (trial.user_attrs for trial in study.trials)
    assert (shared["quality"], shared["reference"]) == (0.7, -0.02)
    assert "reference" not in trained


def test_recording_notes_how_the_policy_is_doing() -> None:
    space = SearchSpace([EmbeddingSpec("user", 100, 8)], budget=0.5)
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=space, seed=0))
    recorder = TrialRecorder(study, space, "s")
    policy = study.sampler.policy(study)
    rng = np.random.default_rng(0)
    for _ in range(9):
        options, log_probs = policy.sample(4, rng)
        params = policy.params(options)
        costs = [space.allocation(choice).num_parameters for choice in params]
        rewards = [penalised_reward(cost / 1e3, cost, space.budget) for cost in costs]
        policy.update(options, [reward.value for reward in rewards], log_probs)
        recorder.record(params, rewards, fidelity="supernet", step=0, log_probs=log_probs.tolist())
        recorder.note(policy)
    assert [moment.num_trials for moment in moments_of(study)] == [16, 32]
    assert [moment.replay_lag for moment in moments_of(study)] == [4, 4]
    np.testing.assert_array_equal(study.sampler.policy(study).logits, policy.logits)
