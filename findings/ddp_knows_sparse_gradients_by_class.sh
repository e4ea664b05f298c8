#!/usr/bin/env bash
# DistributedDataParallel of torch 2.13.0 takes sparse gradients from nn.Embedding and
# nn.EmbeddingBag only: it looks for modules of these classes with `sparse=True`. The same look-up,
# torch.nn.functional.embedding(..., sparse=True), in a module of one's own trains without DDP and
# fails under it in `backward`. A class derived from nn.Embedding works. Seen with gloo:
#
#     a module of its own, without DDP: torch.sparse_coo
#     nn.Embedding: torch.sparse_coo
#     derived from nn.Embedding: torch.sparse_coo
#     a module of its own: Cannot access storage of SparseTensorImpl
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/pip install --quiet torch==2.13.0 numpy==2.2.6

venv/bin/python -W ignore - <<'EOF'
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import embedding
from torch.nn.parallel import DistributedDataParallel


class Derived(nn.Embedding):
    def forward(self, ids):
        return embedding(ids, self.weight, sparse=True)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(10, 4))

    def forward(self, ids):
        return embedding(ids, self.weight, sparse=True)


def layout(module, model):
    """The layout of the gradient, or the error."""
    try:
        model(torch.tensor([1, 2, 2])).sum().backward()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return str(module.weight.grad.layout)


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
alone = Own()
found = {"a module of its own, without DDP": layout(alone, alone)}
for name, module in {
    "nn.Embedding": nn.Embedding(10, 4, sparse=True),
    "derived from nn.Embedding": Derived(10, 4, sparse=True),
    "a module of its own": Own(),
}.items():
    found[name] = layout(module, DistributedDataParallel(module))
dist.destroy_process_group()
for name, text in found.items():
    print(f"{name}: {text}")
error = found.pop("a module of its own")
assert error == "Cannot access storage of SparseTensorImpl", error
assert set(found.values()) == {"torch.sparse_coo"}, found
EOF
