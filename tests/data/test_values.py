from __future__ import annotations

from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any
from unittest.mock import patch

from hypothesis import example, given
from hypothesis import strategies as st
import numpy as np
import pandas as pd
import pyarrow
import pytest

from optuna_nis.data.values import (
    ArrowValues,
    ObjectValues,
    array_of,
    series_of,
    values_of,
    values_of_arrow,
)

TEXT = st.text(max_size=5)
INTEGERS = st.one_of(st.integers(0, 3), st.integers(-(2**70), 2**70))
FLOATS = st.one_of(st.floats(), st.integers(-3, 3).map(float), INTEGERS.map(float))
QUERIES = st.lists(
    st.one_of(
        TEXT,
        INTEGERS,
        FLOATS,
        st.booleans(),
        st.binary(max_size=3),
        st.decimals(allow_nan=False),
        FLOATS.filter(lambda value: value == value).map(Decimal),
        st.dates().map(lambda day: date(2013, 1, day.day)),
        st.just(pd.Timestamp("2013-01-01")),
    )
)
TYPES = {
    "text": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    "bytes": st.binary(max_size=3),
    "integers": st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3),
    "floats": FLOATS.filter(lambda value: value == value),
}


def _both(name: str, data: st.DataObject) -> tuple[ArrowValues, ObjectValues]:
    objects = tuple(data.draw(st.lists(TYPES[name], unique=True, min_size=1, max_size=20)))
    typed = _many(objects)
    assert isinstance(typed, ArrowValues)
    return typed, ObjectValues(objects)


def _many(objects: tuple[Any, ...]) -> ArrowValues | ObjectValues:
    """Values kept as if they were many."""
    with patch("optuna_nis.data.values._FEW", 0):
        return values_of(objects)


@pytest.mark.parametrize("name", TYPES)
@given(data=st.data())
def test_typed_values_are_as_those_of_python(name: str, data: st.DataObject) -> None:
    typed, plain = _both(name, data)
    queries = data.draw(QUERIES) + data.draw(st.lists(st.sampled_from(plain.objects)))

    assert typed.find(queries).tolist() == plain.find(queries).tolist()
    assert [query in typed for query in queries] == [query in plain for query in queries]
    assert list(map(repr, typed)) == list(map(repr, typed.objects)) == list(map(repr, plain))
    assert len(typed) == len(plain)
    assert typed.types == plain.types
    assert typed.num_fractions == plain.num_fractions


@pytest.mark.parametrize("name", TYPES)
@given(data=st.data())
def test_places_are_those_of_a_list(name: str, data: st.DataObject) -> None:
    typed, plain = _both(name, data)
    size = len(plain) + 1
    places = data.draw(st.lists(st.integers(-size, size - 1)))

    assert typed.at(places) == plain.at(places)
    assert list(typed.head(2)) == list(plain.head(2)) == list(plain)[:2]
    for wrong in (size, -size - 1):
        for values in (typed, plain):
            with pytest.raises(IndexError):
                values.at([wrong])


@given(first=st.lists(FLOATS | TEXT | INTEGERS, unique=True), data=st.data())
@example(first=[0.0], data=None)
def test_equal_is_what_is_written_alike(first: list[Any], data: st.DataObject | None) -> None:
    second = [-0.0] if data is None else data.draw(st.permutations(first))
    written = [[(type(value), repr(value)) for value in each] for each in (first, second)]
    kept = [_many(tuple(each)) for each in (first, second)]

    if isinstance(kept[0], ArrowValues):
        assert (kept[0] == kept[1]) == (written[0] == written[1])
    else:
        assert isinstance(kept[1], ObjectValues)


@pytest.mark.parametrize(
    "objects",
    [
        (1, "1"),
        (1, 2.5),
        (2**63,),
        (-(2**63) - 1, 3),
        (float("nan"),),
        ("\ud800",),
        (True, False),
        (Decimal("1.10"),),
        (date(2013, 1, 1),),
        (pd.Timestamp("2013-01-01"),),
    ],
    ids=repr,
)
def test_what_has_no_type_of_its_own_is_kept_as_it_is(objects: tuple[Any, ...]) -> None:
    kept = _many(objects)

    assert isinstance(kept, ObjectValues)
    assert kept.objects == objects


def test_a_mixture_cut_to_one_type_is_typed() -> None:
    with patch("optuna_nis.data.values._FEW", 1):
        mixed = values_of((3, 4, "x"))

        assert mixed.head(2) == values_of((3, 4))
        assert isinstance(mixed.head(2), ArrowValues)
        assert isinstance(mixed.head(1), ObjectValues)


