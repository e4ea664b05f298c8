from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any
import warnings

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
from numpy.typing import NDArray
import pandas as pd
import pytest
import torch

from optuna_nis.data import (
    EmbeddingDataModule,
    Features,
    Source,
    TableDataModule,
    cells,
    read_table,
)
from optuna_nis.data.scaling import Scaling, numbers_of, scaled


def _floats(*values: float | None) -> Any:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float32)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=40))
def test_training_rows_have_mean_zero_and_deviation_one(numbers: list[float]) -> None:
    values = _floats(*numbers, numbers[0] + 1e3)
    inputs = Scaling.fit(values, "x").apply(values)

    assert inputs.shape == (len(values), 1)
    assert inputs.mean() == pytest.approx(0, abs=1e-3)
    assert inputs.std() == pytest.approx(1, abs=1e-3)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=2, max_size=20, unique=True))
def test_larger_numbers_have_larger_inputs_whatever_their_sign(numbers: list[float]) -> None:
    values = np.sort(_floats(*numbers))
    inputs = Scaling.fit(_floats(-10, 0, 1000), "x").apply(values)[:, 0]

    assert (np.diff(inputs) >= 0).all()


def test_a_missing_number_is_the_mean_and_is_told() -> None:
    scaling = Scaling.fit(_floats(1, None, 3), "x")

    assert scaling.width == 2
    assert scaling.apply(_floats(None, 1)).tolist()[0] == [0, 1]
    without = Scaling.fit(_floats(1, 2, 3), "x")
    assert without.apply(_floats(None)).tolist() == [[0]]


def test_only_gaps_may_tell_something() -> None:
    assert Scaling.fit(_floats(7, None, 7), "x").apply(_floats(7, None)).tolist() == [
        [0, 0],
        [0, 1],
    ]


def test_chunks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=100).astype(np.float32)
    whole = Scaling.fit(values, "x")
    monkeypatch.setattr("optuna_nis.data.scaling._CHUNK", 7)

    parts = Scaling.fit(values, "x")

    assert (parts.mean, parts.std) == pytest.approx((whole.mean, whole.std))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((5, 5, 5), "'x' is constant: all its numbers in the training part are 5,"),
        ((None, None), "'x' is empty: all its numbers are missing"),
        ((1, np.inf), "'x' must hold finite numbers, got inf"),
    ],
)
def test_useless_columns_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scaling.fit(_floats(*values), "x")


