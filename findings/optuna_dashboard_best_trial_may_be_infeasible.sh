#!/usr/bin/env bash
# Optuna Dashboard 0.21.0 names another best trial than Optuna 5.0.0 where trials have constraints:
# `study.best_trial` is the best feasible one, the card "Best Trial" shows the one with the best
# value, feasible or not. And constraints set with `Trial.set_constraint`, or given to
# `create_trial(constraints=...)`, are not seen at all: its plots draw such trials as feasible.
# Those in the system attribute "constraints", where `constraints_func` puts them, are.
#
#     best by Optuna: 1, by the dashboard: 0
#     constraints seen, by name: [[], []]; as a list: [[1.0], [-1.0]]
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet optuna==5.0.0 optuna-dashboard==0.21.0

venv/bin/python -W ignore - <<'EOF'
import json
from wsgiref.util import setup_testing_defaults

import optuna
from optuna_dashboard import wsgi

optuna.logging.set_verbosity(optuna.logging.WARNING)


def shown(kind):
    """What Optuna and the dashboard make of an infeasible trial of 0.9 and a feasible of 0.5."""
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, direction="maximize")
    for value, broken in ((0.9, 1.0), (0.5, -1.0)):
        by_name = {"constraints": {"c": broken}}
        as_list = {"system_attrs": {"constraints": [broken]}}
        how = by_name if kind == "name" else as_list
        study.add_trial(optuna.create_trial(value=value, **how))
    request = {}
    setup_testing_defaults(request)
    request["PATH_INFO"] = f"/api/studies/{study._study_id}"
    page = json.loads(b"".join(wsgi(storage)(request, lambda *args: None)))
    best = [trial["number"] for trial in page["best_trials"]]
    return study.best_trial.number, best, [trial["constraints"] for trial in page["trials"]]


named, listed = shown("name"), shown("list")
print(f"best by Optuna: {named[0]}, by the dashboard: {named[1][0]}")
print(f"constraints seen, by name: {named[2]}; as a list: {listed[2]}")
assert named == (1, [0], [[], []]), named
assert listed == (1, [0], [[1.0], [-1.0]]), listed
EOF
