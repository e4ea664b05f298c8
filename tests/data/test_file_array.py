from __future__ import annotations

from pathlib import Path
import pickle
import tempfile
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import numpy as np

from optuna_nis.data.file_array import FileArray

NUMBERS = np.arange(400, dtype=np.int64)
ROWS = st.lists(st.integers(0, 399), max_size=60)


def _in_file(folder: str | Path) -> FileArray:
    NUMBERS.tofile(Path(folder, "numbers"))
    return FileArray(Path(folder, "numbers"), NUMBERS.dtype)


@given(
    st.one_of(
        ROWS.map(lambda rows: np.array(rows, np.int64)),
        ROWS.map(lambda rows: np.unique(np.array(rows, np.int64))),
        st.builds(slice, st.integers(0, 400), st.integers(0, 400), st.integers(1, 3)),
    )
)
def test_elements_are_those_of_the_array(rows: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = _in_file(folder)[rows]

    assert found.tolist() == NUMBERS[rows].tolist()
    assert not isinstance(found, np.memmap)


def test_elements_may_stand_for_others(tmp_path: Path) -> None:
    array = _in_file(tmp_path)
    once = array.mapped(NUMBERS[::-1].astype(np.int32))
    twice = once.mapped(NUMBERS * 2)

    assert once[np.array([0, 399])].tolist() == [399, 0]
    assert np.asarray(twice).tolist() == (NUMBERS[::-1] * 2).tolist()


def test_another_process_gets_the_path_alone(tmp_path: Path) -> None:
    text = pickle.dumps(_in_file(tmp_path))

    assert len(text) < 1000
    assert np.asarray(pickle.loads(text)).tolist() == NUMBERS.tolist()


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "none").touch()
    array = FileArray(tmp_path / "none", np.dtype(np.int32))

    assert len(array) == 0
    assert array[:].tolist() == array[np.array([], np.int64)].tolist() == []
