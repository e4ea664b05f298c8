from __future__ import annotations

from collections import OrderedDict
import difflib
from pathlib import Path
import re
import subprocess
import sys

import optuna
import pytest

import optuna_nis

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return [part.split("```")[0] for part in (ROOT / page).read_text().split("```python\n")[1:]]


def test_the_results_table_is_up_to_date() -> None:
    script = ROOT / "benchmarks" / "readme_table.py"
    subprocess.run([sys.executable, script, "--check"], check=True, cwd=ROOT)


def run(folder: Path, code: str, *arguments: str) -> str:
    """Run a script in a folder of its own; what it prints."""
    (folder / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "script.py", *arguments],
        check=True,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    return done.stdout


def replaced(code: str, changes: dict[str, str]) -> str:
    """Code with some parts replaced, each of which must be there once."""
    for old, new in changes.items():
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    return code


def tutorial(name: str) -> str:
    return (ROOT / "tutorials" / f"{name}_training.py").read_text()


def test_the_lines_of_a_search_are_those_of_the_tutorial() -> None:
    plain, searched = (
        tutorial(name).split('"""', 2)[2].splitlines() for name in ("plain", "searched")
    )
    changes = [line for line in difflib.ndiff(plain, searched) if line[:2] in ("+ ", "- ")]
    changes = [line[0] + line[2:] for line in changes if line[2:]]
    block = (ROOT / "README.md").read_text().split("```diff\n")[1].split("```")[0].splitlines()
    assert [line for line in block if line[:1] in ("+", "-")] == changes
    added = [line for line in changes if line[0] == "+" and "import" not in line]
    assert len(added) == 2
    kept = [line[1:] for line in block if line.startswith(" ")]
    assert [line for line in plain if line in kept][-len(kept) :] == kept


@pytest.mark.slow
def test_the_script_with_a_search_runs(tmp_path: Path) -> None:
    few = replaced(
        tutorial("searched"),
        {
            ".dropna(": ".head(5_000).dropna(",
            "epochs=3": "epochs=1",
            'monitor="auroc")': 'monitor="auroc", epochs=1, num_updates=4)',
        },
    )
    printed = run(tmp_path, few + "print(found.allocation)\n")
    assert "embeddings.7: " in printed
    assert "auroc" in printed


@pytest.mark.slow
def test_the_ten_lines_find_what_the_command_finds(capsys: pytest.CaptureFixture[str]) -> None:
    lightning = pytest.importorskip("optuna_nis.lightning")
    (block,) = blocks("README.md")
    assert blocks("docs/quick_start.md")[0] == block
    few = replaced(
        block,
        {
            '-small"': '-small", max_rows=5_000',
            '"25%"': '"25%", epochs=2, num_updates=10',
            "retrain(": "retrain(seeds=[0], max_epochs=2",
        },
    )
    exec(few, {})
    study = optuna.create_study(direction="maximize")
    data = lightning.DataConfig(dataset="movielens-small", max_rows=5_000)
    sizes = lightning.search(study, data, budget="25%", epochs=2, num_updates=10)
    results = lightning.retrain(study, seeds=[0], max_epochs=2)
    assert capsys.readouterr().out == f"{sizes}\n{results}\n"


def test_the_objective_of_the_quick_start_runs(capsys: pytest.CaptureFixture[str]) -> None:
    budget = 0.25 * 32 * (6040 + 3706)

    def train_and_validate(allocation):
        assert allocation.num_parameters <= budget
        return allocation["user"].num_parameters - allocation["item"].num_parameters

    code = replaced(blocks("docs/quick_start.md")[1], {"n_trials=100": "n_trials=10"})
    exec(code, {"train_and_validate": train_and_validate})
    assert capsys.readouterr().out.startswith("user: ")


@pytest.mark.slow
def test_the_steps_for_a_model_of_your_own_run(tmp_path: Path) -> None:
    script = tutorial("plain").split("seed_everything(0)")[0]
    steps = replaced(
        "".join(blocks("docs/your_model.md")[:-1]),
        {
            'monitor="auroc")\nprint': 'monitor="auroc", epochs=1, num_updates=4)\nprint',
            "seeds=[0, 1, 2]": "seeds=[0], max_epochs=1",
            'NISCallback(space, monitor="auroc")': (
                'NISCallback(space, monitor="auroc", num_updates=4)'
            ),
            "max_epochs=4": "max_epochs=1",
            'monitor="auroc"), n_trials=50': 'monitor="auroc", max_epochs=1), n_trials=2',
        },
    )
    printed = run(
        tmp_path,
        replaced(script, {".dropna(": ".head(5_000).dropna("})
        + "(train_loader, val_loader, test_loader), sizes = flights()\n"
        + "Model = lambda: Delay(sizes)\n"
        + steps
        + "print(sum(p.numel() for p in model.embeddings.parameters()) <= space.budget)\n"
        + "print(len(study.trials), study.best_trial.user_attrs['fidelity'])\n",
    )
    assert re.search(
        r"^NIS: auroc 0\.\d{4} on the test, [\d.]+ k?[Bb]\w* \([\d,]+ param", printed, re.MULTILINE
    )
    assert printed.endswith("True\n2 trained\n")


def test_the_output_layer_of_a_model_of_your_own_is_searched() -> None:
    torch = pytest.importorskip("torch")
    swapping = pytest.importorskip("optuna_nis.nn")
    labels = torch.arange(90).sqrt().long()
    scope = {
        **vars(swapping),
        "torch": torch,
        "model": torch.nn.Sequential(
            OrderedDict(user=torch.nn.Embedding(30, 4), head=torch.nn.Linear(4, 10))
        ),
        "train_loader": torch.arange(90).remainder(30).split(45),
        "labels": labels,
        "num_items": 10,
    }
    exec(blocks("docs/your_model.md")[-1], scope)
    assert [spec.name for spec in scope["space"].specs] == ["user", "head"]
    assert scope["counts"]["head"].sum() == len(labels)


def test_the_share_of_embeddings_is_counted() -> None:
    torch = pytest.importorskip("torch")
    scope = {"torch": torch}
    exec(blocks("docs/worth_it.md")[0], scope)
    model = torch.nn.ModuleList([torch.nn.Embedding(10, 3), torch.nn.Linear(9, 1)])
    assert scope["embedding_share"](model) == 0.75


def test_the_version_is_the_same_everywhere() -> None:
    version = optuna_nis.__version__
    assert f'\nversion = "{version}"\n' in (ROOT / "pyproject.toml").read_text()
    headings = [
        line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")
    ]
    assert headings[0] == "## [Unreleased]"
    assert re.fullmatch(rf"## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d", headings[1])


def test_links_lead_to_files() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    assert len(pages) > 10
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+?)\)|srcset=\"(.+?)\"", page.read_text()):
            path = target[0] or target[1]
            # What is made while building is checked by Sphinx.
            if not path.startswith(("https://", "generated/")):
                assert (page.parent / path).exists(), f"{page.name}: {path}"
