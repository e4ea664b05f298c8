from __future__ import annotations

from datetime import date, datetime
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet
import pytest

from optuna_nis.data import store as store_module
from optuna_nis.data.coded import CodedColumn
from optuna_nis.data.digests import Digests
from optuna_nis.data.file_array import FileArray
from optuna_nis.data.files import TableFiles
from optuna_nis.data.store import ColumnStore


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_ROWS", 3)
    monkeypatch.setattr(store_module, "_ROWS_OF_A_PART", 5)


COLUMNS: dict[str, list[Any]] = {
    "user": ["b", "a", None, "b", "c", "a", "d"],
    "tags": ["x|y", "x", None, " z | |x ", "y", "", "z"],
    "price": ["1.5", None, "-2", "1e3", "0", "7", "8"],
}


def _write(folder: Path, name: str, **columns: Any) -> TableFiles:
    folder.mkdir(exist_ok=True)
    path = folder / name
    table = pa.table(columns or COLUMNS)
    if name.endswith("csv"):
        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path)
    return TableFiles(path)


_DAYS, _TIME = (date(2020, 1, 1), date(2021, 5, 1)), datetime(2021, 5, 1)


def _values(column: CodedColumn) -> list[Any]:
    values = [*pa.array(column.values).to_pylist(), None]
    return [values[code] for code in column.cells]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
@pytest.mark.parametrize("kept", [True, False])
def test_columns(name: str, kept: bool, tmp_path: Path) -> None:
    files = _write(tmp_path, name)
    folder = tmp_path / "cache" if kept else None
    for _ in range(2):
        store = ColumnStore([files], folder, list(COLUMNS))

        user, tags = store.column("user"), store.bag("tags", "|")

        assert _values(user) == COLUMNS["user"]
        assert pa.array(user.values).to_pylist() == ["b", "a", "c", "d"]
        assert _values(tags) == ["x", "y", "x", "z", "x", "y", "z"]
        assert tags.offsets is not None
        assert np.asarray(tags.offsets).tolist() == [0, 2, 3, 3, 5, 6, 6, 7]
        np.testing.assert_array_equal(
            store.numbers("price"), np.array([1.5, np.nan, -2, 1e3, 0, 7, 8], np.float32)
        )
        assert store.sizes == [7]
        assert isinstance(user.codes, FileArray) == kept


@pytest.mark.parametrize(("one", "empty"), [(1, None), (1.5, math.nan), ("a", ""), ("a", None)])
def test_lists(tmp_path: Path, one: Any, empty: Any) -> None:
    lists = [[one, one], None, [], [empty, one, empty, empty], [empty], [one]]
    files = _write(tmp_path, "t.parquet", h=pa.array(lists))

    column = ColumnStore([files], None, ["h"]).bag("h", None)

    # As in text, what is missing is no item.
    assert _values(column) == [one] * 4
    assert column.lengths().tolist() == [2, 0, 0, 1, 0, 1]
    assert column.limited(1, "last").lengths().tolist() == [1, 0, 0, 1, 0, 1]


def test_what_is_kept_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = _write(tmp_path, "t.csv")
    ColumnStore([files], tmp_path / "cache", list(COLUMNS)).column("user")
    asked: list[Any] = []
    monkeypatch.setattr(
        TableFiles, "batches", lambda self, columns, **_: asked.append(columns) or iter(())
    )

    store = ColumnStore([files], tmp_path / "cache", list(COLUMNS))

    assert _values(store.column("user")) == COLUMNS["user"]
    # Text was read once for all columns.
    assert _values(store.bag("tags", "|"))[0] == "x"
    assert asked == []


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_whoever_is_killed_goes_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _write(tmp_path, name)
    whole = ColumnStore([files], None, list(COLUMNS))
    replace = Path.replace
    for number in range(6):
        left = [number]

        def killed(path: Path, target: Any, left: list[int] = left) -> Path:
            if not left[0]:
                raise _Killed
            left[0] -= 1
            return replace(path, target)

        store = ColumnStore([files], tmp_path / "cache", list(COLUMNS))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            try:
                store.bag("tags", "|")
                store.column("user")
                store.numbers("price")
            except _Killed:
                pass

    for column in ("user",):
        found, wanted = store.column(column), whole.column(column)
        assert _values(found) == _values(wanted)
    assert _values(store.bag("tags", "|")) == _values(whole.bag("tags", "|"))
    np.testing.assert_array_equal(store.numbers("price"), whole.numbers("price"))


