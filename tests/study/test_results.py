from __future__ import annotations

from dataclasses import replace
import json
import subprocess
import sys

from anything import anything, refusal
from hypothesis import given, settings
import optuna
import pytest

from optuna_nis._format import memory
from optuna_nis.study import results as stored
from optuna_nis.study.cautions import Part

RESULT = stored.RetrainResult("nis", "NIS", "ROC-AUC", (0.7, 0.8), (0, 1), 100, 10, None, 2.5)


def test_reading_needs_neither_torch_nor_plotly():
    code = "import sys, optuna_nis.study.results, optuna_nis.show.report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "optuna_nis.show.report" in loaded
    assert not {"torch", "plotly", "rich"} & loaded


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


def test_best_allocation_is_that_of_the_best_trial(make_study):
    study = make_study(supernet=5, trained=2)
    expected = stored.best_trial(study).user_attrs[stored.NUM_PARAMETERS_ATTR]
    assert stored.best_allocation(study).num_parameters == expected


def test_summary_names_the_metric_of_its_means(make_study):
    study = make_study()
    study.set_user_attr(stored.METRIC_ATTR, "MRR")
    stored.save_results(study, [replace(RESULT, metric="Recall@1")])
    assert stored.summary_of(study)["metric"] == "Recall@1"


def test_summary(make_study):
    study = make_study(supernet=4, results=True)
    summary = stored.summary_of(study)
    assert summary["relative_gain"] == pytest.approx(0.775 / 0.75 - 1)
    assert summary["uniform"]["seeds"] == [0, 1]
    space = stored.space_of(study)
    assert summary["full"]["num_parameters"] == space.full_parameters
    assert summary["full"]["nbytes"] == summary["full_nbytes"] == space.full_nbytes
    assert (summary["budget"], summary["budget_nbytes"]) == (space.budget, space.budget_nbytes)
    assert summary["precisions"] == [32]
    assert json.loads(json.dumps(summary)) == summary
    assert summary["warnings"] == []


def test_lines_and_summary_of_a_search_of_precisions(make_study):
    study = make_study(supernet=4, trained=1, precisions=(32, 4))
    best, space = stored.best_allocation(study), stored.space_of(study)
    expected = f" with {memory(best.nbytes(), space.full_nbytes)}: {best.num_parameters:,} param"
    assert expected in stored.score_line(study)
    summary = stored.summary_of(study)
    assert summary["best"]["nbytes"] == best.nbytes() < 4 * best.num_parameters
    assert summary["precisions"] == [32, 4]


def test_summary_before_a_retraining(make_study):
    study = make_study(supernet=4, trained=1)
    summary = stored.summary_of(study)
    assert summary["best"] == {
        "trial": 4,
        "metric": "ROC-AUC",
        "value": study.trials[4].user_attrs["quality"],
        "fidelity": "trained",
        "nbytes": stored.best_allocation(study).nbytes(),
        "num_parameters": stored.best_allocation(study).num_parameters,
    }
    assert summary["metric"] is summary["relative_gain"] is summary["search_cost_ratio"] is None
    assert "nis" not in summary
    assert json.loads(json.dumps(summary)) == summary
    with pytest.raises(ValueError, match="search first"):
        stored.summary_of(make_study(supernet=0))


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


def test_of_a_part_on_which_nothing_is_measured_only_the_rows_are_told(make_study):
    study = make_study(supernet=4)
    measured = Part(rows=100, positives=50, metric="ROC-AUC", chance=0.5, error=0.06)
    stored.save_parts(study, {"train": Part(rows=800), "validation": measured})
    parts = stored.summary_of(study)["parts"]
    assert parts["train"] == {"rows": 800}
    assert parts["validation"]["error"] == 0.06
