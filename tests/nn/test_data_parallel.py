"""Sparse gradients with torch's data parallelism, which takes them from embeddings only."""

from __future__ import annotations

import copy
from pathlib import Path
import pickle

from programs import run_program
import pytest
import torch
from torch import nn

from optuna_nis import Allocation, EmbeddingSpec, TableAllocation, Tier
from optuna_nis.nn import (
    MultiSizeEmbedding,
    SupernetEmbedding,
    apply_allocation,
    count_ids,
    make_searchable,
    swapped_layers,
)
from optuna_nis.nn.swap import plain_layers


def test_gradients_are_the_mean_of_two_processes(tmp_path: Path) -> None:
    script = Path(__file__).parent / "data_parallel.py"
    run_program(script, tmp_path, timeout=120)


def test_embeddings_within_ours_are_none_of_the_model() -> None:
    table = TableAllocation("x", 60, 8, (Tier(4, 8), Tier(9, 2)))
    model = nn.ModuleDict(
        {
            "a": nn.Embedding(60, 8),
            "b": nn.Embedding(60, 8),
            "mine": MultiSizeEmbedding(table),
            "searched": SupernetEmbedding(EmbeddingSpec("y", 60, 8)),
        }
    )
    # The embeddings that torch is to find.
    assert sum(isinstance(module, nn.Embedding) for module in model.modules()) == 5
    assert list(plain_layers(model)) == ["a", "b"]
    make_searchable(model, include=["a"], budget="50%")
    assert list(plain_layers(model)) == ["b"]
    counts = count_ids([torch.tensor([3])], model, step=lambda x: model["b"](x), progress=False)
    assert list(counts) == ["b"]
    del model["a"], model["searched"]
    sizes = Allocation([TableAllocation("b", 60, 8, (Tier(4, 2),))])
    assert len(swapped_layers(apply_allocation(model, sizes))) == 1
    assert not plain_layers(model)


@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_of_copies_are_sparse(frozen: bool) -> None:
    model = nn.ModuleDict({"a": nn.Embedding(60, 8, sparse=True)})
    make_searchable(model, budget="50%")
    model["a"].fields[0].weight.requires_grad_(not frozen)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    for layer in (model["a"], copied["a"]):
        for _ in range(2):
            layer.zero_grad()
            layer(torch.tensor([3, 4])).sum().backward()
            gradients = [p.grad for p in layer.parameters() if p.requires_grad]
            assert len(gradients) == 2 - frozen
            assert all(grad is not None and grad.is_sparse for grad in gradients)


def test_they_can_be_drawn_anew() -> None:
    """As models do that call ``reset_parameters`` of all their modules, from the outside in."""
    table = TableAllocation("x", 4000, 8, (Tier(2000, 8), Tier(2000, 4)))
    layer = MultiSizeEmbedding(table, init_std=0.1)
    supernet = SupernetEmbedding(EmbeddingSpec("x", 4000, 8), init_std=0.1)
    for each in (layer, supernet):
        for module in each.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    for weight in (supernet.weight, *(tier.weight for tier in layer.tier_modules())):
        assert 0.09 < weight.std().item() < 0.11
