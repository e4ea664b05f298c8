from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
import torch

from optuna_nis.lightning import DataConfig, Predictor, retrain, search, searching
from optuna_nis.lightning.job import _items_come_again
from optuna_nis.study.keys import DATA_ATTR
from optuna_nis.study.results import (
    best_allocation,
    metric_of,
    parts_of,
    results_of,
    space_of,
    summary_of,
)

FAST = {"budget": 0.5, "embedding_dim": 8, "epochs": 1, "num_updates": 3}


def test_search_retrain_predict(
    data: DataConfig, study: optuna.Study, clicks: Path, tmp_path: Path
) -> None:
    best = search(study, data, **FAST)  # type: ignore[arg-type]
    assert best == best_allocation(study)
    fidelities = {trial.user_attrs["fidelity"] for trial in study.trials}
    assert fidelities == {"supernet", "validated", "dropped", "trained"}
    results = retrain(study, seeds=[0, 1], output=str(tmp_path / "model"), max_epochs=2)
    assert [result.name for result in results][:3] == ["nis", "uniform", "full"]
    assert results == results_of(study)
    assert all(len(result.values) == 2 for result in results)
    nis, uniform, full = results[:3]
    assert max(nis.nbytes, uniform.nbytes) <= summary_of(study)["budget_nbytes"] < full.nbytes
    summary = json.loads(json.dumps(summary_of(study)))
    assert {"dataset", "task", "budget", "nis", "uniform", "full"} <= set(summary)
    # No training was as long as it takes.
    assert summary["search_cost_ratio"] is None
    assert summary["relative_gain"] == pytest.approx(nis.mean / uniform.mean - 1)

    assert summary["verdict"] == results.verdict

    predictor = Predictor.load(tmp_path / "model")
    assert results.best is not None
    assert predictor.allocation == results.best.allocation
    assert results.best.name == summary["take"]
    rows = pd.read_csv(clicks).head(7).assign(user="stranger")
    found = predictor.predict(rows.drop(columns="clicked"))
    assert found.shape == (7,)
    assert ((found > 0) & (found < 1)).all()
    again = tmp_path / "again"
    predictor.save(again)
    np.testing.assert_array_equal(Predictor.load(again).predict(rows), found)
    assert predictor.predict(rows.head(0)).shape == (0,)
    with pytest.raises(ValueError, match="no column 'city'"):
        predictor.predict(rows.drop(columns="city"))
    (again / "weights.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.pt"):
        Predictor.load(again)


def test_ids_without_a_row_may_share_some(data: DataConfig, study: optuna.Study) -> None:
    options: dict[str, Any] = {**FAST, "budget": 0.3}
    best = search(study, data, **options, oov="hash")
    space = space_of(study)
    assert {spec.oov for spec in space.specs} == {"hash"}
    tried = [space.allocation(trial.params) for trial in study.trials]
    assert all(map(space.fits, tried))
    numbers = {table.num_shared for each in tried for table in each.values()}
    assert numbers >= {0, 1}
    assert space.fits(best)
    with pytest.raises(ValueError, match=r"on other data, with oov 'hash' \(now 'zero'\)"):
        search(study, data, **options)
    # It is the same whoever says so.
    assert search(study, dataclasses.replace(data, oov="hash"), **options) == best
    # As it was before new values had ids.
    kept = json.loads(study.user_attrs[DATA_ATTR])
    study.set_user_attr(DATA_ATTR, json.dumps({n: kept[n] for n in kept if n != "oov"}))
    assert search(study, data, **options, oov="hash") == best
    with pytest.raises(ValueError, match="another space"):
        search(study, data, **options)


def test_a_finished_search_is_not_repeated(data: DataConfig, study: optuna.Study) -> None:
    best = search(study, data, **FAST)  # type: ignore[arg-type]
    trials = len(study.trials)
    lines: list[str] = []
    assert search(study, data, **FAST, progress=lines.append) == best  # type: ignore[arg-type]
    assert len(study.trials) == trials
    assert "nothing is left to do" in lines[-1]


