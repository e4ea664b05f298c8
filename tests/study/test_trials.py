from __future__ import annotations

import math

from anything import anything, refusal
from hypothesis import given, settings
import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
import pytest

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.study import results as stored
from optuna_nis.study.keys import FINALIST_ATTR


def test_best_trial_prefers_the_dearest_score(make_study):
    study = make_study(supernet=6)
    best = max(study.trials, key=lambda trial: trial.value)
    assert stored.best_trial(study).number == best.number
    for fidelity, value in ((stored.VALIDATED, 0.3), (stored.DROPPED, 0.2), (stored.TRAINED, 0.1)):
        trial = optuna.create_trial(
            params=best.params,
            distributions=best.distributions,
            value=value,
            user_attrs={stored.FIDELITY_ATTR: fidelity},
        )
        study.add_trial(trial)
        assert stored.best_trial(study).value == value
    assert stored.is_trained(stored.best_trial(study))


def add_trained(study, like, *values):
    for value in values:
        study.add_trial(
            optuna.create_trial(
                params=like.params,
                distributions=like.distributions,
                value=value,
                user_attrs={stored.FIDELITY_ATTR: stored.TRAINED},
            )
        )


def test_a_retraining_finds_the_best_of_at_most_three_finalists(make_study):
    study = make_study(supernet=6)
    best = stored.best_trial(study)
    assert stored.finalist_allocations(study) == {best.number: stored.best_allocation(study)}
    choices = list({tuple(trial.params.values()): trial for trial in study.trials}.values())
    for like, value in zip([*choices[:4], choices[1]], (0.1, 0.4, 0.2, 0.3, 0.35)):
        add_trained(study, like, value)
    finalists = stored.finalist_allocations(study)
    # The same sizes count once.
    assert [study.trials[number].value for number in finalists] == [0.4, 0.3, 0.2]
    assert stored.best_trial(study).value == 0.4
    stored.save_finalist(study, list(finalists)[2], finalists)
    assert stored.best_trial(study).value == 0.2
    assert stored.best_allocation(study) == list(finalists.values())[2]
    assert stored.finalist_allocations(study) == finalists
    # Another search has found what is no better than these, then something that may be.
    add_trained(study, choices[4], 0.39)
    assert stored.best_trial(study).value == 0.2
    add_trained(study, choices[4], 0.41)
    assert stored.best_trial(study).value == 0.41


def test_different_parameters_may_be_the_same_sizes():
    spec = EmbeddingSpec("user", 1000, 8, row_blocks=[100, 900], oov="hash")
    space = SearchSpace([spec], budget=1.0)
    study = optuna.create_study(direction="maximize")
    stored.save_space(study, space)
    distributions = space.distributions() | {"rates": CategoricalDistribution([[1, 2], [3]])}
    full = space.params(space.full())
    shared = {name for name in full if "shared" in name}
    assert shared
    for number, value in enumerate((0.1, 0.2, 0.3)):
        params = full | {"rates": [[1, 2], [3], [3]][number]}
        params |= {name: space.choices[name][number] for name in shared}
        study.add_trial(
            optuna.create_trial(
                params=params,
                distributions=distributions,
                value=value,
                user_attrs={stored.FIDELITY_ATTR: stored.TRAINED},
            )
        )
    assert stored.finalist_allocations(study) == {2: space.full()}


@given(told=anything)
@settings(deadline=None)
def test_whatever_a_study_says_of_its_finalists_there_is_a_best_one(told):
    study = optuna.create_study(direction="maximize")
    for value in (0.1, 0.2):
        attrs = {stored.FIDELITY_ATTR: stored.TRAINED}
        params, distributions = {"x": value}, {"x": FloatDistribution(0, 1)}
        study.add_trial(
            optuna.create_trial(
                value=value, params=params, distributions=distributions, user_attrs=attrs
            )
        )
    study.set_user_attr(FINALIST_ATTR, told)
    assert stored.best_trial(study).value == 0.2
    study.set_user_attr(FINALIST_ATTR, {"of": [1, 0], "best": told})
    assert stored.best_trial(study).value in (0.1, 0.2)


