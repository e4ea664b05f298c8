#!/usr/bin/env bash
# torch 2.13.0: DistributedDataParallel compares the annotations of a communication hook with types. In a module
# that begins with `from __future__ import annotations` they are text, and the hook is refused, although it is
# annotated as the error asks for; without annotations the same hook is taken.
#
#     annotated: taken
#     annotated, postponed: ValueError: Communication hook: bucket annotation should be dist.GradBucket.
#     without annotations: taken
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.2.6

cat > annotated.py <<'EOF'
import torch
from torch import distributed
from torch.futures import Future


def hook(state: object, bucket: distributed.GradBucket) -> Future[torch.Tensor]:
    found = Future()
    found.set_result(bucket.buffer())
    return found
EOF
(echo "from __future__ import annotations"; cat annotated.py) > postponed.py
sed 's/(state: .*:$/(state, bucket):/' annotated.py > plain.py

cat > hooks.py <<'EOF'
import annotated
import plain
import postponed
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)


def tried(hook):
    model = DistributedDataParallel(torch.nn.Linear(2, 1))
    try:
        model.register_comm_hook(None, hook)
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    model(torch.ones(1, 2)).sum().backward()
    return "taken"


lines = [
    f"annotated: {tried(annotated.hook)}",
    f"annotated, postponed: {tried(postponed.hook)}",
    f"without annotations: {tried(plain.hook)}",
]
print("\n".join(lines))
assert lines == [
    "annotated: taken",
    "annotated, postponed: ValueError: Communication hook: bucket annotation should be dist.GradBucket.",
    "without annotations: taken",
], lines
distributed.destroy_process_group()
EOF

venv/bin/python -W ignore hooks.py 2>/dev/null
