from __future__ import annotations

from collections import Counter
import errno
import io
import json
import logging
from pathlib import Path
import re
import subprocess
import sys
from typing import Any
import warnings

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
import numpy as np
import optuna
from optuna.exceptions import StorageInternalError
import pandas as pd
import pytest
import rich
from rich.console import Console
import torch
from torch.utils.data import DataLoader, TensorDataset
import typer
from typer.testing import CliRunner

from optuna_nis import _cli_console, _cli_values, _format, cli
from optuna_nis._cli_options import StudyOptions
from optuna_nis._logging import get_logger
from optuna_nis.cli import app
from optuna_nis.data.config import DataConfig
from optuna_nis.models.embeddings import SPARSE_ABOVE
from optuna_nis.serve.predictor import Predictor
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.study.results import DATA_ATTR, best_allocation, best_trial, space_of
from optuna_nis.study.searches import searches_of

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


def test_search_with_a_batch_size_and_precisions(table: Path) -> None:
    code, output = _search(table, "--batch-size", 32, "--precisions", "8,32, 2")
    assert code == 0, output
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{table.parent}/s.db")
    assert DataConfig.from_json(study.user_attrs[DATA_ATTR]).batch_size == 32
    space, best = space_of(study), best_allocation(study)
    assert space.precisions == (32, 8, 2)
    assert str(best) in output
    memory = _format.memory(best.nbytes(), space.full_nbytes)
    assert f" with {memory}: {best.num_parameters:,} parameters, " in output
    code, output = _search(table, "--batch-size", 32)
    assert code == 1
    assert "was searched with another space" in output


def test_ids_without_a_row_may_share_some(table: Path) -> None:
    code, output = _search(table, "--batch-size", 32, "--oov", "shared")
    assert code == 0, output
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{table.parent}/s.db")
    assert {spec.oov for spec in space_of(study).specs} == {"shared"}
    code, output = _search(table, "--oov", "one")
    assert code == 1
    assert '`--oov` must be one of "zero", "shared", "hash", got \'one\'' in output


def test_options_of_the_model_hold_for_search_and_retrain(table: Path) -> None:
    options = ("--model", "dcn", "--learning-rate", 0.01, "--dropout", 0.25)
    code, output = _search(table, *options)
    assert code == 0, output
    storage = f"sqlite:///{table.parent}/s.db"
    code, output = _run(
        "retrain", "--seeds", 0, "--max-epochs", 1, "--storage", storage, "--quiet",
        "--output", table.parent / "model",
    )  # fmt: skip
    assert code == 0, output
    model = Predictor.load(table.parent / "model").model
    assert model.options == {"model": "dcn", "learning_rate": 0.01, "dropout": 0.25}
    code, output = _search(table)
    assert code == 1
    assert "model 'dcn' (now unset), learning_rate 0.01 (now unset)" in " ".join(output.split())


