#!/usr/bin/env bash
# torch 2.13.0: torch.export takes a model whose forward is `forward(self, **features)`, as many
# models of click logs are, but no dynamic shape can be given for its inputs. A dictionary by the
# names of the features is refused, and so is one nested under the name of the keyword argument; what
# ShapesCollection makes is the latter. Without dynamic shapes the same call works, and with the
# arguments written out dynamic shapes do.
#
#     forward(**features), fixed shapes: exported
#     forward(a, b), free batch: exported
#     forward(**features), free batch by feature: UserError
#     forward(**features), free batch nested: AssertionError
#     forward(**features), ShapesCollection: AssertionError
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.4.6

venv/bin/python -W ignore - <<'EOF'
import torch
from torch.export import Dim, ShapesCollection


class Keywords(torch.nn.Module):
    def forward(self, **features):
        return features["a"] + features["b"]


class Named(torch.nn.Module):
    def forward(self, a, b):
        return a + b


ids, batch = {"a": torch.arange(3), "b": torch.arange(3, 6)}, Dim("batch")
by_feature = {name: {0: batch} for name in ids}
collected = ShapesCollection()
for each in ids.values():
    collected[each] = {0: batch}


def export(model, shapes):
    try:
        torch.export.export(model, (), ids, dynamic_shapes=shapes)
    except Exception as error:
        return type(error).__name__
    return "exported"


found = {
    "forward(**features), fixed shapes": export(Keywords(), None),
    "forward(a, b), free batch": export(Named(), by_feature),
    "forward(**features), free batch by feature": export(Keywords(), by_feature),
    "forward(**features), free batch nested": export(Keywords(), {"features": by_feature}),
    "forward(**features), ShapesCollection": export(Keywords(), collected),
}
for name, text in found.items():
    print(f"{name}: {text}")
outcomes = list(found.values())
assert outcomes[:2] == ["exported"] * 2, found
assert "exported" not in outcomes[2:], found
EOF
