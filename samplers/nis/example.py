"""Sizes of three embedding tables under a budget of 20 % of the full tables.

The objective stands in for a training: what an id's row adds falls with its rank, twice the width
adds a little more each time, and one feature only makes the model worse.
"""

import math

import optuna
import optunahub

module = optunahub.load_module("samplers/nis")
WORTH = {"user": 1.0, "item": 0.6, "session": -0.2}
space = module.SearchSpace(
    [
        module.EmbeddingSpec("user", 6_000, 32),
        module.EmbeddingSpec("item", 4_000, 32),
        module.EmbeddingSpec("session", 20_000, 32),
    ],
    budget="20%",
)


def objective(trial: optuna.Trial) -> float:
    """What an allocation is worth; put your training here."""
    allocation = space.suggest(trial)  # never above the budget
    trial.set_user_attr("num_parameters", allocation.num_parameters)
    quality = 0.0
    for name, table in allocation.items():
        start = 0
        for rows, width in table.tiers:
            covered = math.log1p(start + rows) - math.log1p(start)
            quality += WORTH[name] * covered * math.log1p(width)
            start += rows
    return quality


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = module.NISSampler(budget=space, seed=0)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=200)
    print(space.allocation(study.best_params))
