"""The fewest bytes without loss, by pretended trainings and by real ones of one epoch."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
import json
from pathlib import Path
import sys
from typing import Any

from byte_laboratory import ByteLaboratory
import fewest_bytes
from fewest_bytes import GRID, METHODS, smallest, summary, tries
import host_model
from pretended import Pretended
import pytest
import search_quality
from small_tables import write_table
import trainings
from trainings import rules_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a table, on which trainings take one epoch."""
    write_table("insteval", tmp_path)
    monkeypatch.setattr(host_model, "train", partial(host_model.train, max_epochs=1))
    # In this process, where they are those of one epoch.
    monkeypatch.setattr(
        trainings, "ProcessPoolExecutor", lambda workers, **options: ThreadPoolExecutor(1)
    )
    return tmp_path


def last_line(
    main: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *args: str
) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["benchmark", *args])
    main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("border", range(len(GRID) + 1))
def test_every_border_is_found_by_bisecting(border: int) -> None:
    asked: list[float] = []

    def reaches(budget: float) -> bool:
        asked.append(budget)
        return GRID.index(budget) >= border

    found = smallest(GRID, reaches)
    assert found == (GRID[border] if border < len(GRID) else None)
    assert len(asked) <= 5
    if 0 < border < len(GRID):
        assert {GRID[border - 1], GRID[border]} <= set(asked)


def test_the_grid_rises_by_about_a_third() -> None:
    assert list(GRID) == sorted(set(GRID))
    assert {0.01, 0.025, 0.05, 0.125, 0.25} <= set(GRID)
    assert all(1.1 < after / before <= 1.5 for before, after in pairwise(GRID))


def test_every_method_is_one_of_the_quality_benchmark() -> None:
    assert set(METHODS) < set(search_quality.METHODS)


def test_the_full_tables_are_reached_where_the_pretended_ones_are() -> None:
    laboratory = ByteLaboratory("flights-ranking", Pretended(), [0, 1])  # type: ignore[arg-type]
    # What is pretended to be worth less in fewer bits never is as good.
    lines = tries(laboratory, "full_rounded", (0.05, 0.2, 0.3))
    assert [(line["budget"], line["enough"]) for line in lines] == [(0.2, False), (0.3, False)]
    assert lines[0]["share"] == pytest.approx(0.15625)
    # Fewer numbers are better in float32.
    lines = tries(laboratory, "uniform", (0.1, 0.2, 0.3))
    assert summary(lines) == {
        "flights-ranking": {
            "full": pytest.approx(lines[0]["full"]),
            "shares": {"uniform": lines[-1]["share"]},
        }
    }
    assert lines[-1]["budget"] == 0.1
    assert lines[-1]["share"] <= 0.1


def line(method: str, share: float, enough: bool, **more: Any) -> dict[str, Any]:
    place = {"data": "flights", "method": method, "budget": 1.1 * share, "rules": rules_of(method)}
    return place | {"share": share, "enough": enough, "full": 0.75} | more


def test_the_smallest_that_was_enough_counts() -> None:
    nothing = {"data": "flights", "method": "pep", "budget": 0.1, "enough": False}
    nothing["rules"] = rules_of("pep")
    runs = [
        line("nis_bits", 0.02, True),
        line("nis_bits", 0.01, True),
        line("nis_bits", 0.005, False),
        line("nis_bits", 0.001, True, rules=rules_of("nis_bits") - 1),
        line("mpe", 0.3, False),
        nothing,
    ]
    shares = {"nis_bits": 0.01, "mpe": None, "pep": None}
    assert summary(runs) == {"flights": {"full": 0.75, "shares": shares}}


def test_the_full_tables_are_those_of_the_most_seeds() -> None:
    runs = [
        line("mpe", 0.3, False, seeds=[0, 1, 2, 3], full=0.76),
        line("nis_bits", 0.02, True, seeds=[0, 1, 2]),
    ]
    assert summary(runs)["flights"]["full"] == 0.76


def test_a_whole_run_ends_with_the_shares(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["--data", "insteval", "--data-dir", str(folder), "--results", str(folder)]
    more = ["--methods", "full_rounded", "hashing", "--grid", "0.3", "0.6", "--seeds", "0"]
    found = last_line(fewest_bytes.main, capsys, monkeypatch, *args, *more)["insteval"]
    assert 0 <= found["full"] <= 1
    assert list(found["shares"]) == ["full_rounded", "hashing"]
    kept = json.loads((folder / "fewest_bytes.json").read_text())
    assert kept["summary"] == {"insteval": found}
    jobs = (folder / "search_quality" / "insteval.jsonl").read_text().splitlines()
    # Nothing is run twice, in this run or a later one.
    assert len(jobs) == len(set(jobs)) == 4
    last_line(fewest_bytes.main, capsys, monkeypatch, *args, *more)
    assert (folder / "search_quality" / "insteval.jsonl").read_text().splitlines() == jobs
    for run in kept["runs"]:
        if "mean" in run:
            assert run["enough"] == (run["mean"] >= found["full"])
            assert run["share"] <= run["budget"]


def test_a_smoke_test_keeps_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["--data", "insteval", "--data-dir", str(folder), "--results", str(folder), "--smoke"]
    found = last_line(fewest_bytes.main, capsys, monkeypatch, *args)
    assert set(found["insteval"]["shares"]) == set(fewest_bytes.SMOKE["methods"])
    assert not (folder / "fewest_bytes.json").exists()


def test_cells_of_real_trainings(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["full", "full_rounded", "uniform_lsq", "uniform_rounded", "quotient_remainder"]
    args = ["--data", "insteval", "--data-dir", str(folder), "--results", str(folder)]
    more = ["--budgets", "0.6", "--seeds", "0", "--methods", *methods]
    found = last_line(search_quality.main, capsys, monkeypatch, *args, *more)
    cells = {each["method"]: each for each in found["cells"]}
    assert sorted(cells) == sorted(methods)
    for each in cells.values():
        assert 0 <= each["mean"] <= 1
        assert each["method"] == "full" or each["nbytes"] <= each["budget_nbytes"]
        assert each["share"] == pytest.approx(each["nbytes"] / cells["full"]["nbytes"], abs=1e-3)


def test_other_authors_code_is_asked_for_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["--data", "insteval", "--data-dir", str(folder), "--methods", "mpe"]
    with pytest.raises(SystemExit):
        last_line(fewest_bytes.main, capsys, monkeypatch, *args, "--rivals-dir", str(folder))
    said = capsys.readouterr().err
    assert "mpe/model/embedding.py" in said
    assert "Leopold1423/mpe from GitHub" in said
