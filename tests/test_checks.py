from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optuna_nis._checks import (
    check_file,
    check_folder,
    check_integer,
    check_number,
    check_source,
)


@pytest.mark.parametrize("value", [2, True, 3.0, "3", None])
def test_check_integer(value: object) -> None:
    check_integer("count", 3, 3)
    with pytest.raises(ValueError, match="`count` must be an integer of at least 3, got "):
        check_integer("count", value, 3)


def test_integers_of_numpy_are_told_as_that() -> None:
    with pytest.raises(ValueError, match="must be an integer of Python of at least 1, got "):
        check_integer("epochs", np.int64(1), 1)


@pytest.mark.parametrize("value", [1.0, 1.5, -1e-9, float("nan"), float("inf"), True, "0.5", None])
def test_check_number(value: object) -> None:
    for fits in (0, 0.5, np.float32(0.5)):
        check_number("share", fits, 0, 1)
    with pytest.raises(ValueError, match=r"`share` must be a number in \[0, 1\), got "):
        check_number("share", value, 0, 1)


@pytest.mark.parametrize("value", [0, 0.0, float("nan"), float("inf")])
def test_check_number_open(value: object) -> None:
    check_number("rate", 1e-9, 0, or_least=False)
    with pytest.raises(ValueError, match=r"`rate` must be a number in \(0, inf\), got "):
        check_number("rate", value, 0, or_least=False)


def test_where_something_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("x")
    check_file("output", tmp_path / "new.csv")
    check_file("output", tmp_path / "a" / "b" / "new.csv")
    check_file("output", tmp_path / "file")
    check_folder("output", tmp_path / "there")
    check_folder("output", tmp_path / "a" / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]
    assert (tmp_path / "file").read_text() == "x"


def test_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="`output` must be a file to write, got the folder"):
        check_file("output", tmp_path)
    with pytest.raises(ValueError, match="`output` must be a folder to write, got the file"):
        check_folder("output", tmp_path / "file")
    for check in (check_file, check_folder):
        with pytest.raises(ValueError, match=r"`output` must be somewhere .*file' takes no new"):
            check("output", tmp_path / "file" / "new")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ValueError, match="`output` must be a file that can be written"):
        check_file("output", tmp_path / "file")


def test_where_something_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "there.csv").touch()
    for path in (tmp_path, tmp_path / "there.csv", tmp_path / "*.csv"):
        check_source("table", path)
    with pytest.raises(FileNotFoundError, match=r"`table` must be a file, got '.*none\.csv', whi"):
        check_source("table", tmp_path / "none.csv")
