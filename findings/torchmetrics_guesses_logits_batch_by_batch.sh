#!/usr/bin/env bash
# torchmetrics 1.9.0: a binary metric such as BinaryAUROC takes scores to be logits, and their
# sigmoid, if one of those of an update is outside [0, 1]. That is judged anew in each update:
# where the logits of some batches happen to be between 0 and 1, they stay as they are and are
# compared with the probabilities of the others. A ranking that is right for all rows is then not
# perfect any more. Probabilities have no such choice.
#
#     logits, all at once: 1.00
#     logits, in two updates: 0.75
#     probabilities, in two updates: 1.00
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 torchmetrics==1.9.0 numpy==2.2.6

venv/bin/python -W ignore - <<'EOF'
import torch
from torchmetrics.classification import BinaryAUROC

logits, label = torch.tensor([0.85, 0.9, -3.0, 1.2]), torch.tensor([0, 1, 0, 1])


def auroc(scores, *updates):
    metric = BinaryAUROC()
    for rows in updates:
        metric.update(scores[rows], label[rows])
    return float(metric.compute())


halves = slice(0, 2), slice(2, 4)
found = {
    "logits, all at once": auroc(logits, slice(None)),
    "logits, in two updates": auroc(logits, *halves),
    "probabilities, in two updates": auroc(logits.sigmoid(), *halves),
}
for name, value in found.items():
    print(f"{name}: {value:.2f}")
assert list(found.values()) == [1.0, 0.75, 1.0], found
EOF
