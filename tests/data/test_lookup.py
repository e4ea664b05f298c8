from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pyarrow
import pytest

from optuna_nis.data import lookup as module
from optuna_nis.data.lookup import Lookup, hashes_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TYPES = {
    pyarrow.string(): TEXT,
    pyarrow.large_string(): TEXT,
    pyarrow.binary(): st.binary(max_size=20),
    pyarrow.int64(): st.integers(-(2**63), 2**63 - 1),
    pyarrow.float64(): st.floats(allow_nan=False),
}


@pytest.mark.parametrize("kind", TYPES, ids=str)
@given(st.data())
def test_finds_what_a_dictionary_finds(kind: pyarrow.DataType, data: st.DataObject) -> None:
    values = data.draw(st.lists(TYPES[kind], unique=True, min_size=1, max_size=30))
    queries = data.draw(st.lists(st.one_of(st.none(), st.sampled_from(values), TYPES[kind])))
    ids = {value: index for index, value in enumerate(values)}

    # A part of a larger array, as of a batch.
    padded = pyarrow.array([None, *queries, None], kind).slice(1, len(queries))
    found = Lookup(pyarrow.array(values, kind)).find(padded)

    assert found.tolist() == [ids.get(query, -1) for query in queries]


def test_values_with_equal_hashes_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "hashes_of", lambda values: np.zeros(len(values), np.uint64))
    values = pyarrow.array(["a", "b", "c", "d"])

    lookup = Lookup(values)

    assert lookup.find(pyarrow.array(["c", "x", None, "d", "a"])).tolist() == [2, -1, -1, 3, 0]
    with pytest.raises(ValueError, match="each value once"):
        Lookup(pyarrow.array(["a", "b", "a"]))


@pytest.mark.parametrize("values", [["a", "b", "a"], [1, 2, 1], [0.0, -0.0], [b"", b""]])
def test_a_value_that_comes_twice_is_refused(values: list[object]) -> None:
    with pytest.raises(ValueError, match="`values` must hold each value once"):
        Lookup(pyarrow.array(values))


def test_a_single_value_and_no_query() -> None:
    lookup = Lookup(pyarrow.array([7]))

    assert lookup.find(pyarrow.array([7, 8])).tolist() == [0, -1]
    assert lookup.find(pyarrow.array([], pyarrow.int64())).tolist() == []


def test_hashes_are_spread_over_all_bits() -> None:
    arrays = [
        pyarrow.array(np.arange(20_000)),
        pyarrow.array(np.arange(20_000).astype(str)),
        pyarrow.array([f"{number:040d}" for number in range(20_000)]),
        pyarrow.array(["x" * size for size in range(2_000)]),
    ]
    for array in arrays:
        hashes = hashes_of(array)

        assert len(np.unique(hashes)) == len(array)
        bits = np.unpackbits(hashes.view(np.uint8).reshape(-1, 8), axis=1)
        assert np.abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / np.sqrt(len(array))


def test_a_few_bytes_a_value() -> None:
    lookup = Lookup(pyarrow.array(np.arange(2**14)))

    assert sum(array.nbytes for array in (lookup._order, lookup._starts)) <= 9 * 2**14
