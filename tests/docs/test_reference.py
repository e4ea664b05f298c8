from __future__ import annotations

from pathlib import Path
import pkgutil

import optuna_nis

ROOT = Path(__file__).parents[2]
# Their public names are those of `optuna_nis`, or they are a command.
ELSEWHERE = {"allocation", "budget", "cli", "policy", "replay", "reward", "sampler", "space"}


def test_every_public_module_is_in_the_reference():
    pages = "\n".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.rst"))
    named = [line.split()[-1] for line in pages.splitlines() if ".. automodule::" in line]
    modules = {f"optuna_nis.{name}" for _, name, _ in pkgutil.iter_modules(optuna_nis.__path__)}
    expected = {
        name
        for name in modules
        if not (short := name.removeprefix("optuna_nis.")).startswith("_")
        and short not in ELSEWHERE
    }
    assert expected | {"optuna_nis"} <= set(named)
    assert len(named) == len(set(named))
