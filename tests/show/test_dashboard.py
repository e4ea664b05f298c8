from __future__ import annotations

import json
import re
import time
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
from optuna import Study
import optuna_dashboard
from optuna_dashboard._custom_plot_data import get_plotly_graph_objects
import pytest

from optuna_nis import EmbeddingSpec, NISSampler, SearchSpace
from optuna_nis._format import size
from optuna_nis.show.dashboard import DashboardCallback, publish, thinned_copy
from optuna_nis.study import results
from optuna_nis.study.keys import DATA_ATTR
from optuna_nis.study.searches import finish, join

IDS = [
    "nis-1-allocation",
    "nis-2-memory-vs-quality",
    "nis-3-feature-budget",
    "nis-4-reward-history",
    "nis-5-policy",
    "nis-6-learning",
]


def figures(study: Study) -> dict[str, Any]:
    """The figures as the dashboard hands them to the browser."""
    attrs = study._storage.get_study_system_attrs(study._study_id)
    return {name: json.loads(text) for name, text in get_plotly_graph_objects(attrs).items()}


def test_figures_note_and_names(make_study):
    study = make_study(supernet=30, validated=4, trained=3, results=True)
    study.set_user_attr(DATA_ATTR, "{}")
    assert publish(study) == IDS
    found = figures(study)
    assert sorted(found) == IDS
    assert all(figure["layout"]["height"] == 450 for figure in found.values())
    assert study.metric_names == ["reward (ROC-AUC)"]
    note = optuna_dashboard.get_note(study)
    best = results.best_allocation(study)
    assert f"- Sizes found: **{size(best.nbytes())}**, " in note
    assert "bits a number" not in note
    for name, table in best.items():
        assert re.search(rf"\| `{name}` \| .* \| {size(table.nbytes())} \|", note)
    assert "optuna-nis retrain --study-name flights" in note


def test_the_note_of_a_study_of_unknown_data_has_no_command_that_cannot_work(make_study):
    study = make_study(supernet=9, trained=3)
    publish(study)
    note = optuna_dashboard.get_note(study)
    assert "optuna-nis report --study-name flights" in note
    assert "optuna-nis retrain" not in note
    assert "optuna-nis export" not in note


def test_the_note_of_a_search_of_precisions(make_study):
    study = make_study(supernet=9, trained=3, precisions=(32, 8, 2))
    publish(study)
    note = optuna_dashboard.get_note(study)
    assert " features); 32, 8 or 2 bits a number.\n" in note
    assert re.search(r"\| `f\d` \| [\d,]+ x 8 \| .* x \d in [28] bits.* \| [\d.]+ k?[Bb]", note)


def test_the_note_says_how_the_best_was_scored(make_study):
    study = make_study(supernet=6)
    publish(study)
    assert "shared weights; nothing has been trained yet." in optuna_dashboard.get_note(study)
    search = join(study, "one", seed=0)
    study.add_trials(make_study(supernet=0, trained=2).trials)
    publish(study)
    note = optuna_dashboard.get_note(study)
    assert "trained, on the validation data; 2 trained so far, the search has not ended." in note
    finish(study, search, 1.0)
    publish(study)
    note = optuna_dashboard.get_note(study)
    assert f"{study.best_value:.4f}, trained, on the validation data.\n" in note


def answer(study: Study, path: str = "") -> Any:
    """What the dashboard answers to its page about a study."""
    environ: dict[str, Any] = {"PATH_INFO": f"/api/studies/{study._study_id}{path}"}
    setup_testing_defaults(environ)
    app = optuna_dashboard.wsgi(study._storage)
    return json.loads(b"".join(app(environ, lambda *_: None)))


