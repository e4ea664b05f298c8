#!/usr/bin/env bash
# Lightning 2.6.6: isolate_rng() "resets the global random state on exit to what it was before
# entering", but not where its body is left by an exception, as a trial that Optuna prunes leaves
# it: then the generators of torch, NumPy and Python stay where the body moved them, and the next
# trial depends on it. torch.random.fork_rng() puts torch's back either way.
#
#     isolate_rng, left at its end: restored
#     isolate_rng, left by TrialPruned: changed
#     fork_rng, left by TrialPruned: restored
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 lightning==2.6.6 optuna==5.0.0 numpy==2.2.6

venv/bin/python -W ignore - <<'EOF'
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from optuna import TrialPruned


def after(context, pruned):
    """What became of torch's random state."""
    before = torch.get_rng_state()
    try:
        with context():
            torch.rand(1)
            if pruned:
                raise TrialPruned
    except TrialPruned:
        pass
    return "restored" if torch.equal(before, torch.get_rng_state()) else "changed"


found = {
    "isolate_rng, left at its end": after(isolate_rng, False),
    "isolate_rng, left by TrialPruned": after(isolate_rng, True),
    "fork_rng, left by TrialPruned": after(torch.random.fork_rng, True),
}
for name, text in found.items():
    print(f"{name}: {text}")
assert list(found.values()) == ["restored", "changed", "restored"], found
EOF
