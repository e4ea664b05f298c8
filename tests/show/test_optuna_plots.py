"""Optuna's own plots and importances of a study whose trials are partly of shared weights."""

from __future__ import annotations

import optuna
from optuna.importance import (
    FanovaImportanceEvaluator,
    MeanDecreaseImpurityImportanceEvaluator,
    PedAnovaImportanceEvaluator,
    get_param_importances,
)
from optuna.visualization import (
    plot_contour,
    plot_optimization_history,
    plot_parallel_coordinate,
    plot_param_importances,
    plot_rank,
    plot_slice,
    plot_timeline,
)
import pytest

from optuna_nis import NISSampler, penalised_reward
from optuna_nis.study import results
from optuna_nis.study.recording import save_score

KINDS = [{"supernet": 6, "validated": 3, "dropped": 2, "trained": 4}, {"supernet": 12}]


def test_the_history_is_that_of_what_was_trained(make_study):
    study = make_study(supernet=12, dropped=2, trained=3)
    best = max(study.trials[-3:], key=lambda trial: trial.value)
    traces = plot_optimization_history(study).data
    drawn = [trace for trace in traces if trace.mode == "markers" and len(trace.x or ())]
    assert [list(trace.x) for trace in drawn] == [[14, 15, 16]]
    lines = [trace for trace in traces if (trace.name or "").startswith("Best")]
    assert [trace.y[-1] for trace in lines] == [best.value]


@pytest.mark.parametrize("kinds", KINDS)
def test_plots_draw_what_was_trained(make_study, kinds):
    study = make_study(2, **kinds)
    count = kinds.get("trained", 0)
    # Without trials Optuna knows no parameters.
    names = list(study.trials[0].params)[:2] if count else None
    drawn = plot_parallel_coordinate(study, params=names).data
    if drawn and drawn[0].type == "parcoords":  # Optuna 4.
        assert len(drawn[0].dimensions[0]["values"]) == count
    else:
        assert sum(len(trace.x) == 1 + len(names or ()) for trace in drawn) == count
    history = plot_optimization_history(study)
    assert sum(len(t.x) for t in history.data if t.mode == "markers") == count
    for plot in (plot_contour, plot_rank, plot_slice):
        assert bool(plot(study, params=names).data) is (count > 0)
    assert sum(len(bar.y) for bar in plot_timeline(study).data) == sum(kinds.values())


@pytest.mark.parametrize(
    "evaluator",
    [
        PedAnovaImportanceEvaluator(),
        FanovaImportanceEvaluator(n_trees=4, seed=0),
        MeanDecreaseImpurityImportanceEvaluator(n_trees=4, seed=0),
    ],
)
def test_importances_are_of_what_was_trained(make_study, evaluator):
    study = make_study(2, **KINDS[0])
    importances = get_param_importances(study, evaluator=evaluator)
    trained = optuna.create_study(direction="maximize")
    trained.add_trials([trial for trial in study.trials if results.is_trained(trial)])
    assert importances == get_param_importances(trained, evaluator=evaluator)
    assert plot_param_importances(study, evaluator=evaluator).data
    assert not plot_param_importances(make_study(2, **KINDS[1]), evaluator=evaluator).data


@pytest.mark.parametrize("sampler", [None, optuna.samplers.TPESampler(n_startup_trials=2, seed=0)])
def test_trials_may_be_added_by_optimize(make_study, sampler):
    study = make_study(supernet=6)
    space = results.space_of(study)
    study.sampler = sampler or NISSampler(budget=space, seed=0)

    def objective(trial: optuna.Trial) -> float:
        cost = space.suggest(trial).num_parameters
        reward = penalised_reward(1 / (1 + cost), cost, space.budget)
        save_score(trial, reward, "trained")
        return reward.value

    study.optimize(objective, n_trials=4)
    assert study.best_trial.number >= 6
    assert study.best_value == max(trial.value for trial in study.trials[6:])
