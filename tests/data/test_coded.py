from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pandas as pd
import pytest

from optuna_nis.data.coded import CodedColumn, coded, coded_bags
from optuna_nis.data.vocabulary import Vocabulary

CELLS = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=30)
BAGS = st.lists(st.lists(st.sampled_from("abc"), max_size=4), min_size=1, max_size=20)


@given(CELLS)
def test_a_vocabulary_is_that_of_the_cells(cells: list[Any]) -> None:
    column = coded(pd.Series(cells, dtype=object), "x")
    if any(cells):
        assert column.vocabulary() == Vocabulary.from_values(cells)
    else:
        with pytest.raises(ValueError, match="'x' is empty: all"):
            column.vocabulary()


@given(CELLS.filter(any), st.randoms(use_true_random=False))
def test_rows_have_the_ids_of_their_cells(cells: list[Any], random: Any) -> None:
    rows = np.array([random.randrange(len(cells)) for _ in range(9)])
    vocabulary = Vocabulary(["c", "x", "a"], [3, 2, 1])
    column = coded(pd.Series(cells, dtype=object), "x")

    found = column.take(rows).encode(column.ids_of_values(vocabulary))

    assert found.tolist() == vocabulary.encode([cells[row] for row in rows]).tolist()


def _bags(bags: list[list[str]]) -> CodedColumn:
    return coded_bags(pd.Series(bags), "x", None, 99, "last")


def _decoded(column: CodedColumn) -> list[list[str]]:
    assert column.offsets is not None
    values = [column.values[code] for code in column.cells]
    return [values[a:b] for a, b in zip(column.offsets[:-1], column.offsets[1:])]


@given(BAGS, st.integers(1, 3), st.booleans(), st.data())
def test_bags_are_taken_and_limited(
    bags: list[list[str]], length: int, last: bool, data: Any
) -> None:
    rows = data.draw(st.lists(st.integers(0, len(bags) - 1), max_size=8))
    column = _bags(bags)

    found = column.take(np.array(rows, np.int64)).limited(length, "last" if last else "first")

    kept = slice(-length, None) if last else slice(length)
    assert _decoded(found) == [bags[row][kept] for row in rows]
    assert _decoded(column.take(slice(1, 5))) == bags[1:5]


def test_bags_are_padded_with_the_id_of_a_missing_value() -> None:
    column = _bags([["a", "b"], [], ["b"]])
    vocabulary = Vocabulary(["b"], [2])
    ids = column.ids_of_values(vocabulary)

    assert column.encode(ids).tolist() == [[1, 0], [1, 1], [0, 1]]
    assert column.present().tolist() == [2, 0, 1]
    assert column.known(vocabulary.knows(ids)).tolist() == [1, 0, 1]


def test_markers_in_bags_are_no_items() -> None:
    column = coded_bags(pd.Series(["a|NA", "NA"]), "x", "|", 9, "last", ["NA"])

    assert column.present().tolist() == [1, 0]
    assert column.lengths().tolist() == [1, 0]


def test_values_that_are_equal_are_one() -> None:
    column = coded(pd.Series([1, 1.0, "1", None], dtype=object), "x")

    assert (list(column.values), column.codes.tolist()) == ([1, "1"], [0, 0, 1, -1])