def test_the_best_trial_of_the_dashboard_is_one_that_was_trained(make_study):
    study = make_study(supernet=30, validated=4)
    assert answer(study)["best_trials"] == []
    assert answer(study, "/param_importances")["param_importances"] == [[]]
    study.add_trials(make_study(supernet=0, trained=6).trials)
    best = [trial["number"] for trial in answer(study)["best_trials"]]
    assert best == [study.best_trial.number] == [results.best_trial(study).number]
    assert best[0] >= 34
    assert len(answer(study)["trials"]) == 40
    (importances,) = answer(study, "/param_importances")["param_importances"]
    assert {each["name"] for each in importances} == set(study.best_params)


def test_figures_of_a_large_study_are_thinned(make_study):
    study = make_study(40, supernet=900)
    publish(study)
    found = figures(study)
    # The history of rewards alone would take 110,000 with all trials.
    assert len(json.dumps(found)) < 180_000
    allocation = found["nis-1-allocation"]
    assert "26 features of little memory left out" in allocation["layout"]["title"]["text"]
    scatter = found["nis-2-memory-vs-quality"]["data"][0]
    assert 400 <= len(scatter["x"]) < 450


def test_publishing_again_replaces(make_study):
    study = make_study(supernet=300)
    publish(study)
    before = figures(study)
    study.add_trials(make_study(supernet=5, trained=1, seed=0).trials)
    publish(study)
    after = figures(study)
    assert sorted(after) == sorted(before)
    assert after["nis-1-allocation"] != before["nis-1-allocation"]


def test_names_are_literal_in_the_note(make_study):
    study = make_study(["a|b", "`x`", "<b>\n| y |"], supernet=4)
    publish(study)
    note = optuna_dashboard.get_note(study)
    assert "| `a\\|b` |" in note
    assert "| `'x'` |" in note
    assert "| `<b> \\| y \\|` |" in note


def test_your_own_note_is_kept(make_study):
    study = make_study(supernet=4)
    optuna_dashboard.save_note(study, "mine")
    publish(study)
    assert optuna_dashboard.get_note(study) == "mine"
    optuna_dashboard.save_note(study, "")
    publish(study)
    note = optuna_dashboard.get_note(study)
    optuna_dashboard.save_note(study, note + "\nmore of mine")
    study.add_trials(make_study(supernet=0, trained=1, seed=0).trials)
    publish(study)
    assert optuna_dashboard.get_note(study).endswith("line.*\nmore of mine")
    assert optuna_dashboard.get_note(study) != note + "\nmore of mine"


def test_your_own_objective_name_is_kept(make_study):
    study = make_study(supernet=4)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["mine"])
    publish(study)
    assert study.metric_names == ["mine"]


def test_a_study_without_trials_gets_a_name_only(make_study):
    study = make_study(supernet=0)
    assert publish(study) == []
    assert study.metric_names == ["reward (ROC-AUC)"]


def test_a_study_of_something_else():
    with pytest.raises(ValueError, match="holds no search space"):
        publish(optuna.create_study(direction="maximize"))


SPACE = SearchSpace([EmbeddingSpec("user", 1000, 8), EmbeddingSpec("item", 90, 8)], budget="50%")


def search(callback: DashboardCallback, n_trials: int, study: Study | None = None) -> Study:
    if study is None:
        sampler = NISSampler(budget=SPACE, seed=0)
        study = optuna.create_study(direction="maximize", sampler=sampler)

    def objective(trial: optuna.Trial) -> float:
        return SPACE.suggest(trial).num_parameters / 1000

    study.optimize(objective, n_trials=n_trials, callbacks=[callback])
    return study


def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    monkeypatch.setattr("optuna_nis.show.dashboard.publish", lambda s: seen.append(len(s.trials)))
    return seen


def test_updates_while_the_search_runs():
    callback = DashboardCallback(SPACE, interval=0, max_share=1.0)
    study = search(callback, 20)
    numbers = figures(study)["nis-4-reward-history"]["data"][0]["x"]
    assert 8 <= len(numbers) < 20
    callback.finish(study)
    assert len(figures(study)["nis-4-reward-history"]["data"][0]["x"]) == 20


