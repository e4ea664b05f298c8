from __future__ import annotations

from collections import Counter
import json
from pathlib import Path
import subprocess
import sys

import numpy as np
import optuna
import pandas as pd
import pytest
from typer.testing import CliRunner

from optuna_nis import cli
from optuna_nis.cli import app
from optuna_nis.lightning import DataConfig, Predictor
from optuna_nis.results import DATA_ATTR
from optuna_nis.searches import searches_of

runner = CliRunner()


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    city = rng.integers(0, 9, 1200)
    frame = pd.DataFrame({"user": rng.integers(0, 80, 1200), "city": city})
    frame["clicked"] = (rng.random(1200) < (0.2 + 0.6 * (city % 2))).astype(int)
    frame["genres"] = ["war|love" if c % 2 else "noir" for c in city]
    frame.to_csv(tmp_path / "clicks.csv", index=False)
    return tmp_path / "clicks.csv"


def _run(*args: object) -> tuple[int, str]:
    result = runner.invoke(app, [str(arg) for arg in args])
    return result.exit_code, result.output


def _search(table: Path, *more: object) -> tuple[int, str]:
    return _run(
        "search", "--table", table, "--label", "clicked", "--features", "user,city",
        "--bags", "genres:|", "--budget", "50%", "--embedding-dim", 4, "--epochs", 1,
        "--updates", 2, "--storage", f"sqlite:///{table.parent}/s.db", "--quiet", *more,
    )  # fmt: skip


def test_search_with_a_batch_size(table: Path) -> None:
    code, output = _search(table, "--batch-size", 32)
    assert code == 0, output
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{table.parent}/s.db")
    assert DataConfig.from_json(study.user_attrs[DATA_ATTR]).batch_size == 32


def test_options_of_the_model_hold_for_search_and_retrain(table: Path) -> None:
    options = ("--learning-rate", 0.01, "--dropout", 0.25)
    code, output = _search(table, *options)
    assert code == 0, output
    storage = f"sqlite:///{table.parent}/s.db"
    code, output = _run(
        "retrain", "--seeds", 0, "--max-epochs", 1, "--storage", storage, "--quiet",
        "--output", table.parent / "model",
    )  # fmt: skip
    assert code == 0, output
    model = Predictor.load(table.parent / "model").model
    assert model.options == {"learning_rate": 0.01, "dropout": 0.25}
    code, output = _search(table)
    assert code == 1
    assert "learning_rate 0.01 (now unset), dropout 0.25 (now unset)." in " ".join(output.split())


