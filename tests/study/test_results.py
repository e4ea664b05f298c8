from __future__ import annotations

from dataclasses import replace
import json
import math
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
import optuna
import pytest

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.study import results as stored
from optuna_nis.study.parts import Part

RESULT = stored.RetrainResult("nis", "NIS", "ROC-AUC", (0.7, 0.8), (0, 1), 100, 10, None, 2.5)


def test_space_is_read_back(make_study):
    study = make_study(2)
    space = stored.space_of(study)
    assert [spec.name for spec in space.specs] == ["f0", "f1"]
    stored.save_space(study, space)
    assert stored.space_of(study) == space


def test_reading_needs_neither_torch_nor_plotly():
    code = "import sys, optuna_nis.study.results, optuna_nis.show.report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "optuna_nis.show.report" in loaded
    assert not {"torch", "plotly", "rich"} & loaded


def test_space_missing():
    study = optuna.create_study(study_name="other")
    with pytest.raises(ValueError, match="`study` 'other' holds no search space"):
        stored.space_of(study)


def test_another_space_is_refused(make_study):
    with pytest.raises(ValueError, match="another space"):
        stored.save_space(make_study(2), SearchSpace([EmbeddingSpec("x", 10, 4)]))


def test_long_text_is_split_and_shortened_again():
    study = optuna.create_study()
    space = SearchSpace([EmbeddingSpec(f"feature {i}", 1_000, 32) for i in range(500)])
    stored.save_space(study, space)
    assert len(study.user_attrs) > 1
    for value in study.user_attrs.values():
        assert len(json.dumps(value).encode()) <= 65_535
    assert stored.space_of(study) == space
    results = [replace(RESULT, name=str(i), allocation=space.full()) for i in range(4)]
    stored.save_results(study, results)
    assert stored.results_of(study) == results
    stored.save_results(study, [RESULT])
    assert stored.results_of(study) == [RESULT]


@pytest.mark.parametrize("storage", ["sqlite://", None])
def test_results_survive_storages(storage):
    study = optuna.create_study(storage=storage)
    assert stored.results_of(study) == []
    stored.save_results(study, [RESULT, replace(RESULT, name="full")])
    assert [result.name for result in stored.results_of(study)] == ["nis", "full"]


def test_results_of_the_same_name_are_refused():
    with pytest.raises(ValueError, match="two entries named 'nis'"):
        stored.save_results(optuna.create_study(), [RESULT, RESULT])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "cannot be read"),
        ("{}", "must be a list"),
        ('[{"name": "nis"}]', "malformed"),
        ("[1]", "malformed"),
        ([1], "must be text"),
    ],
)
def test_malformed_results(value, message):
    study = optuna.create_study()
    study.set_user_attr(stored.RESULTS_ATTR, value)
    with pytest.raises(ValueError, match=message):
        stored.results_of(study)


def test_mean_and_sample_deviation():
    assert RESULT.mean == pytest.approx(0.75)
    assert RESULT.std == pytest.approx(math.sqrt(0.005))
    alone = replace(RESULT, values=(0.5,), seeds=(0,))
    assert alone.std is None  # Not 0: it is unknown.
    assert json.loads(json.dumps(alone.to_dict()))["std"] is None


def test_how_trainings_went_is_read_back():
    went = replace(RESULT, val_values=(0.6, 0.7), epochs=(3, 30), stopped=(True, False))
    assert went.val_mean == pytest.approx(0.65)
    assert stored.RetrainResult.from_dict(json.loads(json.dumps(went.to_dict()))) == went
    old = {k: v for k, v in went.to_dict().items() if k not in ("val_values", "epochs", "stopped")}
    assert stored.RetrainResult.from_dict(old) == RESULT
    assert RESULT.val_mean is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": (), "seeds": ()}, "`values`"),
        ({"values": (0.7, math.nan)}, "`values`"),
        ({"seeds": (0,)}, "`seeds`"),
        ({"val_values": (0.5,)}, "`val_values` of 'nis' must be as many as the values, 2"),
        ({"epochs": (1, 2, 3)}, "`epochs`"),
        ({"stopped": (True,)}, "`stopped`"),
        ({"num_parameters": -1}, "`num_parameters`"),
        ({"seconds": -1.0}, "`seconds`"),
    ],
)
def test_bad_result(change, message):
    with pytest.raises(ValueError, match=message):
        replace(RESULT, **change)


