from __future__ import annotations

from datetime import date, datetime, timezone
from decimal import Decimal
import json
import pickle
import time
import tracemalloc
from typing import Any
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pandas as pd
import pyarrow
import pytest

from optuna_nis.data import Vocabulary

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
VALUES = st.one_of(
    TEXT,
    st.integers(-(2**70), 2**70),
    st.integers(0, 3),
    st.floats(allow_nan=False),
    st.booleans(),
    st.binary(max_size=3),
    st.decimals(allow_nan=False, places=2),
    st.dates(),
    st.datetimes(min_value=datetime(1700, 1, 1), max_value=datetime(2200, 1, 1)),
    st.datetimes(
        min_value=datetime(1700, 1, 1),
        max_value=datetime(2200, 1, 1),
        timezones=st.just(timezone.utc),
    ),
)
MISSING = st.sampled_from([None, float("nan"), pd.NaT, pd.NA])


@given(st.lists(st.one_of(VALUES, MISSING), max_size=30), VALUES)
def test_from_values_mixed_round_trip(values: list[object], known: object) -> None:
    values = [*values, known]
    vocabulary = Vocabulary.from_values(values)

    again = Vocabulary.from_json(vocabulary.to_json())

    assert again == vocabulary
    assert [type(value) for value in again.values] == [type(v) for v in vocabulary.values]
    assert again.encode(values).tolist() == vocabulary.encode(values).tolist()
    json.loads(vocabulary.to_json(), parse_constant=pytest.fail)


@given(st.lists(st.one_of(VALUES, MISSING), max_size=30), VALUES)
def test_encode_gives_ranks_by_falling_count(values: list[object], known: object) -> None:
    values = [*values, known]
    vocabulary = Vocabulary.from_values(values)

    ids = vocabulary.encode(values)

    present = [value for value in values if not pd.isna(value)]
    assert vocabulary.counts.sum() == len(present)
    assert (np.diff(vocabulary.counts) <= 0).all()
    assert (ids == vocabulary.num_embeddings).tolist() == [bool(pd.isna(v)) for v in values]
    for value, index in zip(values, ids.tolist()):
        if not pd.isna(value):
            assert vocabulary.values[index] == value
            assert vocabulary.counts[index] == sum(other == value for other in present)


def test_equally_frequent_values_keep_their_order() -> None:
    assert Vocabulary.from_values(["c", "a", "b", "b", "a", "d"]).values == ("a", "b", "c", "d")


def test_numbers_and_text_are_told_apart() -> None:
    vocabulary = Vocabulary.from_values([1, 1, 1, "1", "1", 2.5])

    assert vocabulary.encode(["1", 1, 1.0, True, 2.5, "2.5"]).tolist() == [1, 0, 0, 0, 2, 3]
    assert vocabulary.types == {int, float, str}


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([3, 3, 4]),
        pd.Series([3, None, 4], dtype="Int64"),
        pd.Series([3.0, None, 4.0]),
        pd.Series([True, False, True]),
        pd.Series([True, None], dtype="boolean"),
        pd.Series(["x", None]),
        pd.Series(["x", "y"], dtype="category"),
        pd.Series(["x", None], dtype="string"),
        pd.to_datetime(pd.Series(["2013-01-01 05:00:00.000000001", None])),
        pd.to_datetime(pd.Series(["2013-01-01"])).dt.tz_localize("America/New_York"),
        pd.Series([date(2013, 1, 1), None]),
        pd.Series([np.int64(7), np.datetime64("2013-01-01"), np.str_("x")], dtype=object),
    ],
    ids=lambda column: str(column.dtype),
)
def test_every_dtype_is_encoded_and_restored(column: pd.Series) -> None:
    vocabulary = Vocabulary.from_values(column)

    again = Vocabulary.from_json(vocabulary.to_json())

    assert again == vocabulary
    known = again.encode(column) < again.num_embeddings
    assert known.tolist() == column.notna().tolist()


def test_integers_find_the_floats_that_missing_values_made_of_them() -> None:
    vocabulary = Vocabulary.from_values(pd.Series([10, 20, 20]))

    assert vocabulary.encode(pd.Series([10.0, np.nan, 20.0])).tolist() == [1, 2, 0]


def test_max_size_keeps_the_most_frequent() -> None:
    vocabulary = Vocabulary.from_values(list("abbccc"), max_size=2)

    assert vocabulary.values == ("c", "b")
    assert vocabulary.counts.tolist() == [3, 2]
    assert vocabulary.encode(list("abc")).tolist() == [2, 1, 0]


def test_decode_reverses_encode() -> None:
    vocabulary = Vocabulary.from_values(["a", "b", "b"])

    assert vocabulary.decode(vocabulary.encode(["a", "z", "b"])) == ["a", None, "b"]