@pytest.mark.parametrize("precisions", [(32,), (32, 4)])
def test_trials_know_their_bytes(make_study, precisions):
    study = make_study(supernet=5, precisions=precisions)
    space = stored.space_of(study)
    expected = [space.allocation(trial.params).nbytes() for trial in study.trials]
    assert [stored.nbytes_of(trial, space) for trial in study.trials] == expected
    old = make_study(supernet=5, precisions=precisions, old=True)
    assert [stored.nbytes_of(trial, space) for trial in old.trials] == expected
    nothing = optuna.create_trial(value=1.0)
    assert stored.nbytes_of(nothing, space) is None
    attrs = {"nbytes": "many", stored.FIDELITY_ATTR: stored.TRAINED}
    odd = optuna.create_trial(value=1.0, user_attrs=attrs)
    with pytest.raises(ValueError, match="'nbytes' of trial -1 must be a number"):
        stored.nbytes_of(odd, space)


@given(value=anything)
@settings(deadline=None)
def test_numbers_of_trials_are_read_or_refused_by_name(value):
    trial = optuna.create_trial(value=1.0, user_attrs={"quality": value})
    message = refusal(lambda: stored.number_of(trial, "quality", 0.5))
    if message is None:
        # Integers beyond what a float can hold are rounded.
        expected = 0.5 if value is None else float(value)
        assert stored.number_of(trial, "quality", 0.5) == expected
    else:
        assert "'quality' of trial -1 must be a number" in message
        assert len(message) < 300
    odd = optuna.create_trial(value=1.0, user_attrs={stored.FIDELITY_ATTR: value})
    assert stored.fidelity_of(odd) is None


def test_best_trial_breaks_no_constraint_if_any_does_not():
    study = optuna.create_study(direction="maximize")
    study.add_trial(optuna.create_trial(value=0.9, system_attrs={"constraints:memory": 5.0}))
    assert stored.best_trial(study).value == 0.9
    study.add_trial(optuna.create_trial(value=0.3, system_attrs={"constraints:memory": -5.0}))
    assert stored.best_trial(study).value == 0.3


def test_shared_weights_break_no_constraint(make_study):
    study = make_study(supernet=2, validated=1, trained=1)
    assert all(map(stored.is_feasible, study.trials))
    for attrs, feasible in (
        ({"constraints": [-1.0, 2.0]}, False),
        ({"constraints": [-1.0]}, True),
        ({"constraints": "text"}, True),
        ({"constraints": 3.0}, True),
        ({"constraints:budget": 1.0}, False),
    ):
        trial = optuna.create_trial(value=1.0, system_attrs=attrs)
        assert stored.is_feasible(trial) is feasible
    over = optuna.create_trial(
        value=1.0,
        user_attrs={stored.FIDELITY_ATTR: stored.SUPERNET},
        system_attrs={"constraints": [1.0], "constraints:budget": 1.0},
    )
    assert not stored.is_feasible(over)


def test_best_trial_without_fidelity_ignores_what_is_not_finite():
    study = optuna.create_study(direction="maximize")
    for value in (0.1, math.inf, 0.3):
        study.add_trial(optuna.create_trial(value=value))
    study.add_trial(optuna.create_trial(state=TrialState.FAIL))
    assert stored.best_trial(study).value == 0.3
    assert len(stored.finished_trials(study)) == 2


def test_a_training_that_was_pruned_is_not_scored():
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    trial.report(0.9, step=0)
    study.tell(trial, state=TrialState.PRUNED)
    assert study.trials[0].value == 0.9
    assert stored.finished_trials(study) == []
    for value in (0.5, math.inf, math.nan, None):
        pruned = optuna.create_trial(
            state=TrialState.PRUNED,
            value=value,
            user_attrs={stored.FIDELITY_ATTR: stored.SUPERNET},
        )
        study.add_trial(pruned)
    assert [trial.value for trial in stored.finished_trials(study)] == [0.5]