def test_best_trial_prefers_the_dearest_score(make_study):
    study = make_study(supernet=6)
    best = max(study.trials, key=lambda trial: trial.value)
    assert stored.best_trial(study).number == best.number
    for fidelity, value in ((stored.VALIDATED, 0.2), (stored.TRAINED, 0.1)):
        trial = optuna.create_trial(
            params=best.params,
            distributions=best.distributions,
            value=value,
            user_attrs={stored.FIDELITY_ATTR: fidelity},
        )
        study.add_trial(trial)
        assert stored.best_trial(study).value == value
    assert stored.is_trained(stored.best_trial(study))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


def refusal(read):
    try:
        read()
    except ValueError as error:
        return str(error)
    return None


SPACE_TEXT = SearchSpace([EmbeddingSpec("user", 100, 8)], budget=0.5).to_json()


@given(
    key=st.sampled_from(["version", "mode", "budget", "specs"]),
    within=st.sampled_from([None, None, "name", "num_embeddings", "embedding_dim", "row_blocks"]),
    value=anything | st.just(10**30) | st.just([10**30]) | st.just([2**62] * 4),
)
@settings(deadline=None)
def test_any_space_is_read_or_refused_by_name(key, within, value):
    data = json.loads(SPACE_TEXT)
    if within is None:
        data[key] = value
    else:
        data["specs"][0][within] = value
    study = optuna.create_study(study_name="s")
    study.set_user_attr(stored.SPACE_ATTR, json.dumps(data))
    message = refusal(lambda: stored.space_of(study))
    if message is not None:
        assert message.startswith("The user attribute 'nis:space' of 's' cannot be read: ")
        assert len(message) < 400


@given(value=anything)
@settings(deadline=None)
def test_any_attribute_is_read_or_refused_by_name(value):
    study = optuna.create_study(study_name="s", direction="maximize")
    keys = (
        stored.SPACE_ATTR,
        stored.RESULTS_ATTR,
        stored.METRIC_ATTR,
        stored.SEARCH_SECONDS_ATTR,
        stored.PLAIN_SECONDS_ATTR,
    )
    for text in (value, json.dumps(value), json.dumps([value])):
        for key in keys:
            study.set_user_attr(key, text)
        for key, read in zip(
            keys,
            (stored.space_of, stored.results_of, stored.metric_of, stored.search_cost_ratio),
        ):
            message = refusal(lambda: read(study))  # noqa: B023
            if message is not None:
                assert key in message
                assert len(message) < 400


@pytest.mark.parametrize("key", [stored.SPACE_ATTR, stored.RESULTS_ATTR])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "cannot be read"),
        (json.dumps({"version": 99, "specs": []}), "cannot be read"),
        (7, "must be text"),
    ],
)
def test_odd_texts_are_refused_by_name(key, text, message):
    study = optuna.create_study(study_name="s")
    study.set_user_attr(key, text)
    read = {stored.SPACE_ATTR: stored.space_of, stored.RESULTS_ATTR: stored.results_of}[key]
    with pytest.raises(ValueError, match=f"The user attribute '{key}' of 's' {message}"):
        read(study)


def test_a_text_that_never_ends_is_not_read():
    study = optuna.create_study(study_name="s")
    for part in range(5):
        study.set_user_attr(stored.SPACE_ATTR + (f":{part}" if part else ""), "x" * 10**6)
    with pytest.raises(ValueError, match="'nis:space' of 's' must be of at most 4,000,000"):
        stored.space_of(study)


@given(value=anything)
@settings(deadline=None)
def test_numbers_of_trials_are_read_or_refused_by_name(value):
    trial = optuna.create_trial(value=1.0, user_attrs={"quality": value})
    message = refusal(lambda: stored.number_of(trial, "quality", 0.5))
    if message is None:
        assert stored.number_of(trial, "quality", 0.5) == (0.5 if value is None else value)
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


def test_best_trial_without_fidelity_ignores_what_is_not_finite():
    study = optuna.create_study(direction="maximize")
    for value in (0.1, math.inf, 0.3):
        study.add_trial(optuna.create_trial(value=value))
    study.add_trial(optuna.create_trial(state=optuna.trial.TrialState.FAIL))
    assert stored.best_trial(study).value == 0.3
    assert len(stored.finished_trials(study)) == 2


def test_best_trial_of_nothing():
    study = optuna.create_study(direction="maximize")
    with pytest.raises(ValueError, match="no finished trial"):
        stored.best_trial(study)


