from __future__ import annotations

from dataclasses import replace
import json
import math

import optuna
import pytest

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.study import results as stored
from optuna_nis.study.keys import MONITOR_MODE_ATTR

RESULT = stored.RetrainResult("nis", "NIS", "ROC-AUC", (0.7, 0.8), (0, 1), 100, 10, None, 2.5)


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


def test_other_metrics_are_read_back():
    more = replace(RESULT, metrics={"LogLoss": (0.3, 1), "GAUC": [0.6, 0.7]})
    assert more.metrics == {"LogLoss": (0.3, 1.0), "GAUC": (0.6, 0.7)}
    assert stored.RetrainResult.from_dict(json.loads(json.dumps(more.to_dict()))) == more != RESULT
    old = RESULT.to_dict()
    del old["metrics"]
    assert stored.RetrainResult.from_dict(old).metrics == {}
    for wrong in ((0.3,), (0.3, math.nan)):
        with pytest.raises(ValueError, match=r"`metrics` of 'nis' must .*'GAUC' .*values, 2"):
            replace(RESULT, metrics={"GAUC": wrong})
    with pytest.raises(ValueError, match="malformed"):
        stored.RetrainResult.from_dict(RESULT.to_dict() | {"metrics": [0.3]})


def test_how_trainings_went_is_read_back():
    went = replace(
        RESULT,
        val_values=(0.6, 0.7),
        epochs=(3, 30),
        stopped=(True, False),
        steps=(300, 3_000),
        decays=(1, 0),
        learning_rate=2e-3,
        train_rows=8_000,
    )
    assert went.val_mean == pytest.approx(0.65)
    assert stored.RetrainResult.from_dict(json.loads(json.dumps(went.to_dict()))) == went
    new = ("val_values", "epochs", "stopped", "steps", "decays", "learning_rate", "nbytes")
    new += ("train_rows",)
    old = {key: value for key, value in went.to_dict().items() if key not in new}
    assert stored.RetrainResult.from_dict(old) == RESULT
    assert RESULT.val_mean is None


def test_results_of_different_numbers_of_rows_are_not_compared():
    few = replace(RESULT, name="few", train_rows=800)
    assert stored.Results([few, RESULT]).train_rows == 800
    with pytest.raises(ValueError, match=r"on the same number of rows, got \[800, 8000\]"):
        stored.Results([few, replace(RESULT, train_rows=8_000)])


def test_bytes_are_those_of_the_sizes():
    assert RESULT.nbytes == 400
    assert str(RESULT) == "NIS: ROC-AUC 0.7500 ± 0.0707 on the test, 400 bytes (100 parameters)"
    allocation = Allocation([TableAllocation("user", 50, 2, (Tier(50, 2, 4),))])
    packed = stored.RetrainResult(
        "nis", "NIS", "ROC-AUC", (0.7,), (0,), 100, allocation=allocation
    )
    assert packed.nbytes == allocation.nbytes() < 100
    assert stored.RetrainResult.from_dict(json.loads(json.dumps(packed.to_dict()))) == packed
    # As written before there were precisions.
    old = {k: v for k, v in RESULT.to_dict().items() if k != "nbytes"}
    text = json.dumps({"version": 1, "tables": [
        {"name": "user", "num_embeddings": 50, "embedding_dim": 2, "tiers": [[50, 2]]}
    ]})  # fmt: skip
    found = stored.RetrainResult.from_dict(old | {"allocation": text})
    assert found.nbytes == 400
    assert str(found.allocation) == "user: 50x2 (of 50x2)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nbytes": -1}, "`nbytes`"),
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


def test_relative_gain_needs_both():
    uniform = replace(RESULT, name="uniform", values=(0.5, 0.5))
    assert stored.relative_gain([RESULT, uniform]) == pytest.approx(0.5)
    assert stored.relative_gain([RESULT]) is None
    assert stored.relative_gain([uniform]) is None
    assert stored.relative_gain([RESULT, replace(uniform, values=(0.0, 0.0))]) is None


def test_search_cost_ratio():
    study = optuna.create_study()
    study.set_user_attr(stored.SEARCH_SECONDS_ATTR, 30.0)
    assert stored.search_cost_ratio(study) is None
    study.set_user_attr(stored.PLAIN_SECONDS_ATTR, 20.0)
    assert stored.search_cost_ratio(study) == 1.5


UNIFORM = replace(RESULT, name="uniform", label="Uniform 8")
VERDICT = stored.Results([RESULT, UNIFORM], "Uniform 8 is as good, take it.", "uniform")


def test_a_verdict_stays_with_its_results():
    study = optuna.create_study(storage="sqlite://")
    assert (stored.results_of(study).verdict, stored.results_of(study).best) == ("", None)
    stored.save_results(study, VERDICT)
    found = stored.results_of(study)
    assert (found, found.verdict, found.best) == ([RESULT, UNIFORM], VERDICT.verdict, UNIFORM)
    assert str(found).splitlines() == [str(RESULT), str(UNIFORM), VERDICT.verdict]
    stored.save_results(study, [RESULT])
    assert (stored.results_of(study).verdict, stored.results_of(study).best) == ("", None)


def test_a_verdict_is_for_one_of_the_results():
    with pytest.raises(ValueError, match=r"`best` must be one of \['nis'\], got 'full'"):
        stored.Results([RESULT], "Take them.", "full")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "must hold `best` and `text`, got '\\[\\]'"),
        ('{"best": 3, "text": "a"}', "must hold `best` and `text`"),
        ('{"best": "full", "text": "a"}', "`best` must be one of"),
        (3, "must be text"),
    ],
)
def test_a_malformed_verdict(value, message):
    study = optuna.create_study()
    stored.save_results(study, [RESULT])
    study.set_user_attr("nis:verdict", value)
    with pytest.raises(ValueError, match=message):
        stored.results_of(study)


@pytest.mark.parametrize(
    ("nis", "uniform", "mode", "gain"),
    [
        (0.4, 0.5, "min", 0.2),
        (0.6, 0.5, "min", -0.2),
        (-1.0, -2.0, "max", 0.5),
        (0.6, 0.5, "max", 0.2),
        (0.6, 0.0, "max", None),
    ],
)
def test_better_is_what_the_metric_says(nis, uniform, mode, gain):
    results = stored.Results(
        [
            replace(RESULT, values=(nis, nis)),
            replace(RESULT, name="uniform", values=(uniform,) * 2),
        ],
        mode=mode,
    )
    found = stored.relative_gain(results)
    assert found is gain if gain is None else found == pytest.approx(gain)
    study = optuna.create_study(direction="maximize")
    study.set_user_attr(MONITOR_MODE_ATTR, mode)
    stored.save_results(study, results)
    assert stored.results_of(study).mode == mode
    assert stored.relative_gain(stored.results_of(study)) == found
