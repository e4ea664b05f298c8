from __future__ import annotations

import io
from pathlib import Path

import pyarrow
from pyarrow import parquet
import pytest

from optuna_nis.data import vocabulary_file
from optuna_nis.data.vocabulary_file import read_packed, write_packed

TABLES = {
    "user": pyarrow.table({"str": ["a", "", "ü"], "count": [3, 2, 1]}),
    "item": pyarrow.table({"int": [7, -(2**63)], "count": [2, 2]}),
    "price": pyarrow.table({"float": [0.5, float("inf"), -0.0], "count": [9, 9, 1]}),
    "key": pyarrow.table({"bytes": [b"\x00", b""], "count": [1, 1]}),
    "day": pyarrow.table({"json": ['["date", "2013-01-01"]'], "count": [1]}),
}


def _packed(tables: dict[str, pyarrow.Table]) -> io.BytesIO:
    file = io.BytesIO()
    write_packed(tables, file)
    return file


@pytest.mark.parametrize("rows", [1, 2, 1 << 20])
def test_tables_come_back(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary_file, "_ROWS_AT_ONCE", rows)

    found = read_packed(_packed(TABLES))

    assert list(found) == list(TABLES)
    for name, table in TABLES.items():
        assert found[name].to_pydict() == table.to_pydict()


def test_anyone_can_read_the_file(tmp_path: Path) -> None:
    write_packed(TABLES, tmp_path / "vocabularies.parquet")

    table = parquet.read_table(tmp_path / "vocabularies.parquet")

    assert table["str"].to_pylist() == ["a", "", "ü", *[None] * 8]
    assert table["count"].to_pylist()[:5] == [3, 2, 1, 2, 2]


def _plain_parquet() -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table({"str": ["a"]}), file)
    return file.getvalue()


def _other(about: str) -> bytes:
    file = io.BytesIO()
    table = pyarrow.table({"str": ["a"], "count": [1]})
    parquet.write_table(table.replace_schema_metadata({"optuna_nis": about}), file)
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PAR1",
        _plain_parquet(),
        _packed(TABLES).getvalue()[:-9],
        _other("nonsense"),
        _other("[]"),
        _other('{"version": 9}'),
        _other('{"version": 1}'),
        _other('{"version": 1, "vocabularies": [["user", "str", 2]]}'),
        _other('{"version": 1, "vocabularies": [["user", "str", 0.5]]}'),
        _other('{"version": 1, "vocabularies": [["user", "int", 1]]}'),
        _other('{"version": 1, "vocabularies": [["user", null, 1]]}'),
        _other('{"version": 1, "vocabularies": [[["user"], "str", 1]]}'),
    ],
)
def test_malformed_files_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="This file of vocabularies is malformed"):
        read_packed(io.BytesIO(data))


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_packed(tmp_path / "none.parquet")
