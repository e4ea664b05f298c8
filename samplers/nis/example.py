"""Sizes of three embedding tables under a budget of 20 % of the full tables.

The objective stands in for a training: what an id's row adds falls with its rank, twice the width
adds a little more each time, and one feature only makes the model worse. Two choices by closed
formulas are tried first, as in the searches of optuna-nis that need no training for each trial.
"""

import math

import optuna
import optunahub

from optuna_nis.strategy import baselines

module = optunahub.load_module("samplers/nis")
WORTH = {"user": 1.0, "item": 0.6, "session": -0.2}
SIZES = {"user": 6_000, "item": 4_000, "session": 20_000}
# How often each id occurs, the most frequent first.
counts = {name: [size // rank for rank in range(1, size + 1)] for name, size in SIZES.items()}
space = module.SearchSpace(
    [module.EmbeddingSpec.from_counts(name, each, 32) for name, each in counts.items()],
    budget="20%",
)


def objective(trial: optuna.Trial) -> float:
    """What an allocation is worth; put your training here."""
    allocation = space.suggest(trial)  # never above the budget
    trial.set_user_attr("nbytes", allocation.nbytes())
    quality = 0.0
    for name, table in allocation.items():
        start = 0
        for rows, width, _ in table.tiers:
            covered = math.log1p(start + rows) - math.log1p(start)
            quality += WORTH[name] * covered * math.log1p(width)
            start += rows
    return quality


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = module.NISSampler(budget=space, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for sizes in (baselines.mixed_dimensions(space, on_grid=True), baselines.frequent_ids(space)):
        study.enqueue_trial(space.params(sizes))
    study.optimize(objective, n_trials=200)
    print(space.allocation(study.best_params))