def test_another_space_or_other_data_are_refused(data: DataConfig, study: optuna.Study) -> None:
    search(study, data, **FAST)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"another space: a budget of .* bytes, now "):
        search(study, data, **(FAST | {"budget": 0.2}))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"on other data, with seed 0 \(now 1\)\. Use another"):
        search(study, dataclasses.replace(data, seed=1), **FAST)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_search_of_precisions(data: DataConfig, study: optuna.Study) -> None:
    few = FAST | {"budget": "3%"}
    best = search(study, data, **few, precisions=(32, 8, 2))  # type: ignore[arg-type]
    space = space_of(study)
    assert space.precisions == (32, 8, 2)
    assert best.nbytes() <= space.budget_nbytes < space.full_nbytes / 30
    for trial in study.trials:
        nbytes = space.allocation(trial.params).nbytes()
        assert trial.user_attrs["nbytes"] == nbytes <= space.budget_nbytes
    with pytest.raises(
        ValueError, match=r"another space: `precisions` of .* was \(32, 8, 2\), now "
    ):
        search(study, data, **few)  # type: ignore[arg-type]
    # Started again, it knows what it was searched with.
    assert search(study, data, **few, precisions=[2, 8, 32]) == best  # type: ignore[arg-type]
    results = retrain(study, seeds=[0], max_epochs=1)
    nis, uniform, full = results[:3]
    assert nis.nbytes == best_allocation(study).nbytes()
    assert full.nbytes == space.full_nbytes
    assert uniform.nbytes <= space.budget_nbytes


def test_an_unknown_precision_is_told_before_the_study_is_touched(study: optuna.Study) -> None:
    data = DataConfig(dataset="flights", max_rows=500)
    with pytest.raises(ValueError, match=r"`precisions` of '.*' must hold some of \[32, 16, 8, 4"):
        search(study, data, budget="25%", precisions=(32, 3))
    assert not study.user_attrs


def test_retrain_needs_a_search_and_seeds(study: optuna.Study) -> None:
    with pytest.raises(ValueError, match="`seeds` must hold at least one seed"):
        retrain(study, seeds=[])
    with pytest.raises(ValueError, match="does not say which data it is about"):
        retrain(study)


@pytest.mark.parametrize("rate", [0, "high", None])
def test_a_bad_option_is_told_before_the_study_is_touched(rate: Any) -> None:
    study = optuna.create_study(direction="maximize")
    data = DataConfig(dataset="flights", max_rows=500)
    with pytest.raises(ValueError, match="`learning_rate` must be a number"):
        search(study, data, budget="25%", learning_rate=rate)
    assert not study.user_attrs
    assert not study.trials


def test_a_study_keeps_the_options_of_the_model(
    data: DataConfig, study: optuna.Study, tmp_path: Path
) -> None:
    search(study, data, **FAST, hidden=(8,), dropout=np.float32(0.5))  # type: ignore[arg-type]
    retrain(study, seeds=[0], max_epochs=1, output=str(tmp_path), l2=1e-4)
    options = Predictor.load(tmp_path).model.options
    assert options == {"hidden": [8], "dropout": 0.5, "l2": 1e-4}
    with pytest.raises(
        ValueError,
        match=r"with hidden \[8\] \(now unset\), dropout 0\.5 \(now unset\)\. Use another",
    ):
        search(study, data, **FAST)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Users who go on to the next item or the one after it; the latest item is the last."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(150):
        items = (rng.integers(30) + rng.integers(1, 3, 8).cumsum()) % 30
        rows += [(items[:n].tolist(), items[n], n) for n in range(1, 8)]
    path = tmp_path_factory.mktemp("data") / "sequences.parquet"
    pd.DataFrame(rows, columns=["history", "item", "time"]).to_parquet(path)
    return DataConfig(
        table=str(path), task="retrieval", label="item", bags={"history": None}, time="time"
    )


