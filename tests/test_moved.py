from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
import pickle
import re
import subprocess
import sys
import warnings

import optuna
import pytest

from optuna_nis import AdditiveBudget, NISSampler
from optuna_nis._moved import MOVED

ROOT = Path(__file__).parents[1]
BENEATH = {
    "datasets.features": "data.features",
    "export.onnx": "serve.onnx",
    "visualization._style": "show.figures._style",
}


@pytest.fixture(autouse=True)
def _forget_old_names() -> Iterator[None]:
    """A module warns when it is imported for the first time."""
    _forget()
    yield
    _forget()


def _forget() -> None:
    for old in [*MOVED, *BENEATH]:
        sys.modules.pop(f"optuna_nis.{old}", None)
    for old in MOVED:
        parent, _, name = f"optuna_nis.{old}".rpartition(".")
        if parent in sys.modules:
            vars(sys.modules[parent]).pop(name, None)


@pytest.mark.parametrize(("old", "new"), [*MOVED.items(), *BENEATH.items()])
def test_a_module_is_the_same_under_its_old_name(old: str, new: str) -> None:
    with pytest.warns(FutureWarning) as told:
        found = import_module(f"optuna_nis.{old}")
    assert found is import_module(f"optuna_nis.{new}")
    assert found.__spec__ is not None
    assert found.__spec__.name == found.__name__ == f"optuna_nis.{new}"
    # What is above it has moved, too.
    assert len(told) == 1 + (old in BENEATH)
    assert f"`optuna_nis.{old}` is `optuna_nis.{new}` now" in str(told[-1].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert import_module(f"optuna_nis.{old}") is found


def test_torchrec_is_the_same_under_its_old_name() -> None:
    pytest.importorskip("torchrec")
    with pytest.warns(FutureWarning) as told:
        import optuna_nis.export.torchrec as old
    assert "`optuna_nis.serve.torchrec`" in str(told[-1].message)
    import optuna_nis.serve.torchrec as new

    assert old is new


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_all_ways_to_import_work() -> None:
    import optuna_nis
    from optuna_nis import baselines, results
    from optuna_nis.data import table as new_table
    import optuna_nis.datasets
    from optuna_nis.datasets import load_dataset
    import optuna_nis.datasets.table as old_table
    from optuna_nis.study.results import best_allocation

    assert results.best_allocation is best_allocation
    assert baselines.__name__ == "optuna_nis.strategy.baselines"
    assert optuna_nis.datasets.load_dataset is load_dataset
    assert old_table is new_table


def test_the_warning_is_about_the_line_that_imports() -> None:
    with pytest.warns(FutureWarning) as told:
        from optuna_nis import results  # noqa: F401
    assert [warning.filename for warning in told] == [__file__]


def test_names_that_there_never_were_are_not_found() -> None:
    with (
        pytest.warns(FutureWarning, match=r"`optuna_nis\.datasets`"),
        pytest.raises(ModuleNotFoundError, match=r"optuna_nis\.datasets\.nothing"),
    ):
        import_module("optuna_nis.datasets.nothing")
    with pytest.raises(ModuleNotFoundError, match=r"optuna_nis\.nothing"):
        import_module("optuna_nis.nothing")
    with pytest.raises(ImportError, match="nothing"):
        from optuna_nis import nothing  # noqa: F401


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_sampler_that_an_earlier_release_pickled_is_loaded() -> None:
    budget = AdditiveBudget(100, {"user": {0: 0, 1: 50}, "item": {0: 0, 1: 30, 2: 80}})
    sampler = NISSampler(budget=budget, seed=3)
    # In protocol 0 names are lines of text.
    text = pickle.dumps(sampler, protocol=0)
    for kind, old in ((NISSampler, "sampler"), (AdditiveBudget, "budget")):
        new = f"c{kind.__module__}\n".encode()
        assert new in text
        text = text.replace(new, f"coptuna_nis.{old}\n".encode())
    again = pickle.loads(text)
    assert type(again) is NISSampler
    distributions = {
        name: optuna.distributions.CategoricalDistribution(options)
        for name, options in budget.choices.items()
    }
    found = []
    for each in (again, sampler):
        study = optuna.create_study(sampler=each, direction="maximize")
        for _ in range(5):
            study.tell(study.ask(distributions), 0.5)
        found.append([trial.params for trial in study.trials])
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_parts_of_a_model_that_an_earlier_release_pickled_are_found() -> None:
    from optuna_nis.models.embeddings import FeatureEmbeddings

    assert (
        pickle.loads(b"coptuna_nis.lightning.modules\nFeatureEmbeddings\n.") is FeatureEmbeddings
    )


def test_importing_the_package_stays_cheap() -> None:
    code = (
        "import sys\n"
        "import optuna_nis\n"
        "print({'torch', 'lightning', 'pandas', 'numpy', 'optuna'} & set(sys.modules))\n"
        "optuna_nis.NISSampler, optuna_nis.SearchSpace, optuna_nis.Reward\n"
        "print({'torch', 'lightning', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nset()\n"


def _texts() -> list[Path]:
    """What is written by hand, but for the changelog, which tells what was, and this test."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.md", "*.rst", "*.toml", "*.yml", "Makefile"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not in a clone")
    skipped = {"CHANGELOG.md", "optuna_nis/_moved.py", "tests/test_moved.py"}
    return [ROOT / name for name in listed.stdout.splitlines() if name not in skipped]


def test_nothing_of_ours_uses_an_old_name() -> None:
    old = "|".join(map(re.escape, MOVED))
    used = re.compile(
        # Dotted, or imported from the package; `optuna_nis.study.results` is not such.
        rf"\boptuna_nis\.({old})\b|\bfrom optuna_nis import .*\b({old})\b"
    )
    assert used.search("from optuna_nis import SearchSpace, results")
    assert used.search("see optuna_nis.datasets.table")
    assert not used.search("optuna_nis.study.results, optuna_nis.lightning")
    assert [
        f"{path.relative_to(ROOT)}:{number}: {line}"
        for path in _texts()
        if path.exists()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if used.search(line)
    ] == []
