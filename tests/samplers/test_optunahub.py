from __future__ import annotations

from pathlib import Path
import runpy
from typing import Any

import optuna
import optunahub
import pytest
import yaml

import optuna_nis

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "samplers" / "nis"


@pytest.fixture
def module() -> Any:
    return optunahub.load_local_module("samplers/nis", registry_root=str(ROOT))


def readme() -> tuple[dict[str, Any], str]:
    _, front, text = (PACKAGE / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_package_is_that_of_optuna_nis(module):
    assert module.NISSampler is optuna_nis.NISSampler
    for name in module.__all__:
        assert getattr(module, name) is getattr(optuna_nis, name)


def test_the_front_matter_is_complete():
    front, text = readme()
    assert set(front) == {"author", "title", "description", "tags", "optuna_versions", "license"}
    assert all(front.values())
    assert "sampler" in front["tags"]
    assert front["license"] == "MIT License"
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["Abstract", "APIs", "Installation", "Example", "Others"]
    assert (PACKAGE / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@pytest.fixture
def _local_registry(module, monkeypatch):
    monkeypatch.setattr(optunahub, "load_module", {"samplers/nis": module}.__getitem__)


@pytest.mark.usefixtures("_local_registry")
def test_the_example_runs(capsys):
    found = runpy.run_path(str(PACKAGE / "example.py"), run_name="__main__")
    best = found["space"].allocation(found["study"].best_params)
    assert capsys.readouterr().out.strip() == str(best)
    trials = found["study"].trials
    assert len(trials) == 200
    costs = [trial.user_attrs["nbytes"] for trial in trials]
    assert max(costs) <= found["space"].budget_nbytes
    # Better than chance, and without the feature that does harm.
    random = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0)
    )
    random.optimize(found["objective"], n_trials=50)
    within = [t.value for t in random.trials if t.user_attrs["nbytes"] <= max(costs)]
    assert found["study"].best_value > max(within)
    assert best["session"].num_parameters < 0.1 * best.num_parameters


@pytest.mark.usefixtures("_local_registry")
def test_the_readme_runs(capsys):
    block = readme()[1].split("```python\n")[1].split("```")[0]
    exec(block, {})
    assert capsys.readouterr().out.strip() == "{'width': 16, 'pooling': 'mean'}"
