"""What the project says of itself in several places is the same in all of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
import re
import stat

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest
import yaml

import optuna_nis

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FINDINGS = sorted((ROOT / "findings").glob("*.sh"))


def pins(file: str, python: str) -> dict[str, str]:
    """Versions in a file of constraints, by canonical name, for a version of Python."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if not line.startswith("#")]
    found: dict[str, str] = {}
    for requirement in map(Requirement, lines):
        marker = requirement.marker
        if marker is None or marker.evaluate({"python_version": python}):
            name = canonicalize_name(requirement.name)
            assert name not in found, f"{file} has {name} twice for Python {python}"
            found[name] = str(requirement.specifier).removeprefix("==")
    return found


def matrix() -> list[str]:
    """The versions of Python in the script for CI."""
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    return yaml.safe_load(text)["jobs"]["test"]["strategy"]["matrix"]["python"]


def test_versions_of_python() -> None:
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert matrix()[0] == oldest
    prefix = "Programming Language :: Python :: 3."
    named = [line for line in PROJECT["classifiers"] if line.startswith(prefix)]
    assert named[0] == prefix + oldest.removeprefix("3.")
    assert {line.rsplit(" ", 1)[1] for line in named} <= set(matrix())
    python = rf"Python {re.escape(oldest)} or newer"
    assert re.search(python, (ROOT / "README.md").read_text())
    assert re.search(python, (ROOT / "docs" / "quick_start.md").read_text())


@pytest.mark.parametrize("python", matrix())
@pytest.mark.parametrize("file", ["constraints.txt", "constraints-oldest.txt"])
def test_constraints_allow_what_the_project_asks_for(file: str, python: str) -> None:
    pinned = pins(file, python)
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *(line for lines in extras.values() for line in lines)]
    checked = 0
    for requirement in map(Requirement, asked):
        version = pinned.get(canonicalize_name(requirement.name))
        if version is not None:
            assert requirement.specifier.contains(version, prereleases=True), requirement
            checked += 1
    assert checked > 20


def test_the_oldest_versions_are_those_that_the_project_allows() -> None:
    pinned = pins("constraints-oldest.txt", "3.10")
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["lightning"], *extras["viz"], *extras["cli"]]
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        # Builds of old releases for CPUs are not on the usual index.
        if name in pinned and name != "torch":
            (lower,) = (s.version for s in requirement.specifier if s.operator == ">=")
            oldest = tuple(map(int, re.findall(r"\d+", pinned[name])[: len(lower.split("."))]))
            assert oldest == tuple(map(int, lower.split("."))), requirement


def test_the_citation_has_the_latest_release() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    released = re.findall(
        r"^## \[(.+?)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    assert (citation["version"], citation["date-released"]) == released[0]
    assert citation["version"] == PROJECT["version"] == optuna_nis.__version__
    assert citation["license"] == PROJECT["license"]


def test_pre_commit_has_the_versions_of_constraints() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    installed = [line for hook in hooks for line in hook.get("additional_dependencies", ())]
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+", line) for line in installed)
    pinned = pins("constraints.txt", "3.11")
    assert {f"ruff=={pinned['ruff']}"} == {line for line in installed if "ruff" in line}


def test_the_page_on_others_names_the_versions_of_constraints() -> None:
    page = (ROOT / "docs" / "what_goes_with_what.md").read_text()
    pinned = pins("constraints.txt", "3.11")
    named = {
        canonicalize_name(name): version
        for name, version in re.findall(r"`([\w.-]+)` (\d+(?:\.\d+)+)", page)
    }
    assert {"torch", "lightning", "optuna", "pandas", "onnxruntime", "torchrec"} <= set(named)
    ours = {name: version for name, version in named.items() if name in pinned}
    assert ours == {name: pinned[name] for name in ours}


def test_imports_point_one_way() -> None:
    table = re.findall(r"^\| `(\w+)/` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    package = ROOT / "optuna_nis"
    assert set(table) == {path.parent.name for path in package.glob("*/__init__.py")}
    backwards = [
        f"{path.relative_to(package)} imports {other}"
        for place, name in enumerate(table)
        for path in (package / name).rglob("*.py")
        for other in _imported(ast.parse(path.read_text()))
        if other in table[place + 1 :]
    ]
    assert not backwards


def _imported(node: ast.AST) -> Iterator[str]:
    """Packages of ours that a module imports, but for the sake of types alone."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("optuna_nis."):
        yield str(node.module).split(".")[1]
    for child in ast.iter_child_nodes(node):
        yield from _imported(child)


def test_findings_are_listed_in_their_readme() -> None:
    listed = re.findall(r"\]\((\w+\.sh)\)", (ROOT / "findings" / "README.md").read_text())
    assert listed == [path.name for path in FINDINGS]


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_a_finding_is_a_program_of_its_own(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert path.stat().st_mode & stat.S_IXUSR
    start = lines.index("set -euo pipefail")
    assert all(line.startswith("#") for line in lines[:start])
    code = "\n".join(lines[start:])
    assert "folder=$(mktemp -d)\ntrap 'rm -rf \"$folder\"' EXIT\n" in code
    assert re.search(r"^ *assert ", code, re.MULTILINE)
    assert not re.search(r"optuna[_-]nis", code)
    installs = re.findall(r"pip install (.*)", code.replace("\\\n", ""))
    packages = [word for line in installs for word in line.split() if not word.startswith("-")]
    assert packages
    assert all(re.fullmatch(r"[\w.-]+==[\d.]+", package) for package in packages)
