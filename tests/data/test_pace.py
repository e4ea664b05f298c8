from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from optuna_nis.data import pace, table
from optuna_nis.data.table import TableDataModule


def test_work_that_is_soon_done_says_nothing(tmp_path: Path) -> None:
    assert _lines(tmp_path / "rows.csv") == []


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
@pytest.mark.parametrize("kept", [True, False])
def test_which_column_of_how_many_and_how_fast(
    name: str, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "EVERY", 0)
    monkeypatch.setattr(table, "_CACHED", 0 if kept else 1 << 30)
    lines = _lines(tmp_path / name)
    text = ["Reading the text of 3 columns: 100 rows"] if name == "rows.csv" else []
    columns = ["clicked", "user", "price"]
    assert [line.rpartition(", ")[0] for line in lines] == (
        [*text, *(f"Reading column {n} of 3, {c}: 100 rows" for n, c in enumerate(columns, 1))]
    )
    assert all(line.endswith(" rows a second") for line in lines)
    # Of what is kept nothing is read again.
    assert not kept or _lines(tmp_path / name) == []


def test_the_time_left_goes_by_what_is_done() -> None:
    lines: list[str] = []
    seconds = iter([0, 10, 20, 30, 40, 50, 60])
    told = pace.Pace(lines.append, clock=lambda: next(seconds))
    for share in (None, 0.25, 0.5, 0.5, 0.125, 1.0):
        told.add(100, "Reading", share)
    left = [line.partition("; ")[2] for line in lines]
    assert left == ["", "", "about 20 s left", "about 40 s left", "", ""]


def _lines(path: Path) -> list[str]:
    rows = pd.DataFrame({"user": [n % 9 for n in range(100)], "price": range(100)})
    rows["clicked"] = rows["price"] % 2
    if not path.exists():
        rows.to_csv(path, index=False) if path.suffix == ".csv" else rows.to_parquet(path)
    lines: list[str] = []
    data = TableDataModule(
        path,
        label="clicked",
        features=["user"],
        numeric=["price"],
        cache_dir=path.parent / "cache",
        progress=lines.append,
    )
    data.setup("fit")
    return lines
