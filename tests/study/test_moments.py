from __future__ import annotations

import math
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import CategoricalDistribution
import pytest

from optuna_nis import NISSampler
from optuna_nis.controller.settings import PolicySettings, settings_of
from optuna_nis.study.moments import (
    MOMENTS_KEY,
    Moment,
    copy_settings,
    is_due,
    mean_and_std,
    moments_of,
    noted_settings,
    save_moment,
)


def additive(trial: optuna.Trial) -> float:
    return float(sum(trial.suggest_categorical(name, [0, 1, 2]) for name in "abcd"))


def new_study() -> Study:
    return optuna.create_study(direction="maximize", sampler=NISSampler(seed=0))


def hold(study: Study, value: Any) -> None:
    study._storage.set_study_system_attr(study._study_id, MOMENTS_KEY, value)


def test_moments_are_noted_less_and_less_often() -> None:
    last, noted = 0, []
    for number in range(10_001):
        if is_due(number, last):
            noted.append(last := number)
    assert noted[:4] == [8, 16, 24, 32]
    assert len(noted) < 70
    assert noted[-1] > 9000


def test_the_sampler_notes_how_its_policy_is_doing() -> None:
    study = new_study()
    study.optimize(additive, n_trials=60)
    found = moments_of(study)
    assert [moment.num_trials for moment in found] == [8, 16, 24, 32, 40, 48, 56]
    assert found[0].entropy == pytest.approx(4 * math.log(3), rel=0.3)
    assert found[-1].entropy < found[0].entropy
    assert {moment.replay_lag for moment in found} == {1}
    assert all(0 < moment.advantage_std <= 3 for moment in found)


def test_a_worker_that_comes_later_lags() -> None:
    study = new_study()
    study.optimize(additive, n_trials=30)
    study.sampler = NISSampler(seed=1)
    study.optimize(additive, n_trials=1)
    last = moments_of(study)[-1]
    assert (last.num_trials, last.replay_lag) == (30, 30)


def test_trials_that_were_added_are_observed() -> None:
    study = new_study()
    for value in range(12):
        study.add_trial(
            optuna.create_trial(
                params={"x": value % 2},
                distributions={"x": CategoricalDistribution([0, 1])},
                value=float(value),
            )
        )
    study.sampler.observe(study)
    (moment,) = moments_of(study)
    assert moment.num_trials == moment.replay_lag == 12
    study.sampler.observe(study)
    assert moments_of(study) == [moment]


def test_a_moment_replaces_one_after_as_many_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    study = new_study()
    monkeypatch.setattr("optuna_nis.study.moments._MOST", 3)
    for number in (8, 16, 24, 16, 32):
        save_moment(study, Moment(number, 1.0, 0.0, 0.5, number))
    assert [moment.num_trials for moment in moments_of(study)] == [16, 24, 32]


ROW = [8, 1.0, 0.0, 0.5, 1]


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ({"version": 2, "moments": []}, "must be of version 1, got '2'"),
        ("x" * 10**6, "must be of version 1, got 'None'"),
        ([ROW], "must be of version 1"),
        ({"version": 1}, "is malformed"),
        ({"version": 1, "moments": [ROW] * 401}, "is malformed"),
        ({"version": 1, "moments": [ROW[:-1]]}, "is malformed"),
        ({"version": 1, "moments": [[8, "1.0", 0.0, 0.5, 1]]}, "is malformed"),
        ({"version": 1, "moments": [[8, math.inf, 0.0, 0.5, 1]]}, "is malformed"),
        ({"version": 1, "moments": [[10**400, 1.0, 0.0, 0.5, 1]]}, "is malformed"),
        ({"version": 1, "moments": [None]}, "is malformed"),
    ],
)
def test_malformed_moments_are_refused_by_name_and_replaced(held: object, message: str) -> None:
    study = new_study()
    hold(study, held)
    with pytest.raises(ValueError, match=message) as error:
        moments_of(study)
    assert f"'{MOMENTS_KEY}'" in str(error.value)
    assert len(str(error.value)) < 300
    save_moment(study, Moment(8, 1.0, 0.0, 0.5, 1))
    assert moments_of(study) == [Moment(8, 1.0, 0.0, 0.5, 1)]


def test_mean_and_std() -> None:
    assert mean_and_std([]) == (0.0, 0.0)
    assert mean_and_std([1.0, 3.0]) == (2.0, 1.0)


def test_settings_are_noted_where_they_are_not_the_default() -> None:
    study = new_study()
    assert settings_of(study) == PolicySettings()
    study.optimize(additive, n_trials=9)
    assert "settings" not in study._storage.get_study_system_attrs(study._study_id)[MOMENTS_KEY]
    study.sampler = NISSampler(seed=0, settings=PolicySettings(ridge=3.0))
    study.optimize(additive, n_trials=9)
    assert noted_settings(study) == {"ridge": 3.0}
    assert settings_of(study) == PolicySettings(ridge=3.0)


@pytest.mark.parametrize("held", ["x", [1], {"ridge": "3"}, {"ridge": math.inf}])
def test_malformed_settings_are_refused(held: Any) -> None:
    study = new_study()
    hold(study, {"version": 1, "moments": [], "settings": held})
    with pytest.raises(ValueError, match="is malformed"):
        noted_settings(study)


def test_settings_out_of_range_are_refused_by_the_name_of_the_study() -> None:
    study = new_study()
    hold(study, {"version": 1, "moments": [], "settings": {"ridge": 0.0}})
    with pytest.raises(ValueError, match=f"{study.study_name!r} holds are none: `ridge` must be"):
        settings_of(study)


def test_large_settings_are_noted() -> None:
    study = new_study()
    study.sampler = NISSampler(seed=0, settings=PolicySettings(max_importance=1e15))
    study.optimize(additive, n_trials=9)
    assert settings_of(study) == study.sampler.settings
    other = new_study()
    copy_settings(study, other)
    assert settings_of(other) == study.sampler.settings
    assert moments_of(other) == []


def test_settings_of_a_later_version_are_refused() -> None:
    study = new_study()
    hold(study, {"version": 1, "moments": [], "settings": {"patience": 1.0}})
    with pytest.raises(ValueError, match=r"does not know, \['patience'\]"):
        settings_of(study)
