from __future__ import annotations

import math
import re
import sys
import threading
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
import optuna
from optuna.trial import TrialState
import pytest
from tiny import MIXED, TRAIN, Net, batches_of
import torch

from optuna_nis import NISSampler, SearchSpace
from optuna_nis.data import TableDataModule
from optuna_nis.lightning import objective, reference_model
from optuna_nis.nn import apply_allocation, make_searchable
from optuna_nis.study.results import best_allocation


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
    with pytest.raises(ValueError, match="searched with another space: a budget of"):
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


class _Data(LightningDataModule):
    def train_dataloader(self) -> Any:
        return batches_of(TRAIN, 16)

    def val_dataloader(self) -> Any:
        return batches_of(MIXED)


class _Epochs(Callback):
    def __deepcopy__(self, memo: Any) -> _Epochs:
        return self

    count = 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.count += 1


class _Told(Net):
    """Logs what it is told, one value after the other; ``None`` in the sanity check."""

    values: tuple[float, ...] = ()

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            self.log("told", 100.0)
        else:
            self.values, value = self.values[1:], self.values[0]
            self.log("told", value)


def _study_of(values: tuple[float, ...], **options: Any) -> optuna.Study:
    torch.manual_seed(0)
    space = make_searchable(Net(), budget=0.5)
    study = optuna.create_study(direction="maximize", sampler=NISSampler(budget=space, seed=0))

    def build(sizes: Any) -> Net:
        model = apply_allocation(_Told(), sizes)
        model.values = values
        return model

    run = objective(
        build, _Data(), space, **({"monitor": "told", "mode": "max", "patience": 9} | options)
    )
    study.optimize(run, n_trials=1)
    return study


def test_the_sanity_check_is_no_epoch() -> None:
    (trial,) = _study_of((0.3, 0.5), max_epochs=2, num_sanity_val_steps=2).trials
    assert trial.intermediate_values == pytest.approx({0: 0.3, 1: 0.5})


def test_every_validation_of_an_epoch_is_reported() -> None:
    values = (0.1, 0.4, 0.7, 0.6)
    (trial,) = _study_of(values, max_epochs=2, val_check_interval=0.5).trials
    assert trial.intermediate_values == pytest.approx(dict(enumerate(values)))
    assert trial.value == pytest.approx(0.7)
    (trial,) = _study_of((0.2, 0.3), max_epochs=4, check_val_every_n_epoch=2).trials
    assert trial.intermediate_values == pytest.approx({0: 0.2, 1: 0.3})


def test_a_monitor_that_is_not_logged_is_told_by_name() -> None:
    message = "a value that the model logs in validation, one of ['auroc', 'batch_auroc', 'told'"
    with pytest.raises(ValueError, match=re.escape(message) + ".*got 'val_auc'"):
        _study_of((0.5,), max_epochs=1, monitor="val_auc")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_trial_whose_training_diverges_fails_alone(bad: float) -> None:
    (trial,) = _study_of((bad, bad), max_epochs=2).trials
    assert trial.state == TrialState.FAIL
    assert trial.intermediate_values == {}


def test_what_was_good_before_a_training_diverged_counts() -> None:
    (trial,) = _study_of((0.4, math.nan), max_epochs=2).trials
    assert trial.state == TrialState.COMPLETE
    assert trial.value == pytest.approx(0.4)
    assert trial.intermediate_values == pytest.approx({0: 0.4})


def test_one_callback_or_none() -> None:
    epochs = _Epochs()
    for callbacks in (None, epochs):
        assert _study_of((0.5,), max_epochs=1, callbacks=callbacks).best_value == pytest.approx(
            0.5
        )
    assert epochs.count == 1


class Counting(Callback):
    def __init__(self) -> None:
        self.fits = 0

    def on_fit_start(self, *_: Any) -> None:
        self.fits += 1
        fits.append(self.fits)


fits: list[int] = []


def test_every_trial_has_callbacks_of_its_own(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    study = optuna.create_study(direction="maximize")
    build = reference_model(datamodule.features)
    study.optimize(
        objective(build, datamodule, space, max_epochs=1, callbacks=[Counting()]), n_trials=2
    )
    assert fits == [1, 1]


def test_the_smallest_loss_is_best() -> None:
    space = make_searchable(Net(), budget=0.5)
    study = optuna.create_study(direction="maximize")
    data = (batches_of(TRAIN), batches_of(MIXED))

    def build(sizes: Any) -> Net:
        return apply_allocation(Net(), sizes)

    run = objective(build, data, space, max_epochs=1, monitor="val_loss")
    study.optimize(run, n_trials=2)
    assert max(trial.user_attrs["quality"] for trial in study.trials) < 0
    with pytest.raises(ValueError, match="`mode` must be given for the monitor 'val_mae'"):
        objective(build, data, space, monitor="val_mae")


def test_several_trials_at_once_are_told_that_a_seed_does_not_hold(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # The function has the name of its module.
    monkeypatch.setattr(sys.modules["optuna_nis.lightning.objective"], "_is_told", False)
    _study_of((0.3,), max_epochs=1)
    assert "torch's random numbers" not in caplog.text
    both = threading.Barrier(2, timeout=30)

    class Waits(Net):
        def on_fit_start(self) -> None:
            both.wait()

    space = make_searchable(Net(), budget=0.5)
    study = optuna.create_study(direction="maximize")
    run = objective(
        lambda sizes: apply_allocation(Waits(), sizes),
        _Data(),
        space,
        monitor="val_loss",
        max_epochs=1,
    )
    study.optimize(run, n_trials=2, n_jobs=2)
    assert caplog.text.count("share torch's random numbers: `seed` 0 does not") == 1


@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "maximize"]])
def test_a_reward_is_maximised(directions: list[str], datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    study = optuna.create_study(directions=directions)
    run = objective(reference_model(datamodule.features), datamodule, space)
    with pytest.raises(ValueError, match="must maximize one reward, got directions"):
        study.optimize(run, n_trials=1)