def test_best_trial_of_nothing():
    study = optuna.create_study(direction="maximize")
    with pytest.raises(ValueError, match="no finished trial"):
        stored.best_trial(study)


@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "maximize"]])
def test_other_directions_are_refused(directions):
    with pytest.raises(ValueError, match="must maximize one reward"):
        stored.finished_trials(optuna.create_study(directions=directions))


def test_value_of_a_failed_trial():
    trial = optuna.create_trial(state=TrialState.FAIL)
    with pytest.raises(ValueError, match="has no value"):
        stored.value_of(trial)


def test_what_others_put_beyond_the_budget_is_not_recommended():
    space = SearchSpace([EmbeddingSpec("user", 1000, 16)], budget="25%")
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0)
    )
    stored.save_space(study, space)
    # The larger, the better.
    study.optimize(lambda trial: space.suggest(trial).nbytes(), n_trials=40)
    assert not space.fits(space.allocation(study.best_params))
    assert space.fits(stored.best_allocation(study))
    inside = [t for t in study.trials if space.fits(space.allocation(t.params))]
    assert stored.best_trial(study).value == max(trial.value for trial in inside)
    # Where nothing is within it, there is no better one.
    others = optuna.create_study(direction="maximize")
    stored.save_space(others, space)
    others.add_trial(study.best_trial)
    assert stored.best_trial(others).number == 0


def test_trials_of_something_else_are_not_recommended(make_study):
    study = make_study(supernet=4)
    best = stored.best_trial(study).number
    x = {"x": FloatDistribution(0, 1)}
    for fidelity in (None, stored.SUPERNET):
        attrs = {} if fidelity is None else {stored.FIDELITY_ATTR: fidelity}
        for params, distributions in (({}, {}), ({"x": 0.5}, x)):
            study.add_trial(
                optuna.create_trial(
                    params=params, distributions=distributions, value=9.0, user_attrs=attrs
                )
            )
            assert stored.best_trial(study).number == best
    stray = optuna.create_study(direction="maximize")
    stray.set_user_attr("nis:space", study.user_attrs["nis:space"])
    stray.add_trial(optuna.create_trial(params={}, distributions={}, value=9.0))
    assert stored.best_trial(stray).number == 0
    with pytest.raises(ValueError, match="`params` must hold a choice for"):
        stored.best_allocation(stray)


def test_attributes_of_other_programs_say_nothing_of_memory(make_study):
    space = stored.space_of(make_study())
    study = optuna.create_study(direction="maximize")
    stored.save_space(study, space)
    distributions = space.distributions()
    small = space.params(space.sample(np.random.default_rng(0), space.budget))
    for params, value, attrs in (
        (space.params(space.full()), 9.0, {"nbytes": 8, "num_parameters": 2}),
        (small, 1.0, {"num_parameters": 10**9}),
    ):
        study.add_trial(
            optuna.create_trial(
                params=params, distributions=distributions, value=value, user_attrs=attrs
            )
        )
    assert stored.best_trial(study).number == 1
    assert stored.nbytes_of(study.trials[1], space) == space.allocation(small).nbytes()


def test_finalists_are_of_the_space_and_its_budget(make_study):
    study = make_study(supernet=4, trained=2)
    space = stored.space_of(study)
    known = list(stored.finalist_allocations(study))
    trained = {stored.FIDELITY_ATTR: stored.TRAINED}
    add = [(space.params(space.full()), space.distributions()), ({}, {})]
    for params, distributions in add:
        study.add_trial(
            optuna.create_trial(
                params=params, distributions=distributions, value=9.0, user_attrs=trained
            )
        )
    assert list(stored.finalist_allocations(study)) == known
    assert stored.best_trial(study).number == known[0]
