#!/usr/bin/env bash
# Optuna 5.0.0 accepts tuples as the choices of a categorical parameter, with a warning that
# only None, bool, int, float and str are meant for persistent storage. In memory they work. SQLite
# and a journal keep choices as JSON, so (64, 32) comes back as [64, 32], which is not the same: a
# sampler that looks at earlier trials, such as TPE, stops after its ten start-up trials, RandomSampler
# goes on. Lists as choices work everywhere.
#
#     in memory, TPE, tuples: 14 trials
#     SQLite, RandomSampler, tuples: 14 trials
#     SQLite, TPE, lists: 14 trials
#     SQLite, TPE, tuples: 11 trials, CategoricalDistribution does not support dynamic value space.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet optuna==5.0.0

venv/bin/python -W ignore - <<'EOF'
import optuna

optuna.logging.set_verbosity(optuna.logging.CRITICAL)
TUPLES, LISTS = [(64, 32), (128,)], [[64, 32], [128]]


def run(storage, sampler, choices):
    """How many trials there are after fourteen were asked for, and the error."""
    study = optuna.create_study(storage=storage, sampler=sampler)
    try:
        study.optimize(lambda trial: len(trial.suggest_categorical("x", choices)), n_trials=14)
    except ValueError as error:
        return f"{len(study.trials)} trials, {error}"
    return f"{len(study.trials)} trials"


samplers = optuna.samplers
found = {
    "in memory, TPE, tuples": run(None, samplers.TPESampler(seed=0), TUPLES),
    "SQLite, RandomSampler, tuples": run(
        "sqlite:///random.db", samplers.RandomSampler(seed=0), TUPLES
    ),
    "SQLite, TPE, lists": run("sqlite:///lists.db", samplers.TPESampler(seed=0), LISTS),
    "SQLite, TPE, tuples": run("sqlite:///tuples.db", samplers.TPESampler(seed=0), TUPLES),
}
for name, text in found.items():
    print(f"{name}: {text}")
stopped = found.pop("SQLite, TPE, tuples")
assert set(found.values()) == {"14 trials"}, found
assert stopped.startswith("11 trials, CategoricalDistribution does not support"), stopped
EOF
