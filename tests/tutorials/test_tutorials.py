"""The tutorials, each from top to bottom in its short form, and what comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import os
from pathlib import Path
import re
import runpy
import subprocess
import sys
from typing import Any

import optuna
import pytest
from servers import PostgreSQL
import torch

from optuna_nis import Allocation
from optuna_nis._format import size
from optuna_nis.nn import supernet_layers
from optuna_nis.show import figures as visualization
from optuna_nis.study.results import best_allocation, results_of, space_of

FOLDER = Path(__file__).parents[2] / "tutorials"

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Run]:
    """Run a tutorial; what it leaves behind are its variables."""
    monkeypatch.setenv("OPTUNA_NIS_SHORT", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def start(name: str, *arguments: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        return runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")

    yield start
    torch.set_num_threads(threads)


def test_they_are_listed_in_order() -> None:
    titles = [
        re.match(r'"""(.+)\n=+\n', path.read_text())[1]
        for path in sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    ]
    listed = re.findall(r"^\d\. (.+)$", (FOLDER / "README.rst").read_text(), re.MULTILINE)
    assert listed == titles


def check_tested(printed: str, metric: str) -> list[tuple[str, str]]:
    """Labels and memory of the results that were printed."""
    line = rf"^(.+): {metric} 0\.\d{{4}} on the test, ([\d.]+ \w+) \([\d,]+ parameters\)$"
    tested = re.findall(line, printed, re.MULTILINE)
    labels = [re.sub(r" \d+(, projected)?$", "", label) for label, _ in tested]
    assert labels[:3] == ["NIS", "Uniform", "Full size"]
    assert re.search(r"(best|take it|take them): validation \S+ 0\.\d{4} against ", printed)
    return tested


