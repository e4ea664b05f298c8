from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
import pkgutil
import re

import optuna_nis

ROOT = Path(__file__).parents[2]
PAGES = {path.stem: path.read_text() for path in (ROOT / "docs" / "api").glob("*.rst")}
# Parts of what is public; the names of those of `study` are in `optuna_nis.study.results`, too.
INTERNAL = {
    "optuna_nis.cli",
    "optuna_nis.show.scored",
    "optuna_nis.show.words",
    "optuna_nis.strategy.asking",
    "optuna_nis.strategy.candidates",
    "optuna_nis.strategy.ending",
    "optuna_nis.strategy.journal",
    "optuna_nis.strategy.proposers",
    "optuna_nis.strategy.schedule",
    "optuna_nis.strategy.scoring",
    "optuna_nis.strategy.simplifying",
    "optuna_nis.strategy.training_choices",
    "optuna_nis.study.attributes",
    "optuna_nis.study.keys",
    "optuna_nis.study.retrained",
    "optuna_nis.study.settings",
    "optuna_nis.study.trials",
}


def _public(package: str) -> Iterator[str]:
    """Public modules: packages that list their names, and of others their modules."""
    for _, name, is_package in pkgutil.iter_modules(import_module(package).__path__):
        module = f"{package}.{name}"
        if name.startswith("_") or module in INTERNAL:
            continue
        yield module
        if is_package and not hasattr(import_module(module), "__all__"):
            yield from _public(module)


def _shown(directive: str) -> list[str]:
    return re.findall(rf"^\.\. {directive}:: (\S+)$", "\n".join(PAGES.values()), re.MULTILINE)


def test_every_public_module_is_in_the_reference() -> None:
    public, shown = set(_public("optuna_nis")), _shown("automodule")
    assert {"optuna_nis.space", "optuna_nis.study.results", "optuna_nis.show.figures"} <= public
    assert public <= set(shown)
    assert len(shown) == len(set(shown))
    assert not INTERNAL & set(shown)


def test_every_name_of_the_package_itself_is_in_the_reference() -> None:
    shown = [*_shown("autoclass"), *_shown("autofunction")]
    # Those of modules are written with their module.
    assert sorted(name for name in shown if "." not in name) == sorted(optuna_nis.__all__)


def test_there_is_a_page_for_each_package_and_the_table_has_it() -> None:
    packages = {
        name
        for _, name, is_package in pkgutil.iter_modules(optuna_nis.__path__)
        if is_package and not name.startswith("_")
    }
    assert set(PAGES) == packages
    index = (ROOT / "docs" / "api" / "index.md").read_text()
    assert set(re.findall(r"^\| \[`optuna_nis\.(\w+)`\]\((?:\1)\.rst\)", index, re.MULTILINE)) == (
        packages
    )
    (tree,) = re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)
    assert set(tree.split()) == packages