def test_search_retrain_report_predict(table: Path) -> None:
    study = ("--storage", f"sqlite:///{table.parent}/s.db", "--quiet")
    code, output = _search(table)
    assert code == 0, output
    assert "parameters" in output
    code, output = _run("report", *study, "--output", table.parent / "early.html")
    assert code == 0, output
    assert "Nothing has been retrained yet" in output
    folder = table.parent / "model"
    code, output = _run("retrain", *study, "--seeds", "0,1", "--max-epochs", 1, "--output", folder)
    assert code == 0, output
    assert "Uniform" in output
    page = table.parent / "report.html"
    code, output = _run("report", *study, "--output", page, "--json")
    assert code == 0, output
    summary = json.loads(output.strip().splitlines()[-1])
    assert summary["nis"]["seeds"] == [0, 1]
    assert "plotly" in page.read_text()
    found = table.parent / "found.csv"
    code, output = _run("predict", "--model", folder, "--table", table, "--output", found)
    assert code == 0, output
    assert len(pd.read_csv(found)) == 1200
    served = table.parent / "served"
    code, output = _run("export", "--model", folder, "--format", "int8", "--output", served)
    assert code == 0, output
    assert "int8 tables:" in output
    code, output = _run("predict", "--model", served, "--table", table, "--output", found)
    assert code == 0, output
    code, output = _run("export", "--model", folder, "--format", "zip", "--output", served)
    assert code == 1
    assert "`format` must be one of" in " ".join(output.split())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--budget", "0"), "`budget` must be positive"),
        (("--budget", "-5"), "`budget` must be positive"),
        (("--budget", "9999999"), "`budget` must be at most the full tables"),
        (("--budget", "1"), "`budget` must be at least"),
        (("--budget", "lots"), "`budget` as a string must be bytes"),
        (("--mode", "double"), '`mode` must be "multi" or "single"'),
        (("--task", "sorting"), '`task` must be "ranking" or "retrieval"'),
        (("--split", "fair"), '`split` must be one of "random", "chronological"'),
        (("--shard", "half"), "`--shard` must be INDEX/COUNT such as 0/2, got 'half'"),
        (("--shard", "2/2"), "`shard` must be (index, count) with an index below the count"),
        (("--learning-rate", "0"), "`learning_rate` must be a number in (0, inf), got 0.0"),
        (("--dropout", "1"), "`dropout` must be a number in [0, 1), got 1.0"),
        (("--data-dir", "."), "`data_dir` is for a data set by name"),
        (("--bags", "genres"), "`--bags` must be COLUMN:SEPARATOR"),
        (("--features", "user,town"), "'town'"),
        (("--label", "city"), "city"),
        (("--dataset", "flights"), "Either `dataset` or `table`"),
        (("--storage", "study.db"), "`--storage` must be a URL"),
        (("--storage", "sqlite:////nowhere/at/all.db"), "The storage cannot be used"),
        (("--storage", "redis://127.0.0.1:1"), "The storage cannot be used"),
    ],
)
def test_bad_input_is_one_clear_line(table: Path, more: tuple[str, ...], message: str) -> None:
    code, output = _search(table, *more)
    assert code == 1
    assert message in " ".join(output.split())
    assert "Traceback" not in output


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    for command in (("retrain",), ("report", "--output", tmp_path / "r.html")):
        code, output = _run(*command, "--storage", storage)
        assert code == 1
        assert "is not in the storage" in " ".join(output.split())
    code, output = _run("retrain", "--seeds", "a", "--storage", storage)
    assert code == 1


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_interruption(
    table: Path, interruption: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise interruption

    monkeypatch.setattr("optuna_nis.lightning.search", interrupt)
    code, output = _search(table)
    assert code == 130
    assert "Finished trials are kept; the same command goes on." in " ".join(output.split())


def test_journal_storage(table: Path) -> None:
    code, output = _search(table, "--storage", table.parent / "s.journal")
    assert code == 0, output
    code, output = _search(table, "--storage", table.parent / "s.journal")
    assert code == 0, output


def test_a_search_that_is_started_again_goes_on(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna_nis.lightning import job

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    storage = f"sqlite:///{table.parent}/s.db"
    with monkeypatch.context() as patch:
        patch.setattr(job, "train_shortlist", interrupted)
        code, output = _search(table, "--shard", "1/2")
        assert code == 130, output
    ((name, search),) = searches_of(
        optuna.load_study(study_name="optuna-nis", storage=storage)
    ).items()
    assert search.settings["shard"] == [1, 2]
    kept = table.parent / "s.db.checkpoints" / name
    assert (kept / "searched.pt").exists()
    code, output = _search(table, "--shard", "1/2")
    assert code == 0, output
    assert not kept.parent.exists()
    study = optuna.load_study(study_name="optuna-nis", storage=storage)
    assert set(searches_of(study)) == {name}
    kinds = Counter(trial.user_attrs["fidelity"] for trial in study.trials)
    assert kinds["supernet"] == 16
    assert kinds["trained"] > 0


@pytest.mark.parametrize(
    ("storage", "folder"),
    [
        ("sqlite:///a/b.db", "a/b.db.checkpoints"),
        ("sqlite:////a/b.db", "/a/b.db.checkpoints"),
        ("sqlite://", "optuna-nis.checkpoints"),
        ("a/b.journal", "a/b.journal.checkpoints"),
        ("postgresql://host/nis", "optuna-nis.checkpoints"),
    ],
)
def test_where_checkpoints_are_kept(storage: str, folder: str) -> None:
    assert cli._checkpoint_dir(storage) == Path(folder)


@pytest.mark.parametrize("command", ["report", "status"])
def test_only_commands_that_train_import_torch(command: str, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    optuna.create_study(storage=storage, study_name="optuna-nis", direction="maximize")
    code = (
        "import sys\n"
        "from optuna_nis.cli import app\n"
        f"args = ['{command}', '--storage', '{storage}']\n"
        "try:\n    app(args)\nexcept SystemExit:\n    pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "no finished trial" in done.stderr or "Trials  none" in done.stdout
    assert done.returncode == 0


def test_help_teaches() -> None:
    code, output = _run("--help")
    assert code == 0
    for command in ("search", "retrain", "report", "predict", "export"):
        assert command in output
        assert _run(command, "--help")[0] == 0
