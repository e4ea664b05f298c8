"""The log that ``benchmarks/click_log.py`` searches."""

from __future__ import annotations

from pathlib import Path

import click_log_data
from click_log_data import COLUMNS, IDS, NUMBERS, PAIRS, auc, blocks, make_log
import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet
import pytest
from sklearn.metrics import roc_auc_score


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click_log_data, "BLOCK", 500)
    monkeypatch.setattr(click_log_data, "GROUP", 800)


def _read(folder: Path) -> pa.Table:
    return pa.concat_tables(parquet.read_table(path) for path in sorted(folder.iterdir()))


def test_parts_are_a_log_in_the_shape_of_criteo(tmp_path: Path) -> None:
    facts = make_log(tmp_path / "log", 6000, 0, parts=4)
    assert [path.name for path in sorted((tmp_path / "log").iterdir())] == [
        f"part-0000{part}.parquet" for part in range(4)
    ]
    frame = _read(tmp_path / "log").to_pandas()
    assert tuple(frame.columns) == COLUMNS
    assert (len(NUMBERS), len(IDS)) == (13, 26)
    assert len(frame) == facts["rows"] == 6000
    assert facts["clicks"] == frame["label"].mean() == pytest.approx(0.27, abs=0.03)
    numbers = frame[list(NUMBERS)]
    assert numbers["I2"].min() < 0
    assert (numbers.max() > 20 * numbers.median()).sum() >= 8
    for name, number in NUMBERS.items():
        assert frame[name].isna().mean() == pytest.approx(number.missing, abs=0.03)
    for name, ids in IDS.items():
        assert frame[name].isna().mean() == pytest.approx(ids.missing, abs=0.03)
        assert frame[name].nunique() <= ids.vocabulary
        assert frame[name].dropna().str.fullmatch("[0-9a-f]{8}").all()
    # Zipf: an id of rank 1 in `log(2) / log(10^7)` of the rows that have one.
    shares = frame["C3"].value_counts(normalize=True)
    assert shares.iloc[0] == pytest.approx(np.log(2) / np.log(1e7), abs=0.01)


def test_a_seed_is_a_log_however_it_is_cut(tmp_path: Path) -> None:
    one = make_log(tmp_path / "one", 1600, 3, parts=1)
    cut = make_log(tmp_path / "cut", 1600, 3, parts=7)
    longer = make_log(tmp_path / "longer", 2100, 3, parts=2)
    make_log(tmp_path / "other", 1600, 4, parts=1)
    table = _read(tmp_path / "one")
    assert table.equals(_read(tmp_path / "cut"))
    assert one == cut
    assert table.equals(_read(tmp_path / "longer").slice(0, 1600))
    assert longer["test_rows"] == 210
    assert not table.equals(_read(tmp_path / "other"))


@pytest.mark.parametrize("header", [True, False])
def test_text_has_the_same_rows(tmp_path: Path, header: bool) -> None:
    table = make_log(tmp_path / "parquet", 700, 0, parts=2)
    text = make_log(tmp_path / "text", 700, 0, parts=2, tsv=True, header=header)
    assert text == table
    read = csv.ReadOptions(column_names=None if header else COLUMNS)
    found = pa.concat_tables(
        csv.read_csv(
            path,
            read,
            csv.ParseOptions(delimiter="\t"),
            csv.ConvertOptions(
                column_types=click_log_data.SCHEMA, strings_can_be_null=True, null_values=[""]
            ),
        )
        for path in sorted((tmp_path / "text").iterdir())
    )
    assert found.equals(_read(tmp_path / "parquet"))


def test_the_best_auc_is_that_of_the_true_probabilities_on_the_last_rows(tmp_path: Path) -> None:
    facts = make_log(tmp_path / "log", 3000, 0, parts=3)
    every = list(blocks(0, 3000, 0))
    clicks = np.concatenate([block.clicks for block in every])
    probabilities = np.concatenate([block.probabilities for block in every])
    assert clicks.tolist() == _read(tmp_path / "log")["label"].to_numpy().astype(bool).tolist()
    assert facts["best_auc"] == pytest.approx(roc_auc_score(clicks[2700:], probabilities[2700:]))
    assert 0.78 < facts["best_auc"] < 0.88
    # Probabilities are what clicks are drawn from.
    for low, high in ((0.0, 0.2), (0.2, 0.5), (0.5, 1.0)):
        inside = (probabilities > low) & (probabilities <= high)
        error = 4 * np.sqrt(0.25 / inside.sum())
        assert clicks[inside].mean() == pytest.approx(probabilities[inside].mean(), abs=error)


@pytest.mark.parametrize(("one", "other"), [("C17", "C23"), ("C1", "C14"), ("C7", "C11")])
def test_ids_have_effects_and_pairs_interact(
    monkeypatch: pytest.MonkeyPatch, one: str, other: str
) -> None:
    # What the most frequent ids of one block say of clicks, they say in another too.
    monkeypatch.setattr(click_log_data, "BLOCK", 40_000)
    found = []
    for block in (click_log_data._block(0, 0), click_log_data._block(0, 1)):
        frame = block.table.select([one, other]).to_pandas()
        frame["logit"] = np.log(block.probabilities / (1 - block.probabilities))
        ids = [sorted(frame[name].value_counts().index[:4]) for name in (one, other)]
        found.append(frame.pivot_table("logit", one, other, observed=True).loc[ids[0], ids[1]])
    first, second = found
    assert first.index.equals(second.index)
    effects = [cells.mean(axis=1) - cells.mean(axis=1).mean() for cells in found]
    assert np.corrcoef(*effects)[0, 1] > 0.8
    # What is left without the effects of rows and columns.
    left = [
        cells.sub(cells.mean(axis=1), axis=0).sub(cells.mean(), axis=1) + cells.mean().mean()
        for cells in found
    ]
    together = float((left[0] * left[1]).to_numpy().mean())
    assert (together > 0.01) == ((one, other) in PAIRS)


def test_auc_counts_ties_half() -> None:
    clicks, scores = np.array([1, 0, 1, 0, 0]), np.array([0.5, 0.5, 0.7, 0.7, 0.1])
    assert auc(clicks, scores) == pytest.approx(roc_auc_score(clicks, scores))


@pytest.mark.parametrize("parts", [0, 11])
def test_there_are_no_empty_parts(tmp_path: Path, parts: int) -> None:
    with pytest.raises(ValueError, match="`parts` must be from 1 to the 10 rows"):
        make_log(tmp_path, 10, 0, parts=parts)