def test_few_values_stay_objects() -> None:
    few, many = values_of(tuple(range(5000))), values_of(tuple(range(5001)))

    assert isinstance(few, ObjectValues)
    assert isinstance(many, ArrowValues)
    assert isinstance(many.head(5000), ObjectValues)
    assert isinstance(values_of_arrow(pyarrow.array(range(5001))), ArrowValues)


@pytest.mark.parametrize("few", [0, 5000])
@pytest.mark.parametrize(
    ("array", "objects"),
    [
        (pyarrow.array(["a", ""]), ("a", "")),
        (pyarrow.array(["a", "b"], pyarrow.large_string()), ("a", "b")),
        (pyarrow.array(["b", "a"]).dictionary_encode(), ("b", "a")),
        (pyarrow.chunked_array([["a"], ["b", "c"], []], pyarrow.string()), ("a", "b", "c")),
        (pyarrow.chunked_array([["a"], ["b"]]).dictionary_encode(), ("a", "b")),
        (pyarrow.array([b"ab", b"cd"], pyarrow.binary(2)), (b"ab", b"cd")),
        (pyarrow.array([3, 1], pyarrow.uint8()), (3, 1)),
        (pyarrow.array([3, 2**64 - 1], pyarrow.uint64()), (3, 2**64 - 1)),
        (pyarrow.array([0.5, -0.0]), (0.5, -0.0)),
        (pyarrow.array(np.array([0.1, 3], np.float32)), (0.1, 3.0)),
        (pyarrow.array([True, False]), (True, False)),
        (pyarrow.array([Decimal("1.10")]), (Decimal("1.10"),)),
        (pyarrow.array([date(2013, 1, 1)]), (date(2013, 1, 1),)),
        (pyarrow.array([pd.Timestamp("2013-01-01 05:00")]), (pd.Timestamp("2013-01-01 05:00"),)),
    ],
    ids=lambda each: str(each.type) if hasattr(each, "type") else "",
)
def test_arrow_arrays_are_kept_as_their_objects(
    array: Any, objects: tuple[Any, ...], few: int
) -> None:
    with patch("optuna_nis.data.values._FEW", few):
        kept, same = values_of_arrow(array), values_of(objects)

    assert list(map(repr, kept)) == list(map(repr, objects))
    assert type(kept) is type(same)
    assert kept.types == same.types


@pytest.mark.parametrize(
    "array",
    [
        pyarrow.array(["a", None]),
        pyarrow.array([1.5, float("nan")]),
        pyarrow.array(["a", None]).dictionary_encode(),
        pyarrow.nulls(2),
    ],
    ids=lambda array: str(array.type),
)
def test_no_value_may_be_missing(array: pyarrow.Array) -> None:
    with pytest.raises(ValueError, match="`values` must not hold missing values"):
        values_of_arrow(array)


def test_a_value_of_objects_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="each value once"):
        values_of_arrow(pyarrow.array([date(2013, 1, 1)] * 2))


def test_lists_are_no_values() -> None:
    with pytest.raises(TypeError):
        values_of_arrow(pyarrow.array([["a"]]))


def test_other_things_that_equal_a_value_are_found() -> None:
    values = _many((3, 4))

    assert Fraction(3) in values
    assert np.int8(4) in values
    assert np.float32(3) in values
    assert Fraction(1, 3) not in values
    with pytest.raises(TypeError, match="unhashable"):
        [3] in values  # noqa: B015


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pd.Series([1, 2]), pyarrow.int64()),
        (pd.Series([1, 2], dtype="uint8"), pyarrow.uint8()),
        (pd.Series([1.5, None]), pyarrow.float64()),
        (pd.Series([True, False]), pyarrow.bool_()),
        (pd.Series(["a", None], dtype="string[pyarrow]"), pyarrow.large_string()),
        (pd.Series(["a", None], dtype=pd.ArrowDtype(pyarrow.string())), pyarrow.string()),
    ],
    ids=lambda each: str(getattr(each, "dtype", "")),
)
def test_columns_without_objects_become_arrays(column: pd.Series, kind: pyarrow.DataType) -> None:
    array = array_of(column)

    assert array.type == kind
    assert [value == value and value is not None for value in array.to_pylist()] == [
        not missing for missing in column.isna()
    ]


@pytest.mark.parametrize(
    "column",
    [
        pd.Series(["a", 1], dtype=object),
        pd.Series([1, 2], dtype=">i8"),
        pd.Series([0.5], dtype="float32"),
        pd.Series(["a"], dtype="category"),
        pd.to_datetime(pd.Series(["2013-01-01"])),
    ],
    ids=lambda column: str(column.dtype),
)
def test_other_columns_do_not(column: pd.Series) -> None:
    assert array_of(column) is None


def test_whole_numbers_beside_missing_ones_stay_whole() -> None:
    assert series_of(pyarrow.array([2**53 + 1, None])).tolist()[0] == 2**53 + 1
