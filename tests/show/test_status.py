from __future__ import annotations

from io import StringIO
from pathlib import Path
import re

import optuna
from optuna.trial import TrialState
import pytest
from rich.console import Console
from typer.testing import CliRunner

from optuna_nis import AdditiveBudget, NISSampler
from optuna_nis._format import memory, size
from optuna_nis.cli import app
from optuna_nis.controller.settings import PolicySettings
from optuna_nis.show.figures import plot_policy
from optuna_nis.show.figures._memory_quality import _memory_quality_info
from optuna_nis.show.status import render, status_of
from optuna_nis.show.words import how_scored
from optuna_nis.study import results as stored
from optuna_nis.study.moments import MOMENTS_KEY, moments_of
from optuna_nis.study.searches import finish, join

runner = CliRunner()


def text_of(study: optuna.Study) -> str:
    console = Console(width=120, record=True, file=StringIO())
    console.print(render(status_of(study)))
    return console.export_text()


def test_what_a_retraining_found_best_comes_first_everywhere(make_study):
    study = make_study(supernet=8, trained=3)
    finalists = stored.finalist_allocations(study)
    first, _, number = finalists
    stored.save_finalist(study, number, finalists)
    assert study.best_trial.number == first != number == stored.best_trial(study).number
    assert how_scored(study, study.trials[first]).startswith("trained, on the validation")
    assert "best of the finalists retrained" in how_scored(study, study.trials[number])
    assert status_of(study).best[0].number == number
    assert _memory_quality_info(study).best.number == number
    assert stored.summary_of(study)["best"]["nbytes"] == finalists[number].nbytes()


def test_status_of_an_embedding_search(make_study):
    study = make_study(supernet=20, validated=4, trained=3)
    study.ask()
    status = status_of(study)
    assert status.states == {"COMPLETE": 3, "PRUNED": 24, "RUNNING": 1}
    assert status.shared_weights == 24
    assert status.trials_per_minute > 0
    assert 0 <= status.seconds_since_last < 600
    assert len(status.best) == 5
    assert status.best[0].number == stored.best_trial(study).number
    kinds = [trial.user_attrs["fidelity"] for trial in status.best]
    assert kinds == ["trained"] * 3 + ["validated"] * 2
    assert status.policy.entropy < status.policy.initial_entropy
    assert status.policy.nbytes == 4 * status.policy.num_parameters
    assert status.policy.nbytes <= status.space.budget_nbytes
    assert status.policy.replay_lag == 27
    text = text_of(study)
    for part in (
        "3 complete, 24 pruned, 1 running; 24 of them scored with shared weights",
        memory(status.space.budget_nbytes, status.space.full_nbytes),
        size(status.policy.nbytes),
        size(stored.best_allocation(study).nbytes()),
        "nats",
        "ROC-AUC",
        "shared weights",
        str(stored.best_allocation(study)).splitlines()[0],
    ):
        assert part in text


def test_status_of_a_search_of_precisions(make_study):
    study = make_study(supernet=20, precisions=(8, 2))
    status = status_of(study)
    assert status.policy.nbytes <= status.space.budget_nbytes
    assert status.policy.nbytes < 4 * status.policy.num_parameters
    text = text_of(study)
    assert "8 or 2 bits a number" in text
    assert size(stored.best_allocation(study).nbytes()) in text
    assert re.search(r"f\d: \d+x\dx[28]bit", text)


def test_what_was_trained_for_a_while_comes_after_what_was_trained_on(make_study):
    study = make_study(supernet=5, validated=4, dropped=4, trained=2)
    status = status_of(study, num_best=7)
    assert status.states == {"COMPLETE": 2, "PRUNED": 13}
    assert status.shared_weights == 9
    kinds = [trial.user_attrs["fidelity"] for trial in status.best]
    assert kinds == ["trained"] * 2 + ["dropped"] * 4 + ["validated"]
    text = text_of(study)
    assert "2 complete, 13 pruned; 9 of them scored with shared weights" in text
    assert "trained for a while" in text


def test_several_searches_are_counted(make_study):
    study = make_study()
    join(study, "a", seed=0)
    assert "Searches" not in text_of(study)
    finish(study, join(study, "b", seed=0), 2.0)
    assert "2, 1 of them ended" in text_of(study)


def test_status_of_any_study():
    study = optuna.create_study(direction="minimize", sampler=NISSampler(seed=0))
    study.optimize(lambda trial: trial.suggest_int("x", 0, 9), n_trials=30)
    study.add_trial(optuna.create_trial(state=TrialState.FAIL))
    study.add_trial(
        optuna.create_trial(
            value=-1.0,
            params={"x": 0},
            distributions=study.trials[0].distributions,
            system_attrs={"constraints:memory": 1.0},
        )
    )
    status = status_of(study, num_best=100)
    values = [trial.value for trial in status.best]
    assert values == [*sorted(values[:-1]), -1.0]
    assert status.space is None
    assert status.policy.replay_lag == 1
    text = text_of(study)
    assert "31 complete, 1 fail" in text
    assert "x: 0" in text
    assert "Memory" not in text