def test_how_many_rows_to_search_and_to_retrain_on(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []

    def called(study: object, *data: DataConfig, **options: object) -> None:
        given.append(data[0].search_rows if data else options["max_rows"])
        raise ValueError("That is all.")

    for name in ("search", "retrain"):
        monkeypatch.setattr(f"optuna_nis.lightning.{name}", called)
    _search(table, "--search-rows", 300)
    study = ("--storage", f"sqlite:///{table.parent}/s.db", "--quiet")
    for more in ((), ("--max-rows", "all"), ("--max-rows", 500)):
        _run("retrain", *study, *more)
    assert given == [300, None, "all", 500]
    code, output = _run("retrain", *study, "--max-rows", "most")
    assert code == 1
    said = "`--max-rows` must be all or a number of rows such as 1000000, got 'most'"
    assert said in " ".join(output.split())


def test_search_retrain_report_predict(table: Path) -> None:
    study = ("--storage", f"sqlite:///{table.parent}/s.db", "--quiet")
    code, output = _search(table)
    assert code == 0, output
    assert "parameters" in output
    code, output = _run("report", *study, "--output", table.parent / "early.html")
    assert code == 0, output
    assert "Nothing has been retrained yet" in output
    code, output = _run("report", *study, "--output", table.parent / "early.html", "--json")
    assert code == 0, output
    summary = json.loads(output.strip().splitlines()[-1])
    assert summary["best"]["fidelity"] == "trained"
    assert "nis" not in summary
    folder = table.parent / "model"
    code, output = _run("retrain", *study, "--seeds", "0,1", "--max-epochs", 1, "--output", folder)
    assert code == 0, output
    assert "Uniform" in output
    line = " ".join(output.split())
    assert re.search(r"(best|good|better).*: validation ROC-AUC 0\.\d{4} against 0", line)
    page = table.parent / "report.html"
    code, output = _run("report", *study, "--output", page, "--json")
    assert code == 0, output
    summary = json.loads(output.strip().splitlines()[-1])
    assert summary["nis"]["seeds"] == [0, 1]
    assert summary["verdict"] in " ".join(output.split())
    assert summary["take"] in summary
    assert summary["parts"]["test"]["rows"] == 120
    assert any("ended at the most epochs allowed, 1" in line for line in summary["warnings"])
    assert "plotly" in page.read_text()
    found = table.parent / "missing" / "found.csv"
    of_table = ("--model", folder, "--table", table)
    code, output = _run("predict", *of_table, "--output", found)
    assert code == 0, output
    assert len(pd.read_csv(found)) == 1200
    kept = table.parent / "kept.parquet"
    code, output = _run("predict", *of_table, "--output", kept, "--keep", "c*,user")
    assert code == 0, output
    with_keys, rows = pd.read_parquet(kept), pd.read_csv(table, dtype=str)
    assert list(with_keys) == ["city", "clicked", "user", "prediction"]
    assert with_keys["user"].tolist() == rows["user"].tolist()
    np.testing.assert_allclose(with_keys["prediction"], pd.read_csv(found)["prediction"], 1e-6)
    labelled = (*of_table, "--label", "clicked", "--group", "user")
    code, output = _run("evaluate", *labelled, "--json", "--quiet")
    assert code == 0, output
    told = json.loads(output)
    assert told["rows"] == 1200
    assert set(told["metrics"]) == {"ROC-AUC", "LogLoss", "GAUC"}
    code, output = _run("evaluate", *labelled)
    assert code == 0, output
    assert f"ROC-AUC {told['metrics']['ROC-AUC']:.4f}, standard error" in output
    served = table.parent / "served"
    code, output = _run("export", "--model", folder, "--format", "int8", "--output", served)
    assert code == 0, output
    assert "int8 tables:" in output
    code, output = _run("predict", "--model", served, "--table", table, "--output", found)
    assert code == 0, output
    code, output = _run("export", "--model", folder, "--format", "zip", "--output", served)
    assert code == 1
    assert "`--format` must be one of" in " ".join(output.split())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "study/3.pt"),
            "No space left on device: study/3.pt. Finished trials are kept; the same command",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device. Finished"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "[Errno 13] Permission denied"),
        (
            StorageInternalError("An exception is raised during the commit."),
            "`--storage` cannot be used: disk is full",
        ),
    ],
)
def test_what_the_machine_lacks_is_one_clear_line(
    table: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def called(*args: object, **options: object) -> None:
        raise error from RuntimeError(
            "disk is full\n[SQL: INSERT]\n(Background on this error at: https://sqlalche.me)"
        )

    monkeypatch.setattr("optuna_nis.lightning.search", called)
    code, output = _search(table)
    assert code == 1
    said = " ".join(output.split())
    assert message in said
    assert "SQL" not in said
    assert "Background" not in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--budget", "9999999"), "`--budget` must be at most the full tables"),
        (("--budget", "1"), "`--budget` must be at least"),
        (("--task", "sorting"), '`--task` must be "ranking" or "retrieval"'),
        (("--split", "fair"), '`--split` must be one of "random", "chronological"'),
        (("--data-dir", "."), "`--data-dir` is for a data set by name"),
        (("--bags", "genres"), "`--bags genres:'|'`"),
        (
            ("--bags", "genres:;"),
            "`--bags['genres']` must be the text between two values",
        ),
        (("--bags", ":|"), "`--bags` must be COLUMN:SEPARATOR such as genres:'|', or COLUMN"),
        (("--bag-keep", "all"), '`--bag-keep` must be "last" or "first", got \'all\''),
        (("--time-format", "%Y"), "`--time-format` says how `--time` is written"),
        (("--features", "town"), "'town'"),
        (("--label", "city"), "city"),
        (("--dataset", "flights"), "Either `--dataset` or `--table`"),
        (("--storage", "study.db"), "`--storage` must be a URL"),
        (("--storage", "sqlite:////nowhere/at/all.db"), "`--storage` cannot be used"),
        (("--storage", "redis://127.0.0.1:1"), "`--storage` cannot be used"),
        (("--storage", "sqlite://study.db"), "`--storage` must be a URL of a database"),
    ],
)
def test_bad_input_is_one_clear_line(table: Path, more: tuple[str, ...], message: str) -> None:
    code, output = _search(table, *more)
    assert code == 1
    assert message in " ".join(output.split())
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--budget", "0"), "`--budget` must be at least one float32 parameter, 4 bytes"),
        (("--budget", "1B"), "`--budget` must be at least one float32 parameter, 4 bytes"),
        (("--budget", "-5"), "got '-5'"),
        (("--budget", "101%"), "and at most the full tables"),
        (("--budget", "1.5"), "or a number of float32 parameters such as 50000; got '1.5'"),
        (
            ("--precisions", "32,5"),
            "`--precisions` must hold some of [32, 16, 8",
        ),
        (("--precisions", "8,8"), "each once, got [8, 8]"),
        (("--precisions", "half"), "`--precisions` must be numbers such as 32,8, got 'half'"),
        (("--budget", "lots"), "a share of them such as 25%, bytes such as 64MB"),
        (("--mode", "double"), '`--mode` must be "multi" or "single", got \'double\''),
        (("--shard", "half"), "`--shard` must be INDEX/COUNT such as 0/2"),
        (("--shard", "2/2"), "with an index below the count, got '2/2'"),
        (("--learning-rate", "0"), "`--learning-rate` must be a number in (0, inf), got 0.0"),
        (("--model", "sasrec"), "`--model` must be 'deepfm' or 'dcn' for the task 'ranking'"),
        (("--dropout", "1"), "`--dropout` must be a number in [0, 1), got 1.0"),
    ],
)
def test_a_bad_option_is_told_before_the_table_is_read(
    tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    empty = tmp_path / "empty.csv"
    empty.touch()
    code, output = _search(empty, *more)
    assert code == 1
    assert message in " ".join(output.split())
    assert list(tmp_path.iterdir()) == [empty]


@pytest.mark.parametrize(
    ("text", "budget"),
    [("50000", 50_000), ("0.5", 0.5), ("1.0", 1.0), ("1", 1), ("25%", "25%"), ("64MB", "64MB")],
)
def test_budgets(text: str, budget: object) -> None:
    found = _cli_values.budget_of(text)
    assert (found, type(found)) == (budget, type(budget))


def test_arguments_of_python_stay_arguments_of_python(table: Path) -> None:
    rows = pd.read_csv(table)
    rows.assign(x=rows.index / 7).to_csv(table, index=False)
    code, output = _search(table, "--features", "x")
    assert code == 1
    assert "`numeric=['x']`, on the command line `--numeric x`" in " ".join(output.split())


def test_a_file_that_is_not_there_is_one_of_the_options(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    code, output = _search(missing.with_suffix(".csv"))
    assert code == 1
    assert "`--table` must be a file, got" in " ".join(output.split())
    more = ("--model", missing, "--output", tmp_path / "found.csv")
    code, output = _run("predict", "--table", tmp_path, *more)
    assert code == 1
    assert "`--model` must hold a model written by `optuna-nis retrain`" in " ".join(
        output.split()
    )


@pytest.mark.parametrize(
    ("text", "separator"), [("\\t", "\t"), ("\t", "\t"), (";", ";"), (None, None)]
)
def test_a_tab_can_be_written(text: str | None, separator: str | None) -> None:
    assert _cli_values.separator_of(text) == separator


@pytest.mark.parametrize(
    ("text", "bag"),
    [
        ("hist", ("hist", None)),
        ("hist:|", ("hist", "|")),
        ("hist::", ("hist", ":")),
        ("a:token_seq", ("a:token_seq", None)),
        ("a:token_seq: ", ("a:token_seq", " ")),
        ("a:token_seq::", ("a:token_seq", ":")),
        ("other:x:|", ("other:x", "|")),
        ("other", ("other", None)),
    ],
)
def test_bags_are_columns_with_or_without_a_separator(
    text: str, bag: tuple[str, str | None]
) -> None:
    assert _cli_values._bag(text, ["hist", "a:token_seq", "a"]) == bag


def test_bags_of_atomic_files_by_the_names_in_their_header(tmp_path: Path) -> None:
    path = tmp_path / "clicks.inter"
    path.write_text("user:token\ttags:token_seq\n" + "a\tb c\n" * 9)
    options = ("--features", "user:token", "--bags", "tags:token_seq: ", "--label", "absent")
    code, output = _run("search", "--table", path, *options, "--quiet")
    assert code != 0
    assert "has no column 'absent'" in output


@pytest.mark.parametrize(
    ("given", "names"),
    [("a, b", ("a", "b")), (["a,b", "c"], ("a", "b", "c")), ("", ()), (None, ()), ([], ())],
)
def test_columns_of_one_option_or_of_several(given: Any, names: tuple[str, ...]) -> None:
    assert _cli_values.listed(given) == names


def test_lists_and_markers_from_the_search_to_the_prediction(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 9, rng.integers(1, 6)).tolist() for _ in range(600)]
    frame = pd.DataFrame(
        {
            "hist:token_seq": lists,
            "city": rng.choice(["NA", "Rome", "?"], 600),
            "day": [f"{1 + i // 30:02}/01/2024" for i in range(600)],
            "clicked": [int(bag[-1] > 4) for bag in lists],
        }
    )
    frame.to_parquet(tmp_path / "clicks.parquet")
    study = ("--storage", f"sqlite:///{tmp_path}/s.db", "--quiet")
    code, output = _run(
        "search", "--table", tmp_path / "clicks.parquet", "--label", "clicked", *study,
        "--features", "city", "--bags", "hist:token_seq", "--max-bag-length", 2,
        "--na-values", "?", "--time", "day", "--time-format", "%d/%m/%Y", "--budget", "50%",
        "--embedding-dim", 4, "--epochs", 1, "--updates", 2,
    )  # fmt: skip
    assert code == 0, output
    code, output = _run(
        "retrain", "--seeds", 0, "--max-epochs", 1, *study, "--output", tmp_path / "model"
    )
    assert code == 0, output
    features = Predictor.load(tmp_path / "model").features
    assert features.na_values == ("?",)
    assert (features.max_bag_length, features.bag_keep) == (2, "last")
    assert set(features.vocabularies["city"].values) <= {"NA", "Rome"}
    found = tmp_path / "found.csv"
    code, output = _run(
        "predict", "--model", tmp_path / "model", "--table", tmp_path / "clicks.parquet",
        "--output", found,
    )  # fmt: skip
    assert code == 0, output
    assert len(pd.read_csv(found)) == 600


def test_a_study_that_is_not_there(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    commands = (("retrain",), ("report", "--output", tmp_path / "r.html"), ("status",))
    for command in commands:
        for missing in (storage, str(tmp_path / "s.journal")):
            code, output = _run(*command, "--storage", missing)
            assert code == 1
            assert "there is no file" in " ".join(output.split())
    assert not list(tmp_path.iterdir())
    optuna.create_study(storage=storage, study_name="another")
    for command in commands:
        code, output = _run(*command, "--storage", storage)
        assert code == 1
        assert "is not in the storage" in " ".join(output.split())
    code, output = _run("retrain", "--seeds", "a", "--storage", storage)
    assert code == 1


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize(
    ("command", "called", "message"),
    [
        (
            ("search", "--table", "a.csv", "--label", "y"),
            "lightning.search",
            "Interrupted. Finished trials are kept; the same command goes on.",
        ),
        (
            ("retrain",),
            "lightning.retrain",
            "Interrupted. Finished trainings are kept; the same command goes on with the others.",
        ),
        (
            ("export", "--model", "m", "--format", "dense", "--output", "served"),
            "serve.export.export_model",
            "Interrupted. Start the same command again.",
        ),
    ],
)
def test_interruption(
    command: tuple[str, ...],
    called: str,
    message: str,
    interruption: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*args: object, **options: object) -> None:
        raise interruption

    monkeypatch.chdir(tmp_path)
    Path("a.csv").touch()
    monkeypatch.setattr(f"optuna_nis.{called}", interrupt)
    storage = ()
    if called.startswith("lightning"):
        storage = ("--storage", f"sqlite:///{tmp_path}/s.db")
        optuna.create_study(storage=storage[1], study_name="optuna-nis", direction="maximize")
    code, output = _run(*command, *storage)
    assert code == 130
    assert message in " ".join(output.split())


def test_journal_storage(table: Path) -> None:
    code, output = _search(table, "--storage", table.parent / "s.journal")
    assert code == 0, output
    code, output = _search(table, "--storage", table.parent / "s.journal")
    assert code == 0, output


def test_a_search_that_is_started_again_goes_on(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optuna_nis.lightning import searching

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    storage = f"sqlite:///{table.parent}/s.db"
    with monkeypatch.context() as patch:
        patch.setattr(searching, "run_shortlist", interrupted)
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
    assert StudyOptions(storage, "clicks").checkpoint_dir == Path(folder)


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


def test_a_reader_that_has_gone_is_no_interruption(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/s.db"
    optuna.create_study(storage=storage, study_name="optuna-nis", direction="maximize")
    code = "from optuna_nis.cli import app; app()"
    command = [sys.executable, "-c", code, "status", "--storage", storage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()
    assert (process.returncode, told) == (1, b"")


@pytest.mark.parametrize("args", [["--help"], ["search", "--help"], ["--version"]])
def test_help_waits_for_no_imports(args: list[str]) -> None:
    code = (
        "import sys\n"
        "from optuna_nis.cli import app\n"
        f"try:\n    app({args})\nexcept SystemExit:\n    pass\n"
        "large = {'torch', 'lightning', 'pandas', 'numpy', 'optuna', 'plotly', 'sqlalchemy'}\n"
        "print(large & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stderr == "set()\n"
    assert "optuna-nis" in done.stdout or "Usage" in done.stdout


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands fail where they would import something large; there are some tables."""

    def load() -> None:
        raise RuntimeError("loading")

    monkeypatch.setattr(cli, "silence_lightning", load)
    monkeypatch.chdir(tmp_path)
    for name in ("a.csv", "a", "b"):
        Path(name).touch()


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            ("search", "--table", "a.csv", "--label", "y"),
            "Searching the sizes for a.csv: loading torch",
        ),
        (("search", "--dataset", "flights"), "Searching the sizes for flights: loading torch"),
        (("retrain",), "Retraining the best sizes of optuna-nis: loading torch"),
        (
            ("predict", "--model", "m", "--table", "a.csv", "--output", "b.csv"),
            "Predicting for a.csv: loading torch",
        ),
        (
            ("evaluate", "--model", "m", "--table", "a", "--table", "b", "--label", "y"),
            "Evaluating on a and b: loading torch",
        ),
        (
            ("export", "--model", "m", "--format", "onnx", "--output", "c"),
            "Exporting m: loading torch",
        ),
    ],
)
def test_what_begins_is_told_before_anything_is_imported(
    command: tuple[str, ...], told: str, no_loading: None
) -> None:
    code, output = _run(*command)
    assert code == 1
    assert output.startswith(told)
    assert output.splitlines()[-1] == "loading"
    assert _run(*command, "--quiet") == (1, "loading\n")


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("search", "--table", "a.csv", "--table", "none.csv"), "--table"),
        (("search", "--table", "a*.csv", "--valid", "none.csv"), "--valid"),
        (("search", "--table", ".", "--test", "none.csv"), "--test"),
        (("predict", "--model", "m", "--table", "none.csv", "--output", "b.csv"), "--table"),
        (("evaluate", "--model", "m", "--table", "none.csv", "--label", "y"), "--table"),
    ],
)
def test_tables_that_are_not_there_wait_for_no_imports(
    command: tuple[str, ...], option: str, no_loading: None
) -> None:
    told = f"`{option}` must be a file, got 'none.csv', which is none, nor a folder.\n"
    assert _run(*command, "--quiet") == (1, told)


def test_a_label_that_is_not_named_waits_for_no_imports(no_loading: None) -> None:
    told = "`--label` must name the label's column of the table, got None.\n"
    assert _run("search", "--table", "a.csv", "--quiet") == (1, told)


def test_progress_and_results_go_their_own_ways(
    table: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    storage = f"sqlite:///{table.parent}/s.db"
    args = [
        "search", "--table", str(table), "--label", "clicked", "--features", "user,city",
        "--budget", "50%", "--embedding-dim", "4", "--epochs", "2", "--updates", "2",
        "--storage", storage,
    ]  # fmt: skip
    _main(args)
    out, err = (" ".join(text.split()) for text in capfd.readouterr())
    for line in (
        f"Reading {table}.",
        "1,200 rows: 960 for training, 120 for validation, 120 for the test",
        "user: 80 ids",
        "city: 9 ids",
        "Supernet: epoch 1 of 2, ",
        "Training the best ",
        f"Next: optuna-nis retrain --output model --storage {storage}",
    ):
        assert line in err
        assert line not in out
    study = optuna.load_study(study_name="optuna-nis", storage=storage)
    best = best_allocation(study)
    quality = best_trial(study).user_attrs["quality"]
    memory = _format.memory(best.nbytes(), space_of(study).full_nbytes)
    assert f"Validation ROC-AUC {quality:.4f} with {memory}: {best.num_parameters:,} para" in out
    assert "Warning: The validation part is small, 120 rows" in err

    _main(["retrain", "--seeds", "0", "--max-epochs", "1", "--storage", storage])
    out, err = capfd.readouterr()
    assert "NIS, finalist 1, seed 0: validation ROC-AUC" in err
    assert f"Next: optuna-nis report --storage {storage}" in " ".join(err.split())
    assert "seed" not in out.lower().replace("seeds", "").replace("per seed", "")
    assert "Full size" in out

    # The search has ended: other options are not silently ignored, not even quietly.
    _main([*args, "--epochs", "7", "--quiet"])
    out, err = (" ".join(text.split()) for text in capfd.readouterr())
    assert "Warning: Options are ignored, since `study` 'optuna-nis' has been searched" in err
    assert "with epochs 2 (now 7). Give another study name" in err
    assert str(best["city"]) in out


def _main(args: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        app(args)
    assert end.value.code == 0


def test_the_next_command_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    cli._next(False, "report", StudyOptions("postgresql://me:secret@host/nis", "my study"))
    assert (
        capsys.readouterr().err
        == "Next: optuna-nis report --storage ... --study-name 'my study'\n"
    )
    cli._next(False, "report", StudyOptions("sqlite:///optuna-nis.db", "optuna-nis"))
    assert capsys.readouterr().err == "Next: optuna-nis report\n"
    cli._next(True, "report", StudyOptions("sqlite:///optuna-nis.db", "optuna-nis"))
    assert capsys.readouterr().err == ""


def test_other_data_under_the_same_name_are_named_in_a_line(table: Path) -> None:
    storage = f"sqlite:///{table.parent}/s.db"
    study = optuna.create_study(storage=storage, study_name="optuna-nis", direction="maximize")
    study.set_user_attr(DATA_ATTR, DataConfig(dataset="flights", seed=0).to_json())
    code, output = _search(table)
    assert code == 1
    told = " ".join(output.split())
    assert "was searched on other data, with dataset 'flights' (now None), table None (now" in told
    assert told.endswith("Use another study name.")
    assert '"dataset"' not in told


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            ("search", "--table", ".", "--label", "y", "--checkpoint-dir"),
            "`--checkpoint-dir` must be a folder to write, got the file",
        ),
        (("retrain", "--output"), "`--output` must be a folder to write, got the file"),
        (("report", "--output"), "`--output` must be somewhere that can be written"),
        (
            ("predict", "--model", "m", "--table", "t.csv", "--output"),
            "`--output` must be a file that ends in one of .csv, .csv.gz, .parquet",
        ),
        (
            ("export", "--model", "m", "--format", "dense", "--output"),
            "`--output` must be a folder to write, got the file",
        ),
    ],
)
def test_an_output_that_cannot_be_written_is_told_first(
    command: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    storage = f"sqlite:///{tmp_path}/s.db"
    optuna.create_study(storage=storage, study_name="optuna-nis", direction="maximize")
    output = file if "folder" in message else file / "new"
    more = ("--storage", storage) if command[0] in ("search", "retrain", "report") else ()
    code, told = _run(*command, output, *more)
    assert code == 1
    assert message in " ".join(told.split())
    assert file.read_text() == "x"


def test_warnings_are_lines_for_people(table: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with _cli_console.errors(True, "", "", str):
        warnings.warn("3 rows are gone", stacklevel=1)
        get_logger("optuna_nis.lightning.job").warning("nothing was learned")
        get_logger("optuna_nis.lightning.job").info("unimportant")
    out, err = capfd.readouterr()
    assert err == "Warning: 3 rows are gone\nWarning: nothing was learned\n"
    assert out == ""
    assert not logging.getLogger("optuna.optuna_nis").handlers


def test_help_teaches() -> None:
    code, output = _run("--help")
    assert code == 0
    for command in ("search", "retrain", "report", "predict", "evaluate", "export"):
        assert command in output
        assert _run(command, "--help")[0] == 0


def test_help_knows_the_defaults() -> None:
    words = _run("search", "--help")[1].replace("│", " ").split()
    told = words[words.index("--updates") :][:40]
    assert f"[default: ({SearchPlan().num_updates})]" in " ".join(told)


def _at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the command prints to a terminal of 60 columns."""
    written = io.StringIO()
    console = Console(file=written, width=60, force_terminal=True, color_system=None)
    monkeypatch.setattr(_cli_console, "_console", console)
    return written


def test_lines_are_broken_between_words_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    written = _at_a_terminal(monkeypatch)
    told = "uniform, seed 0: validation ROC-AUC 0.9076 in epoch 3 of 6, 3 s; about 23 s left."
    _cli_console.progress(quiet=False)(told)
    _cli_console.warn(told)
    with pytest.raises(typer.Exit):
        _cli_console.fail(told)
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    assert "".join(f"{line.strip()} " for line in lines) == f"{told} Warning: {told} {told} "


def test_names_of_columns_are_no_emoji(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rich.reconfigure(stderr=True)  # As Lightning does for its bars.
    name = "user:id: removed, item:x: 8, [red]shop[bold]"
    _cli_console.result(name)
    _cli_console.tell(name)
    assert [*capsys.readouterr()] == [f"{name}\n"] * 2


def test_rules_for_columns_called_as_options_are_no_options(tmp_path: Path) -> None:
    path = tmp_path / "clicks.csv"
    frame = pd.DataFrame({"label": [1, 2] * 30, "user": [*range(20)] * 3})
    frame.to_csv(path, index=False)
    options = ["--table", str(path), "--label", "label", "--features", "user"]
    result = runner.invoke(app, ["search", *options, "--storage", f"sqlite:///{tmp_path}/s.db"])
    assert result.exit_code == 1
    assert "say so: `label==2`" in " ".join(result.output.split())


def test_a_command_to_copy_stays_a_line_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    written = _at_a_terminal(monkeypatch)
    storage = "sqlite:///a folder with a long name/another one/study.db"
    cli._next(False, "retrain --output model", StudyOptions(storage, "clicks"))
    (line,) = written.getvalue().splitlines()
    assert line.endswith(f"retrain --output model --storage '{storage}' --study-name clicks")


def test_lines_stay_lines_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    told = "a line of far more than sixty letters, which a file keeps as the line that it is"
    _cli_console.warn(told)
    assert capsys.readouterr().err == f"Warning: {told}\n"


def test_bars_count_epochs_from_one_and_share_the_console_of_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert _cli_console._console is rich.get_console()  # The one on which Lightning draws.
    _at_a_terminal(monkeypatch)
    (bar,) = _cli_console.bars(quiet=False)
    descriptions: list[str] = []

    class Look(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            descriptions.append(bar.train_progress_bar.description.strip())

    data = DataLoader(TensorDataset(torch.randn(2, 32)), collate_fn=lambda rows: rows[0][0])
    trainer = Trainer(
        max_epochs=2,
        limit_train_batches=1,
        limit_val_batches=0,
        callbacks=[bar, Look()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(BoringModel(), data)
    assert descriptions == ["Epoch 1/2", "Epoch 2/2"]


@pytest.mark.parametrize("command", ["search", "retrain"])
def test_the_least_number_of_ids_of_tables_to_spread(command: str) -> None:
    code, output = _run(command, "--shard-tables-above", SPARSE_ABOVE - 1)
    assert code == 2
    assert str(SPARSE_ABOVE) in output


def test_a_seed_is_what_every_storage_can_hold() -> None:
    code, output = _run("search", "--dataset", "flights", "--seed", 2**63)
    assert code == 2
    assert "--seed" in output
