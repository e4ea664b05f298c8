from __future__ import annotations

import difflib
from pathlib import Path
import re
import subprocess
import sys

import pytest

import optuna_nis

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return [part.split("```")[0] for part in (ROOT / page).read_text().split("```python\n")[1:]]


def test_the_results_table_is_up_to_date() -> None:
    script = ROOT / "benchmarks" / "readme_table.py"
    subprocess.run([sys.executable, script, "--check"], check=True, cwd=ROOT)


def test_the_five_lines_are_those_of_the_tutorial() -> None:
    plain, searched = (
        (ROOT / "tutorials" / f"{name}_training.py").read_text().split('"""', 2)[2].splitlines()
        for name in ("plain", "searched")
    )
    changes = list(difflib.ndiff(plain, searched))
    assert not [line for line in changes if line.startswith("- ")]
    added = [line[2:] for line in changes if line.startswith("+ ") and line[2:]]
    assert len([line for line in added if "import" not in line]) == 5
    block = (ROOT / "README.md").read_text().split("```diff\n")[1].split("```")[0].splitlines()
    assert [line[1:] for line in block if line.startswith("+")] == added
    kept = [line[1:] for line in block if line.startswith(" ")]
    assert kept == plain[-len(kept) :]


def test_the_tutorials_run(tmp_path: Path) -> None:
    source = (ROOT / "tutorials" / "searched_training.py").read_text()
    few = source.replace(".dropna(", ".head(20_000).dropna(").replace("epochs=3", "epochs=1")
    assert few.count("head(20_000)") == 1
    assert few.count("epochs=1") == 2
    (tmp_path / "searched.py").write_text(few + "print(search.candidates[0])\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "searched.py"],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "embeddings.7: " in done.stdout
    assert "auroc" in done.stdout


@pytest.mark.slow
def test_the_ten_lines_run(tmp_path: Path) -> None:
    (block,) = blocks("README.md")
    assert blocks("docs/quick_start.md")[0] == block
    few = block.replace('-small"', '-small", max_rows=20_000').replace("epochs=4", "epochs=1")
    assert few.count("max_rows") == 1
    assert few.count("epochs=1") == 2
    (tmp_path / "ten.py").write_text(few)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "ten.py"],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert "\nuser: " in done.stdout
    assert "test_metric" in done.stdout


def test_the_objective_of_the_quick_start_runs(capsys: pytest.CaptureFixture[str]) -> None:
    budget = 0.25 * 32 * (6040 + 3706)

    def train_and_validate(allocation):
        assert allocation.num_parameters <= budget
        return allocation["user"].num_parameters - allocation["item"].num_parameters

    code = blocks("docs/quick_start.md")[1].replace("n_trials=100", "n_trials=10")
    exec(code, {"train_and_validate": train_and_validate})
    assert capsys.readouterr().out.startswith("user: ")


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