def test_looks() -> None:
    vocabulary = Vocabulary.from_values([4, 5, 6, 7])

    assert repr(vocabulary) == "Vocabulary(4 values: 4, 5, 6, ...)"
    assert len(vocabulary) == 4
    assert 5 in vocabulary
    assert 8 not in vocabulary
    assert {vocabulary: "found"}[Vocabulary.from_values([4, 5, 6, 7])] == "found"
    assert vocabulary != Vocabulary.from_values([4.0, 5.0, 6.0, 7.0])


def test_millions_of_rows_are_encoded_fast() -> None:
    ids = pd.Series(np.random.default_rng(0).integers(0, 50_000, 1_000_000)).astype(str)
    start = time.perf_counter()

    Vocabulary.from_values(ids).encode(ids)

    assert time.perf_counter() - start < 5.0


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "'city' is empty: it has no row"), ([None, np.nan], "'city' is empty: all 2 values")],
)
def test_empty_columns_are_refused(values: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_values(values, name="city")


@pytest.mark.parametrize("max_size", [0, -1, True])
def test_max_size_must_be_positive(max_size: int) -> None:
    with pytest.raises(ValueError, match="`max_size` of 'city' must be at least 1"):
        Vocabulary.from_values(["a"], name="city", max_size=max_size)


def test_lists_are_no_ids() -> None:
    with pytest.raises(TypeError, match="'tags' has several values in one row"):
        Vocabulary.from_values([["a"], ["b"]], name="tags")


def test_other_types_are_no_ids() -> None:
    with pytest.raises(TypeError, match=r"'z' must hold text, .* of type complex"):
        Vocabulary.from_values([1j], name="z")


@pytest.mark.parametrize(
    ("values", "counts", "message"),
    [
        ([], [], "at least one value"),
        (["a", "a"], [1, 1], "each value once"),
        (["a", "b"], [1], "2 numbers"),
        (["a", "b"], [1, 2], "fall with the rank"),
        (["a"], [0], "must be positive"),
    ],
)
def test_constructor_checks(values: list[str], counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary(values, counts)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "nonsense",
        '{"version": 9}',
        '{"version": 1, "types": "str", "values": null, "counts": [1]}',
        '{"version": 1, "types": "set", "values": ["a"], "counts": [1]}',
        '{"version": 1, "types": ["str"], "values": ["a", "b"], "counts": [1, 1]}',
        '{"version": 1, "types": "decimal", "values": ["x"], "counts": [1]}',
    ],
)
def test_malformed_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"vocabulary|Expecting"):
        Vocabulary.from_json(text)


def test_decimals_keep_their_digits() -> None:
    vocabulary = Vocabulary.from_values([Decimal("1.10")])

    assert str(Vocabulary.from_json(vocabulary.to_json()).values[0]) == "1.10"


@pytest.mark.parametrize("dtype", ["float16", "float32", "Float32", "float[pyarrow]", object])
def test_floats_of_less_precision_are_the_numbers_that_they_are_written_as(dtype: Any) -> None:
    cells = np.array([0.1, 2.5, 0.1, 3], dtype=np.float32)
    column = pd.Series(list(cells) if dtype is object else cells, dtype=dtype)

    assert Vocabulary.from_values(column).values == (0.1, 2.5, 3.0)
    assert Vocabulary([0.1, 2.5], [1, 1]).encode(column).tolist() == [0, 1, 0, 2]


ARROW_TYPES = {
    "int8": st.integers(-3, 3),
    "uint8": st.integers(0, 3),
    "int64": st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3),
    "uint64": st.integers(0, 2**64 - 1) | st.integers(0, 3),
    "float32": st.floats(width=32) | st.integers(-3, 3).map(float),
    "float64": st.floats() | st.integers(-3, 3).map(float) | st.just(2.0**63),
    "bool": st.booleans(),
    "string": TEXT,
    "large_string": TEXT,
    "binary": st.binary(max_size=3),
    "date32": st.dates(),
    "null": st.none(),
}


KNOWN = st.one_of(
    st.lists(each, unique=True, min_size=1, max_size=20)
    for each in (
        TEXT,
        st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3),
        st.floats(allow_nan=False) | st.integers(-3, 3).map(float),
        st.binary(max_size=3),
        VALUES,
    )
)


@pytest.mark.parametrize("name", ARROW_TYPES)
@settings(max_examples=40)
@given(data=st.data(), known=KNOWN)
def test_arrow_arrays_are_encoded_as_columns_are(
    name: str, data: st.DataObject, known: list[Any]
) -> None:
    kind = pyarrow.type_for_alias(name)
    alike = [value for value in known if _holds(kind, value)]
    cells = st.one_of(st.none(), ARROW_TYPES[name], st.sampled_from(alike or [None]))
    array = pyarrow.array(data.draw(st.lists(cells, max_size=20)), kind)
    few = Vocabulary(known, [1] * len(known))
    expected = few.encode(_objects(array)).tolist()
    with patch("optuna_nis.data.values._FEW", 0):
        many = Vocabulary(known, [1] * len(known))
        assert many.to_json() == few.to_json()
        assert repr(many) == repr(few)
        for vocabulary in (few, many):
            _check_encodes(vocabulary, array, expected)


