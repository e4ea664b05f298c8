from __future__ import annotations

from dataclasses import replace
import math

import optuna
import pytest

from optuna_nis.study import results as stored
from optuna_nis.study.cautions import Part, cautions
from optuna_nis.study.results import RetrainResult
from optuna_nis.study.searches import finish, join
from optuna_nis.study.uncertainty import auc_standard_error, share_standard_error


def ranking(rows: int) -> Part:
    half = rows // 2
    return Part(rows, half, "ROC-AUC", 0.5, auc_standard_error(0.5, half, rows - half))


def result(mean: float, *, val: float | None = None, stopped: bool = True) -> RetrainResult:
    vals = () if val is None else (val,)
    return RetrainResult(
        "nis",
        "NIS",
        "ROC-AUC",
        (mean,),
        (0,),
        10,
        val_values=vals,
        epochs=(7,),
        stopped=(stopped,),
    )


def test_nothing_to_mind():
    parts = {"train": Part(80_000), "validation": ranking(10_000), "test": ranking(10_000)}
    assert cautions(parts, best=("the best sizes", 0.7)) == []
    assert cautions(parts, [result(0.7, val=0.7)]) == []
    assert cautions({}, [result(0.3, val=0.3)]) == []


@pytest.mark.parametrize(("rows", "small"), [(20, True), (3_200, True), (3_600, False)])
def test_a_part_that_is_too_small_to_tell(rows, small):
    part = ranking(rows)
    assert part.is_small == small == (part.error > 0.01)
    lines = cautions({"validation": part})
    assert len(lines) == small
    if rows == 20:
        (line,) = lines
        assert "The validation part is small, 20 rows, 10 of them positive" in line
        assert "the standard error of its ROC-AUC is 0.13" in line


def test_a_model_that_has_not_learned():
    parts = {"validation": ranking(4_000), "test": ranking(4_000)}
    bound = 0.5 + 2 * auc_standard_error(0.5, 2_000, 2_000)
    assert cautions(parts, best=("the best sizes", bound + 0.001)) == []
    (line,) = cautions(parts, best=("the best sizes", bound - 0.001))
    assert "has learned: on the validation part, ROC-AUC is no better than chance" in line
    assert "0.5000 ± 0.0183 (two standard errors), with the best sizes (0.5173)" in line
    lines = cautions(parts, [result(0.27, val=0.4)], best=("the best sizes", 0.3))
    assert ["with NIS (0.4000)" in lines[0], "with NIS (0.2700)" in lines[1]] == [True, True]
    assert "on the test part" in lines[1]


def test_probabilities_that_say_less_than_the_share_of_positives():
    parts = {"test": replace(ranking(10_000), log_loss=0.6931)}
    good = replace(result(0.7), metrics={"LogLoss": (0.69,)})
    poor = replace(result(0.7), label="uniform 6", metrics={"LogLoss": (1.7,)})
    assert cautions(parts, [good, result(0.7)]) == []
    (line,) = cautions(parts, [good, poor])
    assert "whose log loss on the test part is 0.6931: uniform 6 (1.7000)." in line
    assert cautions({"test": ranking(10_000)}, [poor]) == []


def test_retrieval_that_is_no_better_than_popularity():
    part = Part(2_000, None, "MRR", 0.05, share_standard_error(0.05, 2_000))
    (line,) = cautions({"validation": part}, best=("the best sizes", 0.055))
    assert "no better than naming the most frequent targets, 0.0500" in line
    assert cautions({"validation": part}, best=("the best sizes", 0.08)) == []


def test_trainings_that_did_not_end_by_themselves():
    (line,) = cautions({}, [result(0.7, stopped=False), result(0.7)])
    assert "at the most epochs allowed, 7, and not by themselves: NIS (1 of 1)" in line
    assert "--max-epochs" in line


def test_training_data_are_not_measured():
    part = Part(10, error=math.inf)
    assert not part.is_small
    assert not part.is_chance(0.0)


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


def test_a_search_that_has_not_ended_is_told(make_study):
    study = make_study(supernet=6)
    search = join(study, "a", seed=0)
    (line,) = stored.cautions_of(study)
    assert "The search has not come to its end" in line
    assert stored.unfinished(study) == [line]
    finish(study, search, 3.0)
    assert stored.cautions_of(study) == stored.unfinished(study) == []
    study = make_study(supernet=6, trained=1)
    join(study, "a", seed=0)
    assert stored.cautions_of(study) == []


def test_sizes_that_are_not_the_best_any_more_are_told(make_study):
    study = make_study(supernet=6, validated=2, results=True)
    assert stored.cautions_of(study) == []
    others = [t for t in study.trials if t.params != stored.best_trial(study).params]
    study.add_trial(
        optuna.create_trial(
            params=others[0].params,
            distributions=others[0].distributions,
            value=0.9,
            user_attrs={stored.FIDELITY_ATTR: stored.TRAINED},
        )
    )
    (line,) = stored.cautions_of(study)
    assert "not the best sizes of the study any more" in line
    assert line in stored.summary_of(study)["warnings"]
