"""Rivals that train in ways of their own."""

from __future__ import annotations

import time

from host_model import Result, specs_of, tested, trained
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from optuna_nis import SearchSpace
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.nn import sized_layers

# A column index of a pruned table fits into one byte, a quarter of a parameter.
_INDEX_PARAMETERS = 0.25


class _Masked(nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def prune(data: str, datamodule: EmbeddingDataModule, budget: float, seed: int) -> Result:
    """Train the full tables, drop the smallest numbers, train the others on.

    What is left is charged with its place: a byte for the column of each number and a parameter
    for each row (compressed sparse rows).
    """
    space = SearchSpace(specs_of(data, datamodule), budget=budget)
    start = time.process_time()
    first = trained(data, datamodule, space.full(), seed)
    model = first.model
    layers = [layer for layer in sized_layers(model) if layer.name not in model.output_features]
    tables = [tier for layer in layers for tier in layer.tier_modules()]
    rows = sum(tier.weight.shape[0] + 1 for tier in tables)
    kept = int((space.budget - rows) / (1 + _INDEX_PARAMETERS))
    if kept <= 0:
        raise ValueError(f"A budget of {space.budget} parameters does not even pay for the rows.")
    magnitudes = torch.cat([tier.weight.detach().abs().flatten() for tier in tables])
    threshold = magnitudes.topk(kept).values[-1]
    for tier in tables:
        mask = (tier.weight.detach().abs() >= threshold).float()
        parametrize.register_parametrization(tier, "weight", _Masked(mask))
    tuned = trained(data, datamodule, space.full(), seed, make=lambda _: model)
    result = tested(tuned, datamodule)
    return result | {
        "num_parameters": space.budget,
        "steps": first.steps + tuned.steps,
        "best_steps": first.steps + result["best_steps"],
        "seconds": time.process_time() - start,
    }
