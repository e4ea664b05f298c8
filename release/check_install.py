"""Install the wheel in ``dist`` into fresh environments and run what the README shows.

    python release/check_install.py

- Alone, with numpy and Optuna but without torch: the package is imported and ``NISSampler``
  searches under a budget.
- With all extras: the ten lines of the README, to the letter, and the command.

torch comes from where pip finds it, in the version of ``constraints.txt``.
"""

from __future__ import annotations

from pathlib import Path
import subprocess
import sys
import tempfile
import venv

ROOT = Path(__file__).resolve().parent.parent
ALONE = """
import sys
import optuna
import optuna_nis
from optuna_nis import EmbeddingSpec, NISSampler, SearchSpace
import optuna_nis.strategy.baselines, optuna_nis.study.recording
import optuna_nis.study.results, optuna_nis.study.storages

heavy = {"lightning", "pandas", "plotly", "torch"} & set(sys.modules)
assert not heavy, heavy
assert "site-packages" in optuna_nis.__file__, optuna_nis.__file__

specs = [EmbeddingSpec("user", 6040, 32), EmbeddingSpec("item", 3706, 32)]
space = SearchSpace(specs, budget="25%")
study = optuna.create_study(
    storage="sqlite:///study.db", direction="maximize", sampler=NISSampler(budget=space, seed=0)
)

def objective(trial):
    allocation = space.suggest(trial)
    assert allocation.num_parameters <= space.budget
    return sum(table.num_parameters**0.5 for table in allocation.values())

optuna.logging.set_verbosity(optuna.logging.WARNING)
study.optimize(objective, n_trials=100)
values = [trial.value for trial in study.trials]
first, last = sum(values[:20]) / 20, sum(values[-20:]) / 20
assert last > first, (first, last)
print(space.allocation(study.best_params))
"""


def main() -> None:
    (wheel,) = (ROOT / "dist").glob("*.whl")
    ten_lines = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    with tempfile.TemporaryDirectory() as folder:
        alone = install(Path(folder) / "alone", str(wheel))
        found = run(alone, "-m", "pip", "list", "--format", "freeze")
        if "torch==" in found:
            sys.exit("The wheel without extras brings torch.")
        print(run(alone, "-c", ALONE))
        full = install(Path(folder) / "all", f"{wheel}[all]")
        print(run(full, "-W", "ignore", "-c", ten_lines))
        command = full.parent / "optuna-nis"
        print(
            subprocess.run([command, "--help"], check=True, capture_output=True, text=True).stdout
        )
    print(f"{wheel.name} installs and runs.")


def install(folder: Path, what: str) -> Path:
    """The Python of a new environment with a package in it."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), what)
    run(python, "-m", "pip", "check")
    return python


def run(python: Path, *arguments: str) -> str:
    """What a Python prints, run where the repository is out of sight."""
    done = subprocess.run(
        [python, *arguments], cwd=python.parents[1], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\n{done.stderr}\nfailed: python {' '.join(arguments)}")
    return done.stdout


if __name__ == "__main__":
    main()