@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "maximize"]])
def test_other_directions_are_refused(directions):
    with pytest.raises(ValueError, match="must maximize one reward"):
        stored.finished_trials(optuna.create_study(directions=directions))


def test_best_allocation_is_that_of_the_best_trial(make_study):
    study = make_study(supernet=5, trained=2)
    expected = stored.best_trial(study).user_attrs[stored.NUM_PARAMETERS_ATTR]
    assert stored.best_allocation(study).num_parameters == expected


def test_value_of_a_failed_trial():
    trial = optuna.create_trial(state=optuna.trial.TrialState.FAIL)
    with pytest.raises(ValueError, match="has no value"):
        stored.value_of(trial)


def test_metric_has_a_default(make_study):
    assert stored.metric_of(make_study()) == "ROC-AUC"
    assert stored.metric_of(optuna.create_study()) == "quality"


def test_relative_gain_needs_both():
    uniform = replace(RESULT, name="uniform", values=(0.5, 0.5))
    assert stored.relative_gain([RESULT, uniform]) == pytest.approx(0.5)
    assert stored.relative_gain([RESULT]) is None
    assert stored.relative_gain([uniform]) is None
    assert stored.relative_gain([RESULT, replace(uniform, values=(0.0, 0.0))]) is None


def test_summary_names_the_metric_of_its_means(make_study):
    study = make_study()
    study.set_user_attr(stored.METRIC_ATTR, "MRR")
    stored.save_results(study, [replace(RESULT, metric="Recall@1")])
    assert stored.summary_of(study)["metric"] == "Recall@1"


def test_search_cost_ratio():
    study = optuna.create_study()
    study.set_user_attr(stored.SEARCH_SECONDS_ATTR, 30.0)
    assert stored.search_cost_ratio(study) is None
    study.set_user_attr(stored.PLAIN_SECONDS_ATTR, 20.0)
    assert stored.search_cost_ratio(study) == 1.5


def test_summary(make_study):
    study = make_study(supernet=4, results=True)
    summary = stored.summary_of(study)
    assert summary["relative_gain"] == pytest.approx(0.775 / 0.75 - 1)
    assert summary["uniform"]["seeds"] == [0, 1]
    assert summary["full"]["num_parameters"] == stored.space_of(study).full_parameters
    assert json.loads(json.dumps(summary)) == summary
    assert summary["warnings"] == []


def test_summary_before_a_retraining(make_study):
    study = make_study(supernet=4, trained=1)
    summary = stored.summary_of(study)
    assert summary["best"] == {
        "trial": 4,
        "metric": "ROC-AUC",
        "value": study.trials[4].user_attrs["quality"],
        "fidelity": "trained",
        "num_parameters": stored.best_allocation(study).num_parameters,
    }
    assert summary["metric"] is summary["relative_gain"] is summary["search_cost_ratio"] is None
    assert "nis" not in summary
    assert json.loads(json.dumps(summary)) == summary
    with pytest.raises(ValueError, match="search first"):
        stored.summary_of(make_study(supernet=0))


def test_parts_are_read_back():
    study = optuna.create_study(storage="sqlite://")
    assert stored.parts_of(study) == {}
    part = Part(20, 9, "ROC-AUC", 0.5, 0.13)
    stored.save_parts(study, {"train": Part(160), "validation": part})
    stored.save_parts(study, {"test": part})
    assert stored.parts_of(study) == {"train": Part(160), "validation": part, "test": part}


@pytest.mark.parametrize(
    "value",
    [[], "text", {"train": 3}, {"train": {}}, {"train": {"rows": "x"}}, {"a": {"cells": 1}},
     {"a": {"rows": 1, "metric": 3}}, {"a": {"rows": math.inf}}],
)  # fmt: skip
def test_malformed_parts(value):
    study = optuna.create_study(study_name="mine")
    study.set_user_attr(stored.PARTS_ATTR, value)
    with pytest.raises(ValueError, match="'nis:parts' of 'mine' cannot be read"):
        stored.parts_of(study)


def test_cautions_of_a_study(make_study):
    study = make_study(supernet=4)
    part = Part(20, 9, "ROC-AUC", 0.5, 0.2)
    stored.save_parts(study, {"validation": part})
    (small,) = stored.cautions_of(study)
    assert "standard error" in small
    study = make_study(supernet=4, trained=1)
    stored.save_parts(study, {"validation": part})
    assert ["has learned" in line for line in stored.cautions_of(study)] == [False, True]
    stored.save_results(study, [RESULT])
    assert stored.cautions_of(study) == [small]