@pytest.mark.parametrize(
    ("cells", "numbers"),
    [
        ([1, -2, 3], [1, -2, 3]),
        ([True, False], [1, 0]),
        ([" 1.5", "-2e3", "", None], [1.5, -2000, np.nan, np.nan]),
        (["True", "false", "", None], [1, 0, np.nan, np.nan]),
        ([1.5, None], [1.5, np.nan]),
    ],
)
def test_numbers_of_cells(cells: list[Any], numbers: list[float]) -> None:
    np.testing.assert_equal(numbers_of(pd.Series(cells), "x"), np.array(numbers, np.float32))


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1", "NA", "NA"], "got 'NA', first in the row of index 1. .* `na_values`"),
        (["1,5"], "'x' must hold numbers to be numeric, got '1,5'"),
        (
            ["True", "yes"],
            "'x' must hold numbers to be numeric, got 'yes', first in the row of index 1",
        ),
        ([pd.Timestamp("2024-01-31")], "got times such as 2024-01-31"),
        ([1.0, 1e39], "must hold finite numbers, got inf .or one too large for 32 bits"),
    ],
)
def test_other_cells_are_refused(cells: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        numbers_of(pd.Series(cells), "x")


@pytest.mark.parametrize("numbers", [1.7e9 + 4e4 * np.arange(99), 1e-8 * np.arange(1, 99)])
def test_what_varies_little_is_no_constant(numbers: NDArray[Any]) -> None:
    values = numbers.astype(np.float32)
    scaled = Scaling.fit(values, "x").apply(values)
    assert (scaled.mean(), scaled.std()) == pytest.approx((0, 1), abs=1e-3)


def _frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    price = rng.normal(10, 5, 60).astype(np.float32)
    price[::7] = np.nan
    return pd.DataFrame({"user": rng.integers(0, 4, 60), "price": price, "age": range(60)})


class _Visits(EmbeddingDataModule):
    def load(self) -> Source:
        return Source(_frame(), pd.Series(np.arange(60) % 2))


def test_a_batch_has_the_numbers_of_all_columns_side_by_side() -> None:
    data = _Visits("ranking", numeric=["price", "age"], seed=1)
    data.setup("test")

    assert list(data.vocabularies) == ["user"]
    assert data.features.num_numeric == 3
    batch = next(iter(data.test_dataloader()))
    assert batch["numeric"].shape == (6, 3)
    assert "numbers: price, age; price with missing ones" in data.summary()
    encoded = data.encode(_frame())["numeric"].numpy()
    numbers = {name: _frame()[name].to_numpy(np.float32) for name in ("price", "age")}
    np.testing.assert_array_equal(encoded, scaled(data.features.numeric, numbers))


def test_features_with_numbers_are_written_and_read() -> None:
    features = Features.fit(_frame(), task="ranking", numeric=["price"])

    assert Features.from_json(features.to_json()) == features
    assert features.to_dict()["version"] == 3
    assert features.columns == ("user", "age", "price")
    plain = Features.fit(_frame()[["user"]], task="ranking")
    assert plain.to_dict()["version"] == 2
    assert "numeric" not in plain.to_dict()


def test_scalings_are_those_of_training_alone() -> None:
    data = _Visits("ranking", numeric=["age"], split="chronological")

    assert data.features.numeric["age"] == Scaling.fit(np.arange(48, dtype=np.float32), "age")


def test_a_numeric_column_is_no_feature() -> None:
    with pytest.raises(ValueError, match="`numeric` must not name a feature too, got 'age'"):
        _Visits("ranking", features=["user", "age"], numeric=["age"])
    with pytest.raises(ValueError, match="must not name a feature 'numeric', the key of the num"):
        Features.fit(_frame().rename(columns={"user": "numeric"}), task="ranking", numeric=["age"])
    with pytest.raises(ValueError, match="`numeric` must be a list of columns, got the text"):
        _Visits("ranking", numeric="age")
    features = Features.fit(_frame(), task="ranking", numeric=["price"])
    with pytest.raises(ValueError, match="`frame` has no column 'price'"):
        features.encode(_frame().drop(columns="price"))


@pytest.mark.parametrize("name", ["t.csv", "t.parquet", "decimals.parquet", "halves.parquet"])
def test_markers_are_missing_in_new_rows_as_in_training(name: str, tmp_path: Path) -> None:
    price = [-999.0, 1.5, 2.5, None] * 10
    frame = pd.DataFrame({"u": [0, 1] * 20, "price": price, "y": [0, 1, 1, 0] * 10})
    if name == "t.csv":
        frame.to_csv(tmp_path / name, index=False)  # As -999.0.
    elif name == "decimals.parquet":
        exact = [None if each is None else Decimal(str(each)) for each in price]
        frame.assign(price=exact).to_parquet(tmp_path / name)
    else:
        kind = "float32" if name == "halves.parquet" else "float64"
        frame.astype({"price": kind}).to_parquet(tmp_path / name)
    data = TableDataModule(
        tmp_path / name,
        label="y",
        features=["u"],
        numeric=["price"],
        na_values=["-999", "none"],
    )
    data.setup("fit")
    assert data.features.numeric["price"].mean == pytest.approx(
        np.log1p([1.5, 2.5]).mean(), abs=0.1
    )

    read = data.features.encode(read_table(tmp_path / name, like=data.features))["numeric"]
    given = data.features.encode(frame)["numeric"]
    assert torch.equal(read, given)
    assert read[:, 1].tolist() == [1.0, 0.0, 0.0, 1.0] * 10
    text = frame.assign(price=["none", "1.5", "-999.00", None] * 10)
    assert data.features.encode(text)["numeric"][:, 1].tolist() == [1.0, 0.0, 1.0, 1.0] * 10


def test_a_yes_is_no_number() -> None:
    assert numbers_of(pd.Series([1, 0]), "x", ["true"]).tolist() == [1, 0]
    assert cells.without(pd.Series([1, 0]), ["true"]).tolist() == [1, 0]


def test_numbers_of_which_floats_tell_few_apart_are_told() -> None:
    seconds = 1.7e9 + np.arange(0, 1200, 3)
    with pytest.warns(UserWarning, match="column 'x', from 1.7e.09 .* tell few of them apart"):
        Scaling.fit(seconds.astype(np.float32), "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for numbers in (
            seconds - 1.7e9,
            np.arange(8e6, 8e6 + 400),
            [0, 1],
            [-1e-9, 1e30],
            [5e6, 6e6],
            [-3, -2.5],
        ):
            Scaling.fit(np.array(numbers, dtype=np.float32), "x")