def test_updates_grow_rarer(monkeypatch):
    seen = count(monkeypatch)
    monkeypatch.setattr("optuna_nis.show.dashboard._MORE_TRIALS", 2)
    search(DashboardCallback(SPACE, interval=0, max_share=1.0), 40)
    assert seen == [1, 3, 5, 7, 9, 11, 14, 18, 22, 28, 35]


def test_updates_take_a_small_share_of_the_time(monkeypatch):
    seen = []

    def slow(study: Study) -> None:
        seen.append(len(study.trials))
        time.sleep(0.05)

    monkeypatch.setattr("optuna_nis.show.dashboard.publish", slow)
    search(DashboardCallback(SPACE, interval=0, max_share=0.001), 40)
    assert seen == [1]


def test_one_of_several_workers_writes(monkeypatch):
    seen = count(monkeypatch)
    study = search(DashboardCallback(SPACE), 1)
    search(DashboardCallback(SPACE), 20, study)
    assert seen == [1]


def test_trouble_never_stops_the_search(monkeypatch, caplog):
    def fail(study: Study) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("optuna_nis.show.dashboard.publish", fail)
    callback = DashboardCallback(SPACE, interval=0)
    study = search(callback, 20)
    callback.finish(study)
    assert len(study.trials) == 20
    assert caplog.text.count("no longer updated: OSError('disk full')") == 1
    assert "could not be written" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [({"interval": -1}, "`interval` must be"), ({"max_share": 0}, "`max_share` must be")],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DashboardCallback(**options)


def test_a_thinned_copy_holds_what_matters(make_study, tmp_path):
    source = make_study(supernet=100, validated=5, dropped=4, trained=3)
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path}/s.db", study_name="flights", direction="maximize"
    )
    for key, value in source.user_attrs.items():
        study.set_user_attr(key, value)
    study.add_trials(source.trials)
    trained = [t.number for t in study.trials if results.is_trained(t)]
    second = sorted(trained, key=lambda number: study.trials[number].value)[1]
    results.save_finalist(study, second, trained)
    copy = thinned_copy(study, max_trials=60)
    assert results.best_trial(copy).params == study.trials[second].params
    assert copy.study_name == "flights (thinned)"
    assert len(copy.trials) == 60
    kinds = [trial.user_attrs["fidelity"] for trial in copy.trials]
    assert kinds.count("validated") == 5
    assert kinds.count("dropped") == 4
    assert kinds.count("trained") == 3
    assert results.best_allocation(copy) == results.best_allocation(study)
    # The figures are those of all trials.
    assert len(figures(copy)["nis-2-memory-vs-quality"]["data"][0]["x"]) == 100
    assert len(thinned_copy(study, max_trials=2).trials) == 2
    assert len(study.trials) == 112
    assert copy.best_trial.params == study.best_trial.params
    with pytest.raises(ValueError, match="name of the study itself"):
        thinned_copy(study, name="flights")
    with pytest.raises(ValueError, match="`max_trials` must be"):
        thinned_copy(study, max_trials=0)
    with pytest.raises(ValueError, match="`max_trials` must be an integer"):
        thinned_copy(study, max_trials=1.5)


def test_a_thinned_copy_of_a_study_with_a_long_space(make_study):
    study = make_study(200, supernet=3)
    assert isinstance(study.user_attrs[results.SPACE_ATTR], dict)
    assert results.space_of(thinned_copy(study, max_trials=2)) == results.space_of(study)


def test_the_note_has_the_verdict(make_study):
    study = make_study(supernet=2)
    publish(study)
    assert "- What sizes are worth is known after" in optuna_dashboard.get_note(study)
    nis = results.RetrainResult("nis", "NIS", "ROC-AUC", (0.6,), (0,), 10)
    results.save_results(study, results.Results([nis], "The found sizes are best.", "nis"))
    publish(study)
    note = optuna_dashboard.get_note(study)
    assert "- The found sizes are best.\n" in note
    assert "What sizes are worth" not in note
