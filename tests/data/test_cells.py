from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pandas as pd
import pytest

from optuna_nis.data import cells

UTC = "2024-01-31 10:00:00+00:00"


def column(*values: Any) -> pd.Series:
    return pd.Series(values, dtype=object)


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["7", "-12", "0"], [7, -12, 0]),
        ([" 7", "8 "], [7, 8]),
        ([str(2**60 + 1), str(2**60)], [2**60 + 1, 2**60]),
        ([str(2**70), "1"], [2**70, 1]),
        (["1", "1.0", "2.5", "-.5", "1e3", "inf"], [1, 1, 2.5, -0.5, 1000, float("inf")]),
        (["0.0", "-0.0"], [0, 0]),
        (["True", "FALSE"], [True, False]),
        (["2024-01-31", "2024-01-31 10:00:00.5"], ["2024-01-31", "2024-01-31 10:00:00.5"]),
        (["2024-01-31T10:00Z", "2024-01-31T12:30:00+02:00"], [UTC, "2024-01-31 10:30:00+00:00"]),
    ],
)
def test_text_becomes_what_it_spells(texts: list[str], values: list[Any]) -> None:
    typed = cells.infer(column(*texts, None))

    assert typed.iloc[:-1].tolist() == [
        pd.Timestamp(value) if isinstance(value, str) else value for value in values
    ]
    assert pd.isna(typed.iloc[-1])


@pytest.mark.parametrize(
    "texts",
    [
        ["007", "8"],
        ["1", "guest"],
        ["NA", "1"],
        ["1.1", "1.10"],
        ["7", " 7"],
        [str(2**53 + 1), str(2**53), "0.5"],
        ["+7"],
        ["1_000"],
        ["true", "True"],
        ["true", "1"],
        ["31/01/2024"],
        ["2024-13-01"],
        ["2024-01-31", "2024-01-31 00:00"],
        ["2024-01-31 10:00", UTC],
        ["nan"],
        [" "],
    ],
    ids=str,
)
def test_text_that_would_lose_something_stays(texts: list[str]) -> None:
    assert cells.infer(column(*texts, None)).tolist() == [*texts, None]


def test_no_text_stays_as_it_is() -> None:
    assert cells.infer(column(None, None)).tolist() == [None, None]
    assert cells.infer(column()).empty


@pytest.mark.parametrize(
    ("values", "markers"),
    [
        (["1", "NA", "2", "null"], ["NA", "null"]),
        (["1", "guest", "NA"], []),
        (["NA"], []),
        (["a", "b"], []),
    ],
)
def test_numbers_but_for_a_marker(values: list[str], markers: list[str]) -> None:
    assert cells.numbers_but_for(column(*values, None)) == markers


@pytest.mark.parametrize(
    ("values", "left"),
    [
        (["NA", "-1", "x"], [None, None, "x"]),
        ([-1, 2, -1.0], [None, 2, None]),
        ([Decimal("-1"), Decimal("2")], [None, 2]),
        ([pd.Timestamp("1900-01-01"), pd.Timestamp("2024-01-01")], [None, "2024-01-01"]),
        ([True, False], [True, False]),
    ],
)
def test_markers_are_missing(values: list[Any], left: list[Any]) -> None:
    found = cells.without(column(*values), ["NA", "-1", "1900-01-01", "1"])

    assert [None if pd.isna(value) else value for value in found] == [
        pd.Timestamp(value) if value == "2024-01-01" else value for value in left
    ]


def test_lists_have_no_markers() -> None:
    lists = column([1, 2], [3])

    assert cells.without(lists, ["1"]) is lists
    assert cells.like(lists, frozenset({str})) is lists


@pytest.mark.parametrize(
    ("types", "values", "read"),
    [
        ({str}, [7, 7.0, "7", True, b"x", b"\xff"], ["7", "7", "7", "True", "x", b"\xff"]),
        ({str}, [pd.Timestamp("2024-01-31"), 2.5], ["2024-01-31", "2.5"]),
        ({int}, ["7", "007", "7.5", "guest", 7], [7, 7, 7.5, "guest", 7]),
        ({int, str}, ["7", "guest"], [7, "guest"]),
        ({bool}, ["TRUE", "no", "0", "1.0", Decimal(2)], [True, "no", 0, 1.0, 2]),
        ({bool, int}, ["false", "7"], [False, 7]),
        ({bool, str}, ["true", "7"], [True, "7"]),
        ({Decimal}, ["1.10", 2.5, "x"], [Decimal("1.1"), Decimal("2.5"), "x"]),
        (
            {pd.Timestamp},
            ["2024-01-31", date(2024, 1, 31), UTC, "2024-99-99"],
            [pd.Timestamp("2024-01-31")] * 2 + [pd.Timestamp(UTC), "2024-99-99"],
        ),
        ({date}, [pd.Timestamp("2024-01-31"), "2024-01-31", "x"], [date(2024, 1, 31)] * 2 + ["x"]),
        ({bytes}, ["x", b"y"], [b"x", b"y"]),
    ],
    ids=str,
)
def test_cells_are_read_as_values_of_a_vocabulary(
    types: set[type], values: list[Any], read: list[Any]
) -> None:
    found = cells.like(column(*values, None), frozenset(types)).tolist()

    assert found == [*read, None]
    assert [type(value) for value in found[:-1]] == [type(value) for value in read]


@pytest.mark.parametrize(
    ("text", "integer"),
    [
        ("5.0", "5"),
        ("-0.0", "0"),
        ("-12.00", "-12"),
        ("1e+16", "10000000000000000"),
        ("9007199254740993.0", "9007199254740993"),
        *[
            (text, None)
            for text in ("5", "5.5", "05.0", "inf", "1e99999", "1e3", "nan", "x", "1.0.0")
        ],
    ],
)
def test_integers_as_floats(text: str, integer: str | None) -> None:
    assert cells.integer_of_float(text) == integer
    assert cells.are_integers_as_floats(column("7.0", None, text)) is (integer is not None)