def _check_encodes(vocabulary: Vocabulary, array: pyarrow.Array, expected: list[int]) -> None:
    kind = array.type
    assert vocabulary.encode(_objects(array)).tolist() == expected
    assert vocabulary.encode_arrow(array).tolist() == expected
    parts = pyarrow.chunked_array([array.slice(0, 3), array.slice(3)], kind)
    assert vocabulary.encode_arrow(parts).tolist() == expected
    if kind != pyarrow.null():
        assert vocabulary.encode_arrow(array.dictionary_encode()).tolist() == expected
        column = pd.Series(array, dtype=pd.ArrowDtype(kind))
        assert vocabulary.encode(column).tolist() == expected


def _holds(kind: pyarrow.DataType, value: Any) -> bool:
    try:
        return bool(pyarrow.array([value], kind).to_pylist() == [value])
    except (pyarrow.ArrowException, OverflowError, TypeError, ValueError):
        return False


def _objects(array: pyarrow.Array) -> list[Any]:
    """The cells as Python objects, floats of 32 bits as NumPy's, which say that they are."""
    if array.type == pyarrow.float32():
        return list(array.to_numpy(zero_copy_only=False))
    return array.to_pylist()


@pytest.mark.parametrize("few", [0, 5000])
def test_from_arrow_is_the_same_as_from_objects(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optuna_nis.data.values._FEW", few)
    made = Vocabulary.from_arrow(pyarrow.array(["b", "", "a"]), np.array([3, 2, 2]))

    assert made == Vocabulary(["b", "", "a"], [3, 2, 2])
    assert made.to_json() == Vocabulary(["b", "", "a"], [3, 2, 2]).to_json()
    assert hash(made) == hash(Vocabulary(["b", "", "a"], [3, 2, 2]))
    assert made != Vocabulary(["b", "", "a"], [3, 3, 2])
    assert made != Vocabulary(["b", "", 3], [3, 2, 2])
    assert Vocabulary(["b", "", 3], [3, 2, 2]) != made
    assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize(
    ("values", "counts", "message"),
    [
        ([], [], "at least one value"),
        (["a", "b"], [1], "2 numbers"),
        (["a", "b"], [1, 2], "fall with the rank"),
        (["a", "b"], [1, 0], "must be positive"),
        (["a", None], [1, 1], "missing"),
    ],
)
def test_from_arrow_checks(values: list[Any], counts: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_arrow(pyarrow.array(values, pyarrow.string()), np.array(counts))


def test_looking_values_up_makes_no_object_of_each() -> None:
    size = 100_000
    vocabulary = Vocabulary.from_arrow(
        pyarrow.array(np.arange(size).astype(str)), np.ones(size, dtype=np.int64)
    )
    batch = pd.Series(["17", None, "x"], dtype="string[pyarrow]")

    tracemalloc.start()
    ids = vocabulary.encode(batch).tolist()
    found = (vocabulary.types, vocabulary.num_fractions, "3" in vocabulary, hash(vocabulary))
    shown, decoded, cut = repr(vocabulary), vocabulary.decode([17, size]), vocabulary.cut(10)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert ids == [17, size, size]
    assert found[:3] == ({str}, 0, True)
    assert shown == "Vocabulary(100000 values: '0', '1', '2', ...)"
    assert decoded == ["17", None]
    assert cut.values == tuple(map(str, range(10)))
    assert held < 12 * size


@pytest.mark.parametrize("values", [["a", "b", "c", "d"], ["a", 1, "c", 2.5]])
def test_at_least_keeps_what_occurs_so_often(
    values: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optuna_nis.data.values._FEW", 2)
    vocabulary = Vocabulary(values, [5, 3, 3, 1])

    kept = {least: vocabulary.at_least(least) for least in (1, 2, 3, 4, 6)}

    assert {least: len(each) for least, each in kept.items()} == {1: 4, 2: 3, 3: 3, 4: 1, 6: 1}
    assert kept[1] == vocabulary
    assert kept[3].values == tuple(values[:3])
    assert kept[3].counts.tolist() == [5, 3, 3]
    assert kept[3].encode(values).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("min_count", [0, -1, True, 1.5])
def test_min_count_must_be_positive(min_count: Any) -> None:
    with pytest.raises(ValueError, match="`min_count` must be an integer of at least 1"):
        Vocabulary(["a"], [1]).at_least(min_count)


def test_a_lookup_that_was_freed_is_made_anew() -> None:
    texts = [f"v{number}" for number in range(6_000)]
    many = Vocabulary.from_arrow(pyarrow.array(texts), np.arange(6_000, 0, -1))
    for _ in range(2):
        assert many.encode(["v5999", "new", "v0"]).tolist() == [5999, 6000, 0]
        many.forget_lookup()
    few = Vocabulary(["a"], [1])
    few.forget_lookup()
    assert few.encode(["a"]).tolist() == [0]
