from __future__ import annotations

from dataclasses import replace
from functools import partial
import math
from pathlib import Path
from typing import Any
import warnings

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch

from optuna_nis import Allocation, SearchSpace, Tier, serve
from optuna_nis.data import Features, read_table
from optuna_nis.data.reading import read_batches
from optuna_nis.data.tally import Tally
from optuna_nis.lightning.evaluating import evaluate_table
from optuna_nis.models import reference_model
from optuna_nis.serve import predictions
from optuna_nis.serve.predictions import predict_table
from optuna_nis.serve.predictor import Predictor

ROWS = pd.DataFrame(
    {
        "user": [f"{i % 9:02}" for i in range(50)],
        "item": [i % 7 for i in range(50)],
        "price": [i / 7 if i % 5 else None for i in range(50)],
        "time": pd.date_range("2024-02-28", periods=50, freq="12h"),
    }
)


def _predictor(targets: Any = None) -> Predictor:
    torch.manual_seed(0)
    features = Features.fit(
        ROWS[["user", "item", "price"]],
        task="ranking" if targets is None else "retrieval",
        numeric=["price"],
        targets=targets,
    )
    full = SearchSpace(features.embedding_specs(4)).full()
    return Predictor(reference_model(features, hidden=[8], init_std=1.0)(full), full, features)


def _write(rows: pd.DataFrame, path: Path) -> Path:
    rows.to_parquet(path) if path.suffix == ".parquet" else rows.to_csv(path, index=False)
    return path


def _read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, dtype={"user": str})