def test_the_policy_is_that_of_the_settings_of_its_sampler(make_study):
    study = make_study(supernet=0)
    space = stored.space_of(study)
    slow = PolicySettings(learning_rate=0.01, sampled_learning_rate=0.0)
    study.sampler = NISSampler(budget=space, seed=0, settings=slow)

    def objective(trial):
        return space.suggest(trial)["f0"].num_parameters / space.budget

    study.optimize(objective, n_trials=30)
    own = study.sampler.policy(study)
    assert own.entropy() != pytest.approx(NISSampler(budget=space).policy(study).entropy())
    assert status_of(study).policy.entropy == pytest.approx(own.entropy())
    last = plot_policy(study)
    first, *_ = space.choices
    shown = [trace.y[-1] for trace in last.data if trace.type == "scatter" and trace.visible]
    assert shown == pytest.approx(100 * own.probabilities()[first], abs=0.1)


def test_the_policy_of_a_budget_that_only_its_sampler_knows():
    budget = AdditiveBudget(6, {f"c{i}": {cost: cost for cost in range(6)} for i in range(6)})
    sampler = NISSampler(budget=budget, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial):
        return sum(trial.suggest_categorical(f"c{i}", list(range(6))) * i for i in range(6))

    study.optimize(objective, n_trials=60)
    noted = moments_of(study)[-1]
    found = status_of(study).policy
    assert (found.entropy, found.replay_lag) == (noted.entropy, noted.replay_lag)
    assert found.initial_entropy is None
    assert f"{noted.entropy:.3f} nats" in text_of(study)
    own = status_of(study, sampler).policy
    assert own.entropy == pytest.approx(sampler.policy(study).entropy())
    assert own.initial_entropy > own.entropy


def test_status_of_nothing():
    study = optuna.create_study(study_name="[bold]empty")
    status = status_of(study)
    assert (status.best, status.policy, status.trials_per_minute) == ((), None, None)
    assert "[bold]empty" in text_of(study)
    assert "none" in text_of(study)


def test_trials_of_another_space_are_shown_without_sizes(make_study):
    study = make_study(supernet=3)
    study.add_trial(optuna.create_trial(value=9.0, user_attrs={"fidelity": "trained"}))
    assert status_of(study).best[0].value == 9.0
    assert " - " in text_of(study)


def test_several_objectives_are_refused():
    study = optuna.create_study(directions=["minimize", "minimize"])
    with pytest.raises(ValueError, match="`study` must have a single objective, got 2"):
        status_of(study)


@pytest.fixture
def storage(make_study, tmp_path: Path) -> str:
    made = make_study(supernet=10)
    url = f"sqlite:///{tmp_path}/s.db"
    study = optuna.create_study(storage=url, study_name="flights", direction="maximize")
    for key, value in made.user_attrs.items():
        study.set_user_attr(key, value)
    study.add_trials(made.trials)
    return url


def test_command(storage: str):
    found = runner.invoke(app, ["status", "--storage", storage, "--study-name", "flights"])
    assert found.exit_code == 0, found.output
    assert "10 pruned" in found.output
    found = runner.invoke(app, ["status", "--storage", storage, "--study-name", "other"])
    assert found.exit_code == 1
    assert "is not in the storage" in " ".join(found.output.split())


def test_command_watches_until_interrupted(storage: str, monkeypatch: pytest.MonkeyPatch):
    waited = []

    def sleep(seconds: float) -> None:
        study = optuna.load_study(study_name="flights", storage=storage)
        study.add_trial(study.trials[0])
        waited.append(seconds)
        if len(waited) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("optuna_nis.cli.sleep", sleep)
    arguments = ["status", "--storage", storage, "--study-name", "flights", "--watch"]
    found = runner.invoke(app, [*arguments, "--interval", "0.5"])
    assert found.exit_code == 0, found.output
    assert waited == [0.5] * 3
    assert "12 pruned" in found.output


def test_a_malformed_attribute_is_named(storage: str):
    study = optuna.load_study(study_name="flights", storage=storage)
    study._storage.set_study_system_attr(study._study_id, MOMENTS_KEY, {"version": 99})
    found = runner.invoke(app, ["status", "--storage", storage, "--study-name", "flights"])
    assert found.exit_code == 1
    assert "'nis:moments' of 'flights' must be of version 1, got '99'" in " ".join(
        found.output.split()
    )


def test_the_verdict_is_shown(make_study):
    study = make_study(supernet=2)
    assert "Verdict" not in text_of(study)
    nis = stored.RetrainResult("nis", "NIS", "ROC-AUC", (0.6,), (0,), 10)
    stored.save_results(study, stored.Results([nis], "The found sizes are best.", "nis"))
    assert re.search("Verdict +The found sizes are best\\.", text_of(study))
