#!/usr/bin/env bash
# Optuna 5.0.0 rates the importance of parameters with PED-ANOVA unless told otherwise. It asks what
# sets the good trials apart from all others, not how much of the variance a parameter explains. A
# categorical parameter that explains nearly all of it, and whose best choice a quarter of all trials
# have, gets a lower rating than one whose effect is a hundredth of it in variance. fANOVA, the
# default before, gives it nearly everything.
#
#     PED-ANOVA: {'minor': 0.84, 'major': 0.15, 'tiny': 0.01}
#     fANOVA: {'major': 1.0, 'minor': 0.0, 'tiny': 0.0}
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet optuna==5.0.0 scikit-learn==1.7.2

venv/bin/python -W ignore - <<'EOF'
import optuna
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

optuna.logging.set_verbosity(optuna.logging.ERROR)


def objective(trial):
    major = trial.suggest_categorical("major", [0, 1, 2, 3])
    return 10 * major + trial.suggest_float("minor", 0, 1) + 0.1 * trial.suggest_float("tiny", 0, 1)


study = optuna.create_study(
    direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0)
)
study.optimize(objective, n_trials=1000)
default = get_param_importances(study)
fanova = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
for name, found in {"PED-ANOVA": default, "fANOVA": fanova}.items():
    print(f"{name}: { {key: round(float(value), 2) for key, value in found.items()} }")
assert default["minor"] > 2 * default["major"], default
assert fanova["major"] > 0.95, fanova
EOF
