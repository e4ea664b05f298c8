from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from optuna_nis.data.coded import coded
from optuna_nis.data.labels import Label


def _labels(text: str, cells: list[Any]) -> list[float]:
    found = Label.parse(text).of(coded(pd.Series(cells), "x"))
    return [None if np.isnan(label) else label for label in found]  # type: ignore[misc]


@pytest.mark.parametrize("text", ["rating=>4", "rating=4", "rating=<4"])
def test_a_rule_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="`label` must be a column or a rule with one of >=, <="):
        Label.parse(text, ["rating"])
    assert Label.parse(text, ["rating", text]).column == text


@pytest.mark.parametrize(
    ("rule", "cells", "labels"),
    [
        ("x>=4", [5, 3, None, 4], [1, 0, None, 1]),
        (" x < 2.5 ", [1.0, 2.5], [1, 0]),
        ("x<=-1", [-1, 0], [1, 0]),
        ("x>0", [0, 3], [0, 1]),
        ("x==click", ["click", "view", None], [1, 0, None]),
        ("x!=view", ["click", "view"], [1, 0]),
        ("x==3", [3, 4], [1, 0]),
        ("x==3", ["3", "4"], [1, 0]),
        ("x==true", [True, False], [1, 0]),
        ("x", [1, -1, 1], [1, 0, 1]),
        ("x", ["-1", "1"], [0, 1]),
        ("x", ["+1", "-1"], [1, 0]),
        ("x", ["yes", "no"], [1, 0]),
        ("x", [-1, 1, None], [0, 1, None]),
    ],
)
def test_labels(rule: str, cells: list[Any], labels: list[float]) -> None:
    assert _labels(rule, cells) == labels


@pytest.mark.parametrize(
    ("rule", "cells", "message"),
    [
        ("x", [1, 2, 3, 4, 5], r"'x' must hold 0 and 1 only .*such as `x>=3`"),
        ("x", [2, 1, 1], r"got 2, 1\. If 2 is a yes, say so: `x==2`\."),
        ("x", [-1, 0, 1], "must hold 0 and 1 only"),
        ("x", ["alive", "dead"], r"If 'dead' is a yes, say so: `x==dead`\."),
        ("x", ["click", "noclick"], r"If 'click' is a yes, say so: `x==click`\."),
        ("x", ["Unpaid", "paid"], r"If 'paid' is a yes, say so: `x==paid`\."),
        ("x", ["negative", "none"], r"If 'none' is a yes"),
        ("x=='001'", ["001", "002"], r"got 0 in every row\. Quotes are .*: write `x==001`\."),
        ('x!="a b"', ["a b", "b"], r"got 1 in every row\. Quotes are .*: write `x!=a b`\."),
        ("x=='a'", ["b", "c"], r"got 0 in every row\.$"),
        ("x=='1'", [1, 2], r"'x' with .'1'., got 1 in it\. Quotes are .*: write `x==1`"),
        ("x=='3'", [1, 2], r"'x' with .'3'., got 1 in it\.$"),
        ("x>=4", ["a", "b"], "'x>=4' compares the column 'x' with '4', got 'a'"),
        ("x>=4", ["NA", "b"], "`na_values`, on the command line `--na-values NA`"),
        ("x>=4", [5, 6], "'x>=4' must give two classes, got 1 in every row"),
        ("x", [1, 1], "'x' must hold two classes, got only 1"),
        ("x>=good", [1], "`label` must compare with a number after >=, such as rating>=4, got"),
    ],
)
def test_other_labels_are_refused(rule: str, cells: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _labels(rule, cells)


def test_a_column_may_be_called_like_a_rule() -> None:
    assert Label.parse("a>b", ["a>b"]) == Label("a>b")
    assert Label.parse("a>1", ["a", "a>b"]) == Label("a", ">", "1")


def test_values_that_no_row_has_any_more_are_no_matter() -> None:
    column = coded(pd.Series([0, 1, 7, 0]), "x").take(np.array([0, 1, 3]))

    assert Label("x").of(column).tolist() == [0, 1, 0]
