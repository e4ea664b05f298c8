from __future__ import annotations

import pytest

from optuna_nis.data.patterns import has_patterns, select_columns

NAMES = ["label", "I1", "I2", "C1", "C2", "C10", "x*", "!odd"]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ((), ()),
        (["C2", "C1"], ("C2", "C1")),
        (["C*"], ("C1", "C2", "C10")),
        (["C?"], ("C1", "C2")),
        (["C*", "!C2"], ("C1", "C10")),
        (["!C2", "C*"], ("C1", "C10")),
        (["C10", "C*"], ("C10", "C1", "C2")),
        (["C*", "C10"], ("C1", "C2", "C10")),
        (["!I*", "!x*", "!!odd"], ("C1", "C2", "C10")),
        (["x*"], ("x*",)),
        (["!odd", "I1"], ("!odd", "I1")),
        (["new", "label"], ("new", "label")),
        (["I1", "I1"], ("I1", "I1")),
        (["*1*"], ("I1", "C1", "C10")),
        (["!label", "!C*"], ("I1", "I2", "x*", "!odd")),
    ],
    ids=str,
)
def test_selected(patterns: list[str], found: tuple[str, ...]) -> None:
    assert select_columns(patterns, NAMES, exclude=["label"]) == found


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["c*"], "`features` must fit the columns 'label', .*, got 'c\\*', which fits none\\."),
        (["I1", "!J1"], "got 'J1', which fits none"),
        (["lab*"], "got 'lab\\*', which fits none; 'label' is something else already"),
        (["C*", "!C*"], "`features` must leave a column, got 'C\\*', '!C\\*' of the columns 'I1'"),
    ],
)
def test_refused(patterns: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_columns(patterns, NAMES, exclude=["label"])


def test_columns_are_named_by_texts() -> None:
    with pytest.raises(TypeError, match="`features` must be names of columns, got one with 5"):
        select_columns(["C1", 5], NAMES)  # type: ignore[list-item]


def test_errors_name_the_argument_and_few_columns() -> None:
    names = [f"C{place}" for place in range(100)]

    with pytest.raises(ValueError, match=r"`numeric` must fit .* 'C19', \.\.\., got 'I\*'"):
        select_columns(["I*"], names, argument="numeric")


def test_has_patterns() -> None:
    assert has_patterns(["a", "C*"])
    assert has_patterns(["!a"])
    assert has_patterns(["C?"])
    assert not has_patterns(["a", "b!"])
