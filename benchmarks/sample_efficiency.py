"""NISSampler against Optuna's samplers, a training or an evaluation per trial.

    python benchmarks/sample_efficiency.py --output benchmarks/results/sample_efficiency.json

Objectives:

- ``flights``: validation AUC of the reference model, trained for a moment on a part of the
  flights, within 25 % of the full tables. All samplers are told of the budget: NISSampler by
  its ``budget``, the others by Optuna's constraints.
- ``nk1``, ``nk2``: NK landscapes (Kauffman and Levin, 1987) of 16 operations with 5 choices each,
  as in a cell of an architecture search. The value of each depends on itself and on the next 1
  or 2.

Prints the median over seeds of the best feasible value after 50, 100 and 200 trials as one JSON
object in its last line. Trainings are kept in ``--cache``: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import json
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from quiet import quiet
import torch

from optuna_nis import Allocation, NISSampler, SearchSpace
from optuna_nis.data import load_dataset
from optuna_nis.lightning import reference_model
from optuna_nis.lightning.training import train

AFTER = (50, 100, 200)
BUDGET = 0.25
ROWS = 10_000
EPOCHS = 2
VARIABLES = 16
CHOICES = 5

MakeSampler = Callable[[int, Any, Any], BaseSampler]
SAMPLERS: dict[str, MakeSampler] = {
    "nis": lambda seed, budget, _: NISSampler(seed=seed, budget=budget),
    "tpe": lambda seed, _, excess: TPESampler(
        seed=seed, multivariate=False, constraints_func=excess
    ),
    "tpe_multivariate": lambda seed, _, excess: TPESampler(
        seed=seed, multivariate=True, constraints_func=excess
    ),
    "random": lambda seed, *_: RandomSampler(seed=seed),
    "nsgaii": lambda seed, _, excess: NSGAIISampler(seed=seed, constraints_func=excess),
}


class Flights:
    """Validation AUC of a short training."""

    def __init__(self, cache: Path) -> None:
        self._data = load_dataset("flights", max_rows=ROWS, batch_size=512)
        self._data.setup("fit")
        self._build = reference_model(self._data.features)
        self.budget = SearchSpace(self._data.embedding_specs(32), budget=BUDGET)
        self._cache = cache
        self._known: dict[Allocation, float] = {}
        if cache.exists():
            for line in cache.read_text().splitlines():
                allocation, value = json.loads(line)
                self._known[Allocation.from_json(allocation)] = value

    def __call__(self, trial: optuna.Trial) -> float:
        """The AUC; 0 if the tables are too large, without a training."""
        allocation = self.budget.suggest(trial)
        excess = allocation.num_parameters / self.budget.budget - 1
        trial.set_user_attr("excess", excess)
        if excess > 0:
            return 0.0
        if allocation not in self._known:
            self._known[allocation] = train(
                self._build, allocation, self._data, seed=0, max_epochs=EPOCHS
            ).val_metric
            with self._cache.open("a") as file:
                file.write(json.dumps([allocation.to_json(), self._known[allocation]]) + "\n")
        return self._known[allocation]

    @staticmethod
    def excess(trial: optuna.trial.FrozenTrial) -> list[float]:
        """By how much a trial breaks the budget."""
        return [trial.user_attrs["excess"]]


class Landscape:
    """An NK landscape."""

    budget = None
    excess = None

    def __init__(self, neighbours: int) -> None:
        shape = (VARIABLES, *[CHOICES] * (neighbours + 1))
        self._tables = np.random.default_rng(0).random(shape)

    def __call__(self, trial: optuna.Trial) -> float:
        """The mean of the values of all variables."""
        names = [f"edge{index:02}" for index in range(VARIABLES)]
        choices = [trial.suggest_categorical(name, list(range(CHOICES))) for name in names]
        values = []
        for index, table in enumerate(self._tables):
            near = [choices[(index + step) % VARIABLES] for step in range(table.ndim)]
            values.append(table[tuple(near)])
        return float(np.mean(values))


def best_after(study: optuna.Study) -> dict[str, float]:
    """The best feasible value after so many trials."""
    trials = study.get_trials(deepcopy=False)
    best = {}
    for count in AFTER:
        first = [t for t in trials[:count] if t.user_attrs.get("excess", 0.0) <= 0]
        best[str(count)] = max((float(t.value or 0.0) for t in first), default=0.0)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objectives", nargs="+", default=["flights", "nk1", "nk2"])
    parser.add_argument("--samplers", nargs="+", choices=list(SAMPLERS), default=list(SAMPLERS))
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds")
    parser.add_argument("--cache", type=Path, default=Path("runs/sample_efficiency.jsonl"))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    args.cache.parent.mkdir(parents=True, exist_ok=True)

    makers: dict[str, Callable[[], Any]] = {
        "flights": lambda: Flights(args.cache),
        "nk1": lambda: Landscape(1),
        "nk2": lambda: Landscape(2),
    }
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name in args.objectives:
        objective = makers[name]()
        runs: dict[str, list[dict[str, float]]] = {sampler: [] for sampler in args.samplers}
        for seed in range(args.seeds):
            for sampler in args.samplers:
                study = optuna.create_study(
                    direction="maximize",
                    sampler=SAMPLERS[sampler](seed, objective.budget, objective.excess),
                )
                study.optimize(objective, n_trials=max(AFTER))
                runs[sampler].append(best_after(study))
                print(f"{name} {sampler} seed {seed}: {runs[sampler][-1]}", flush=True)
        result[name] = {
            sampler: {str(n): median(run[str(n)] for run in of) for n in AFTER}
            for sampler, of in runs.items()
        }
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
