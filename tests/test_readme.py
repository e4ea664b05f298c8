from __future__ import annotations

import difflib
from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).parent.parent


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