def test_first_search(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("01_first_search")["found"]
    assert found.allocation == best_allocation(found.study)
    assert found.allocation.nbytes() <= space_of(found.study).budget_nbytes
    names = [result.name for result in results_of(found.study)]
    assert names[:3] == ["nis", "uniform", "full"]
    printed = capsys.readouterr().out
    assert f"{len(found.study.trials)} trials\n{found.allocation}\n" in printed
    check_tested(printed, "ROC-AUC")


def test_your_own_model(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("02_your_own_model")["found"]
    assert {spec.name for spec in found.space.specs} == {"user", "item", "genres"}
    assert found.allocation.nbytes() <= found.space.budget_nbytes
    finalists = [candidate for candidate in found.candidates if candidate.is_finalist]
    # Trained to their end, another one may be the best.
    assert found.allocation in [candidate.allocation for candidate in finalists]
    assert found.candidates[: len(finalists)] == finalists
    qualities = [candidate.val_metric for candidate in finalists]
    assert qualities == sorted(qualities, reverse=True)
    (_, memory), *_ = check_tested(capsys.readouterr().out, "auroc")
    assert memory == size(found.allocation.nbytes())


def test_retrieval(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    left = run("03_retrieval")
    found = left["found"]
    assert found.allocation.nbytes() <= space_of(found.study).budget_nbytes
    assert left["destinations"].shape == (2, 50)
    assert all(len(set(best)) == 50 for best in left["destinations"])
    printed = capsys.readouterr().out
    check_tested(printed, "Recall@1")
    assert re.search(r"from JFK: (\w{3}, ){4}\w{3}\n", printed)


def test_sizes_and_budgets(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = run("04_sizes_and_budgets")["found"]
    for (budget, mode), one in found.items():
        share = int(budget.rstrip("%")) / 100
        assert one.allocation.nbytes() <= share * one.space.full_nbytes
        if mode == "single":
            assert all(len(table.tiers) <= 1 for table in one.allocation.values())
    printed = capsys.readouterr().out
    assert printed.count("is 128,000 bytes") == 4
    assert "('0', '1x2bit', '1x4bit', '1x8bit', '1x32bit', '2x2bit', " in printed
    assert len(re.findall(r"^ *\d+% (uniform|single|multi) +0\.\d{4}", printed, re.M)) == 6


def test_many_workers(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        with PostgreSQL() as server:
            left = run("05_many_workers", "--storage", server.url)
            study = optuna.load_study(study_name="flights-by-many", storage=server.url)
            trials = study.trials
            left["storage"].engine.dispose()
            study._storage._backend.engine.dispose()
    except FileNotFoundError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    assert sorted(left["Counter"](t.user_attrs["worker"] for t in trials).values()) == [2, 2]
    assert [helper.returncode for helper in left["helpers"]] == [0]
    assert 0 < left["best"].nbytes() <= left["space"].budget_nbytes
    printed = capsys.readouterr().out
    assert f"{left['best'].nbytes():,} of {left['space'].budget_nbytes:,} bytes" in printed


def test_reading_the_figures(run: Run) -> None:
    found = run("06_reading_the_figures")["found"]
    assert found.allocation == best_allocation(found.study)
    page = Path("report.html").read_text()
    assert f"Sizes found</dt><dd>{size(found.allocation.nbytes())}, " in page
    source = (FOLDER / "06_reading_the_figures.py").read_text()
    assert all(f"{name}(study)" in source for name in visualization.__all__)


def test_exporting_and_serving(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    left = run("07_exporting_and_serving")
    assert left["served"] == pytest.approx(left["predicted"], rel=1e-3, abs=1e-5)
    sizes = Allocation.from_json(Path("model-int8/allocation.json").read_text())
    assert sizes == left["found"].allocation
    printed = capsys.readouterr().out
    exact, small = re.search(r"on test (0\.\d+), in 8 bits (0\.\d+)", printed).groups()
    assert float(small) == pytest.approx(float(exact), abs=0.01)


def test_any_categorical_problem(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    left = run("08_any_categorical_problem")
    assert len(left["spent"]) == 20
    assert max(left["spent"]) <= left["LIMIT"] == 30
    assert left["accuracy"](left["found"], left["validation"]) == left["study"].best_value > 0.8
    assert "NISSampler  " in capsys.readouterr().out


_WITHOUT_LIGHTNING = """
import runpy, sys
for name in ("lightning", "pytorch_lightning", "lightning_fabric"):
    assert name not in sys.modules
    sys.modules[name] = None  # As if it were not installed.
left = runpy.run_path(sys.argv[1], run_name="__main__")
search, space, best = left["search"], left["space"], left["best"]
assert search.updates_done == search.plan.num_updates
assert best in search.candidates
assert best.nbytes() <= space.budget_nbytes
assert space.allocation(search.study.best_trial.params) == best
"""


def test_without_lightning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_LIGHTNING, str(FOLDER / "09_without_lightning.py")],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OPTUNA_NIS_SHORT": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    tested = re.findall(r"^(\w+) +ROC-AUC 0\.\d{4}, +[\d,]+ bytes$", done.stdout, re.M)
    assert tested == ["found", "full"]


@pytest.mark.parametrize("name", ["with_transformers", "with_ignite"])
def test_other_trainers(run: Run, capsys: pytest.CaptureFixture[str], name: str) -> None:
    pytest.importorskip(name.removeprefix("with_"))
    with torch.random.fork_rng():
        left = run(name)
    search, space, best = left["search"], left["space"], left["best"]
    assert {spec.name for spec in space.specs} == {"user", "item"}
    assert search.updates_done == search.plan.num_updates
    assert best in search.candidates
    assert best.nbytes() <= space.budget_nbytes
    assert best == best_allocation(search.study)
    assert space.allocation(search.study.best_trial.params) == best
    assert all(layer.num_choices == 1 for layer in supernet_layers(left["supernet"]).values())
    assert f"on test with {best.nbytes():,} bytes" in capsys.readouterr().out
    page = (FOLDER.parent / "docs" / "other_trainers.md").read_text()
    assert f"literalinclude}} ../tutorials/{name}.py" in page