def test_parts_of_a_table_share_their_values(tmp_path: Path) -> None:
    first = _write(tmp_path, "a.csv", user=["b", "a", "b", "c"])
    second = _write(tmp_path, "b.csv", user=["c", "d"])

    for folder in (None, tmp_path / "cache"):
        store = ColumnStore([first, second], folder, ["user"])
        assert store.column("user").cells.tolist() == [0, 1, 0, 2, 2, 3]
        assert store.sizes == [4, 2]


def test_names_go_by_content(tmp_path: Path) -> None:
    def content(*files: TableFiles) -> str:
        return ColumnStore(files, tmp_path / "cache", ["user"]).content

    first = _write(tmp_path / "one", "t.csv")
    name = content(first)

    first.files[0].touch()
    assert content(first) == name
    assert content(_write(tmp_path / "two", "u.csv")) == name
    assert content(first, first) != name
    assert content(_write(tmp_path / "one", "t.csv", user=["x"])) != name


def test_a_file_is_read_once_for_its_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = _write(tmp_path, "t.csv").files
    digest = Digests(tmp_path).of(path)
    monkeypatch.setattr("optuna_nis.data.digests.file_digest", None)

    assert Digests(tmp_path).of(path) == digest
    monkeypatch.undo()
    # Other content of the same size, whose time was set back.
    status, text = path.stat(), path.read_bytes()
    path.write_bytes(text.replace(b"\n", b" "))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert Digests(tmp_path).of(path) != digest
    path.write_bytes(text)
    (tmp_path / "digests.json").write_text("{")
    assert Digests(tmp_path).of(path) == digest
    assert len(json.loads((tmp_path / "digests.json").read_text())) == 1


@pytest.mark.parametrize(
    ("cells", "separator", "message"),
    [
        (["a", "b"], "|", "got '|', which stands between no two; one is 'a'"),
        (["a|b"], None, "since not all cells are lists; got None for 'a|b'"),
        (pa.array([["a"]]), "|", "must be None, since the cells of the column are lists"),
    ],
)
def test_bags_that_are_none(
    cells: Any, separator: str | None, message: str, tmp_path: Path
) -> None:
    store = ColumnStore([_write(tmp_path, "t.parquet", h=cells)], None, ["h"])

    with pytest.raises(ValueError, match=r"`bags\['h'\]` must be") as error:
        store.bag("h", separator)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "read", [lambda s: s.column("x"), lambda s: s.bag("x", None), lambda s: s.bag("x", "|")]
)
def test_maps_are_refused(read: Any, tmp_path: Path) -> None:
    cells = pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64()))
    store = ColumnStore([_write(tmp_path, "t.parquet", x=cells)], None, ["x"])
    with pytest.raises(TypeError, match=r"'x' holds maps, of type map<string, int64.*as lists\."):
        read(store)


@pytest.mark.parametrize(
    ("cells", "separator", "items"),
    [
        (["NA|a|NA|b", "NA", "a"], "|", ["a", "b", "a"]),
        ([["NA", "a", None, "b"], ["NA"], ["a"]], None, ["a", "b", "a"]),
        ([[-1, 3, None, 4], [-1], [3]], None, [3, 4, 3]),
        ([[-1.0, 3.5, np.nan, 4.5], [-1.0], [3.5]], None, [3.5, 4.5, 3.5]),
        ([[_DAYS[0], _DAYS[1], None, _DAYS[1]], [_DAYS[0]], [_DAYS[1]]], None, [_TIME] * 3),
        # In which the separator is.
        (["b-1-a", "-1", "a"], "-", ["b", "1", "a", "a"]),
    ],
)
@pytest.mark.parametrize("on_disk", [False, True])
def test_markers_in_bags_are_no_items(
    cells: Any, separator: str | None, items: list[Any], on_disk: bool, tmp_path: Path
) -> None:
    files = [_write(tmp_path, "t.parquet", x=cells)]
    store = ColumnStore(files, tmp_path if on_disk else None, ["x"])
    # Another column, also in what is kept.
    assert store.bag("x", separator).lengths().tolist() != [2, 0, 1]

    column = store.bag("x", separator, ["NA", "-1", "2020-01-01"])

    assert _values(column) == items
    assert column.lengths().tolist() == [len(items) - 1, 0, 1]