@pytest.mark.parametrize("again", [False, True])
def test_items_that_come_again_are_seen(
    again: bool, sequences: DataConfig, tmp_path: Path
) -> None:
    rows = pd.read_parquet(str(sequences.table))
    if again:
        # One of ten has its item in its own history.
        rows["history"] = [
            [*history, item] if row % 10 == 0 else history
            for row, (history, item) in enumerate(zip(rows["history"], rows["item"]))
        ]
    rows.to_parquet(tmp_path / "rows.parquet")
    module = dataclasses.replace(sequences, table=str(tmp_path / "rows.parquet")).datamodule(
        withhold_test=True
    )
    state, lines = torch.get_rng_state(), []
    assert _items_come_again(module, None, lines.append) is again
    assert torch.equal(torch.get_rng_state(), state)
    assert [line.split(" of the targets")[0] for line in lines] == ["10%"] * again


@pytest.mark.slow
@pytest.mark.parametrize(("model", "gained"), [("dcn", "ROC-AUC"), ("sasrec", "MRR")])
def test_another_model_is_searched_and_retrained(
    model: str,
    gained: str,
    data: DataConfig,
    sequences: DataConfig,
    study: optuna.Study,
    tmp_path: Path,
) -> None:
    config = sequences if model == "sasrec" else data
    best = search(study, config, **FAST, model=model, learning_rate=0.01)  # type: ignore[arg-type]
    tables = ["items"] if model == "sasrec" else ["user", "city", "genres"]
    assert list(best) == tables
    assert metric_of(study) == gained
    results = retrain(study, seeds=[0], max_epochs=2, output=str(tmp_path))
    assert [result.name for result in results[:3]] == ["nis", "uniform", "full"]
    predictor = Predictor.load(tmp_path)
    options = {"model": model, "learning_rate": 0.01}
    assert predictor.model.options.items() >= options.items()
    if model == "sasrec":
        # The rows are split in time.
        assert predictor.model.options["every_position"]
        assert predictor.model.options["repeats"] is False
        found = predictor.predict(pd.DataFrame({"history": [[3, 4, 6], [20], []]}))
        assert found.shape == (3, 30)
    with pytest.raises(
        ValueError, match=rf"other model options, with model '{model}' \(now unset"
    ):
        search(study, config, **FAST)  # type: ignore[arg-type]


@pytest.mark.slow
def test_retrieval_on_flights(study: optuna.Study, tmp_path: Path) -> None:
    data = DataConfig(dataset="flights", task="retrieval", max_rows=4_000)
    search(study, data, budget="25%", epochs=1, num_updates=2)
    results = retrain(study, seeds=[0], output=str(tmp_path), max_epochs=1)
    # The search goes by a smooth stand-in, and the report does not.
    assert metric_of(study) == "MRR"
    assert results[0].metric == "Recall@1"
    parts = parts_of(study)
    assert (parts["validation"].metric, parts["test"].metric) == ("MRR", "Recall@1")
    # The most frequent destinations are found now and then by naming them always.
    assert 0.02 < parts["test"].chance < parts["validation"].chance < 0.5
    data_module = data.datamodule(withhold_test=True)
    predictor = Predictor.load(tmp_path)
    found = predictor.predict(data_module.load().frame.head(3))
    assert found.shape == (3, 50)
    assert set(found.ravel()) <= set(predictor.features.targets.values)  # type: ignore[union-attr]


def test_a_search_validates_on_a_sample_of_a_large_part(
    data: DataConfig, study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = data.datamodule(withhold_test=True).sizes["validation"]
    monkeypatch.setattr(searching, "_MOST_VALIDATED", rows // 2)
    lines: list[str] = []
    search(study, data, progress=lines.append, **FAST)  # type: ignore[arg-type]
    (line,) = (each for each in lines if "validates on" in each)
    assert line == (
        f"The search validates on {rows // 2} of {rows} validation rows, drawn at random."
    )
    assert parts_of(study)["validation"].rows == rows // 2
    # The trainings to the end know what all rows say.
    retrain(study, seeds=[0], max_epochs=1)
    assert parts_of(study)["validation"].rows == rows