@pytest.mark.parametrize("output", ["found.csv", "found.csv.gz", "found.parquet"])
@pytest.mark.parametrize("name", ["new.csv", "new.parquet"])
def test_predictions_in_batches_are_those_at_once(
    name: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    predictor, predict = _predictor(), Predictor.predict

    def counted(self: Predictor, frame: pd.DataFrame, **options: Any) -> Any:
        rows.append(len(frame))
        return predict(self, frame, **options)

    path = _write(ROWS, tmp_path / name)
    expected = predictor.predict(read_table(path, like=predictor.features))
    monkeypatch.setattr(predictions, "read_batches", partial(read_batches, rows=7))
    monkeypatch.setattr(Predictor, "predict", counted)

    found_rows = predict_table(predictor, path, tmp_path / output, keep=["user", "ti*"]).rows
    assert found_rows == 50

    assert rows == [7] * 7 + [1]
    found = _read(tmp_path / output)
    assert list(found) == ["user", "time", "prediction"]
    assert found["user"].tolist() == ROWS["user"].tolist()
    np.testing.assert_allclose(found["prediction"], expected, rtol=1e-6)
    assert pd.to_datetime(found["time"]).tolist() == ROWS["time"].tolist()
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted([name, output])


def test_dates_and_times_are_written_as_they_are(tmp_path: Path) -> None:
    rows = ROWS.assign(day=ROWS["time"].dt.date, at=ROWS["time"].dt.tz_localize("UTC"))
    path = _write(rows, tmp_path / "new.parquet")
    predict_table(_predictor(), path, tmp_path / "found.csv", keep=["day", "time", "at"])
    first = (tmp_path / "found.csv").read_text().splitlines()[2].rpartition(",")[0]
    assert first == "2024-02-28,2024-02-28 12:00:00,2024-02-28 12:00:00Z"


@pytest.mark.parametrize("output", ["found.csv", "found.parquet"])
@pytest.mark.parametrize("mixed", [False, True])
def test_targets_are_columns(mixed: bool, output: str, tmp_path: Path) -> None:
    targets = pd.Series([f"t{i % 5}" if mixed and i % 5 < 2 else i % 5 for i in range(50)])
    predictor = _predictor(targets)
    expected = predictor.predict(ROWS)
    path = _write(ROWS, tmp_path / "new.parquet")
    assert predict_table(predictor, path, tmp_path / output).rows == 50
    found = _read(tmp_path / output)
    assert list(found) == [f"top_{place}" for place in range(1, 6)]
    assert found.astype(str).to_numpy().tolist() == expected.astype(str).tolist()
    if not mixed:
        assert (found.dtypes == np.int64).all()


@pytest.mark.parametrize(
    ("output", "keep", "message"),
    [
        ("found.txt", [], r"`output` must be a file that ends in one of .csv, .csv.gz, .parquet"),
        ("new.parquet", [], "`output` must not be a file of the table"),
        ("new.parquet/found.csv", [], "`output` must be somewhere that can be written"),
        ("found.csv", ["hist"], "`output` must end in .parquet to keep the lists of 'hist'"),
        ("found.csv", ["nothing"], "has no column 'nothing'"),
        ("found.csv", ["z*"], "`keep` must fit the columns"),
        ("found.csv", ["prediction"], "`keep` must not have the column 'prediction'"),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is_predicted(
    output: str,
    keep: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = _write(ROWS.assign(hist=[[1]] * 50, prediction=1), tmp_path / "new.parquet")
    monkeypatch.setattr(predictions, "read_batches", None)
    with pytest.raises(ValueError, match=message):
        predict_table(_predictor(), path, tmp_path / output, keep=keep)
    assert [each.name for each in tmp_path.iterdir()] == ["new.parquet"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_fails_on_its_way_leaves_the_earlier_file(suffix: str, tmp_path: Path) -> None:
    path = _write(ROWS, tmp_path / "new.csv")
    with path.open("a") as file:
        file.write("01,2\n")
    output = tmp_path / f"found{suffix}"
    output.write_text("earlier")
    with pytest.raises(ValueError, match="row 52 has 2 instead of 4 cells"):
        predict_table(_predictor(), path, output)
    assert output.read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("oov", ["zero", "shared"])
@pytest.mark.parametrize("name", ["new.csv", "new.parquet"])
def test_unknown_and_missing_values_are_counted(
    name: str, oov: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = pd.DataFrame(
        {
            "user": [i % 60 for i in range(130)],
            "tags": ["a|b", "b|rare", "NA", ""] * 32 + ["c", "a"],
            "city": ["x", "y"] * 65,
        }
    )
    features = Features.fit(
        frame, task="ranking", separators={"tags": "|"}, na_values=["NA"], min_count=3, oov=oov
    )
    full = SearchSpace(features.embedding_specs(4)).full()
    sizes = Allocation(
        table if name != "city" else replace(table, tiers=()) for name, table in full.items()
    )
    predictor = Predictor(reference_model(features, hidden=[8])(sizes), sizes, features)
    new = pd.DataFrame(
        {
            "user": [0, 1, 59, None, 777],
            "tags": ["a|new|NA", "", None, "rare|c|b", "NA|NA"],
            "city": ["x", "z", "z", "z", None],
        }
    ).astype({"user": "Int64"})
    path = _write(new, tmp_path / name)
    monkeypatch.setattr(predictions, "read_batches", partial(read_batches, rows=2))

    found = predict_table(predictor, path, tmp_path / "found.csv")

    assert found.tally.rows == {"user": 5, "tags": 5}
    assert found.tally.values == {"user": 4, "tags": 5}
    assert found.tally.unknown == {"user": 2, "tags": 2}
    assert found.tally.missing == {"user": 1, "tags": 3}
    assert str(found.tally) == (
        "unknown: user 2 of 4 values (50.0%), tags 2 of 5 values (40.0%)\n"
        "missing: tags 3 of 5 rows (60.0%), user 1 of 5 rows (20.0%)"
    )


@pytest.mark.parametrize("shares", [False, True])
def test_values_without_a_row_are_unknown_in_bags_too(shares: bool, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "item": [i % 7 for i in range(70)],
            "bag": [[i % 7, i % 3] for i in range(70)],
            "tags": [["a", "b"], ["a"], ["c"], ["a", "b"], ["d"]] * 14,
        }
    )
    share = {"bag": "item"} if shares else {}
    features = Features.fit(
        frame, task="ranking", separators={"bag": None, "tags": None}, share=share
    )
    full = SearchSpace(features.embedding_specs(4)).full()
    sizes = Allocation(replace(table, tiers=(Tier(2, 4),)) for table in full.values())
    predictor = Predictor(reference_model(features, hidden=[8])(sizes), sizes, features)
    values = predictor.features.vocabularies["tags"].values
    new = pd.DataFrame(
        {"item": [0, 0], "bag": [[1, 0], [0, 99]], "tags": [values[1:], [values[0]]]}
    )
    new.to_parquet(tmp_path / "new.parquet")
    found = predict_table(predictor, tmp_path / "new.parquet", tmp_path / "found.csv")
    assert found.tally.values["tags"] == len(values)
    assert found.tally.unknown["tags"] == len(values) - 2
    kept = set(predictor.features.vocabularies["bag"].values[:2])
    assert found.tally.unknown["bag"] == sum(value not in kept for value in (1, 0, 0, 99))


def test_a_folder_is_no_predictor(tmp_path: Path) -> None:
    folder: Any = tmp_path / "model"
    for call in (
        lambda: predict_table(folder, "new.csv", tmp_path / "found.csv"),
        lambda: evaluate_table(folder, "new.csv", label="y"),
    ):
        with pytest.raises(
            TypeError, match=r"`predictor` must be a Predictor, got .*`Predictor\.load\(folder"
        ):
            call()
    assert (serve.Predictor, serve.predict_table) == (Predictor, predict_table)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("kept", [3, 200, 300])
def test_a_column_of_which_hardly_a_value_is_known_is_told(
    kept: int, loaded: bool, tmp_path: Path
) -> None:
    rows = pd.DataFrame({"user": [f"u{i % 9}" for i in range(300)]})
    rows = rows.assign(tags=rows["user"], session=[f"s{i}" for i in range(300)])
    features = Features.fit(rows, task="ranking", separators={"tags": "|"})
    full = SearchSpace(features.embedding_specs(4)).full()
    # Of sessions hardly one comes again.
    tiers = {"session": (Tier(kept, 4),)}
    sizes = Allocation(replace(t, tiers=tiers.get(n, t.tiers)) for n, t in full.items())
    predictor = Predictor(reference_model(features, hidden=[8])(sizes), sizes, features)
    if loaded:
        predictor.save(tmp_path / "model")
        predictor = Predictor.load(tmp_path / "model")
    rows["session"] = [f"t{i}" for i in range(300)]
    for strange in ([], ["user"], ["tags"], ["user", "tags"]):
        new = rows.assign(**{name: rows[name].str.upper() for name in strange})
        path = _write(new, tmp_path / "new.parquet")
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            predict_table(predictor, path, tmp_path / "found.csv")
        messages = [str(each.message) for each in told]
        start = "300 of 300 values of the column"
        assert messages == [
            f"{start} {name!r} are unknown to the model. Are its ids those of training, and "
            "written as there, such as 'u0'?"
            for name in strange
        ]
        # So few may be new.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            predict_table(predictor, _write(new[:9], path), tmp_path / "found.csv")


def test_values_that_share_rows_are_known(tmp_path: Path) -> None:
    features = Features.fit(ROWS[["user", "item"]], task="ranking")
    full = SearchSpace(features.embedding_specs(4)).full()
    sizes = Allocation(
        replace(table, tiers=(Tier(2, 4),), num_shared=2) for table in full.values()
    )
    predictor = Predictor(reference_model(features, hidden=[8])(sizes), sizes, features)
    path = _write(ROWS, tmp_path / "new.parquet")
    assert not predict_table(predictor, path, tmp_path / "found.csv").tally.unknown.total()


def test_no_number_is_a_missing_value_in_arrow_too() -> None:
    features = Features.fit(pd.DataFrame({"size": [1.0, 2.0] * 5}), task="ranking")
    full = SearchSpace(features.embedding_specs(4)).full()
    predictor = Predictor(reference_model(features, hidden=[8])(full), full, features)
    numbers = pyarrow.array([1.0, math.nan, 9.0, None])
    for column in (pd.array(numbers, dtype=pd.ArrowDtype(numbers.type)), numbers.to_pandas()):
        tally = Tally()
        predictor.predict(pd.DataFrame({"size": column}), tally=tally)
        assert (tally.missing["size"], tally.values["size"], tally.unknown["size"]) == (2, 2, 1)