def test_yes_and_no_in_lists_are_no_markers(tmp_path: Path) -> None:
    cells = [[True, False], [False]]
    store = ColumnStore([_write(tmp_path, "t.parquet", x=cells)], None, ["x"])
    assert _values(store.bag("x", None, ["1", "0"])) == [True, False, False]


def test_a_separator_may_stand_beside_nothing(tmp_path: Path) -> None:
    store = ColumnStore([_write(tmp_path, "t.csv", x=["a|NA", "b", "|c"])], None, ["x"])
    assert _values(store.bag("x", "|", ["NA"])) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="got ';', which stands between no two"):
        store.bag("x", ";", ["NA"])


@pytest.mark.parametrize(
    ("cells", "na_values", "numbers"),
    [
        (["1", "NA", "-1"], ["NA", "-1"], [1, np.nan, np.nan]),
        ([1, -1, 2], ["-1"], [1, np.nan, 2]),
        ([1.5, -1.0, None], ["-1", "x"], [1.5, np.nan, np.nan]),
        ([True, False], [], [1, 0]),
        # A number, however it is written.
        (["1", "-1.0", "-1", "-1e0"], ["-1"], [1, np.nan, np.nan, np.nan]),
        (["1", "-1.0", "-1"], ["-1.0"], [1, np.nan, np.nan]),
        (np.array([1, -999.99], np.float32), ["-999.99"], [1, np.nan]),
        (np.array([1, -999.99], np.float64), ["-999.99"], [1, np.nan]),
    ],
)
def test_markers_among_numbers(
    cells: Any, na_values: list[str], numbers: list[float], tmp_path: Path
) -> None:
    store = ColumnStore([_write(tmp_path, "t.parquet", x=cells)], None, ["x"])

    np.testing.assert_array_equal(store.numbers("x", na_values), np.array(numbers, np.float32))


def test_the_row_of_what_is_no_number_is_told(tmp_path: Path) -> None:
    files = _write(tmp_path, "t.csv", x=["1", "2", "3", "4", "two"])

    with pytest.raises(ValueError, match=r"got .two., first in the row of index 4"):
        ColumnStore([files], None, ["x"]).numbers("x")


def test_of_two_that_write_at_once_one_is_taken_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _write(tmp_path, "t.csv")
    write, others = ColumnStore._write_parts, [1]

    def beside_another(self: ColumnStore, index: int, folder: Path) -> None:
        if others:
            others.clear()
            # In the midst of it another process is at it from the beginning to the end.
            ColumnStore([files], tmp_path / "cache", ["user"]).column("user")
        write(self, index, folder)

    monkeypatch.setattr(ColumnStore, "_write_parts", beside_another)
    found = ColumnStore([files], tmp_path / "cache", ["user"]).column("user")
    alone = ColumnStore([files], None, ["user"]).column("user")
    np.testing.assert_array_equal(found.cells, alone.cells)
    assert not [*(tmp_path / "cache").rglob("new.*")]


def test_what_was_left_long_ago_is_removed(tmp_path: Path) -> None:
    files = _write(tmp_path, "t.csv")
    ColumnStore([files], tmp_path / "cache", ["user"])
    (folder,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    for name in ("new.1.old.codes", "new.2.young.codes"):
        (folder / name).write_text("half")
    (folder / "new.3.old.text").mkdir()
    for name in ("new.1.old.codes", "new.3.old.text"):
        os.utime(folder / name, (0, 0))

    ColumnStore([files], tmp_path / "cache", ["user"])

    assert [path.name for path in folder.glob("new.*")] == ["new.2.young.codes"]
