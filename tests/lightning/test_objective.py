from __future__ import annotations

import optuna
from optuna.trial import TrialState
import pytest

from optuna_nis import NISSampler, SearchSpace
from optuna_nis.datasets import TableDataModule
from optuna_nis.lightning import objective, reference_model
from optuna_nis.results import best_allocation


def test_trials_are_trainings(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8), budget=0.3)
    study = optuna.create_study(
        direction="maximize",
        sampler=NISSampler(budget=space, seed=0),
        pruner=optuna.pruners.ThresholdPruner(lower=0.5, n_warmup_steps=0),
    )
    build = reference_model(datamodule.features)
    study.optimize(objective(build, datamodule, space, max_epochs=2), n_trials=3)
    for trial in study.get_trials(states=(TrialState.COMPLETE,)):
        allocation = space.allocation(trial.params)
        assert trial.user_attrs["num_parameters"] == allocation.num_parameters <= space.budget
        assert trial.user_attrs["penalty"] == 0.0
        assert trial.value == trial.user_attrs["quality"]
        assert set(trial.intermediate_values) == {0, 1}
        assert max(trial.intermediate_values.values()) == pytest.approx(trial.value)
    assert best_allocation(study) == space.allocation(study.best_params)
    other = objective(build, datamodule, space.with_budget(0.2))
    with pytest.raises(ValueError, match="searched with another space"):
        study.optimize(other, n_trials=1)


def test_pruning_ends_the_training(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    study = optuna.create_study(
        direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=2.0)
    )
    build = reference_model(datamodule.features)
    study.optimize(objective(build, datamodule, space, max_epochs=3), n_trials=1)
    (trial,) = study.trials
    assert trial.state == TrialState.PRUNED
    assert set(trial.intermediate_values) == {0}


def test_sizes_above_the_budget_are_penalised_and_marked(datamodule: TableDataModule) -> None:
    specs = datamodule.embedding_specs(8)
    space = SearchSpace(specs, budget=0.5)
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial(space.params(space.full()))
    run = objective(reference_model(datamodule.features), datamodule, space, max_epochs=1)
    study.optimize(run, n_trials=1)
    (trial,) = study.trials
    assert trial.user_attrs["penalty"] == pytest.approx(1.0, abs=0.01)
    assert trial.value == pytest.approx(trial.user_attrs["quality"] - 1.0, abs=0.01)
    if hasattr(optuna.Trial, "set_constraint"):  # since Optuna 5
        with pytest.raises(ValueError, match=r"[Ff]easible"):
            study.best_trial  # noqa: B018
