"""Rivals that train or store their tables in ways of their own."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
import time

from host_model import (
    Job,
    Result,
    build_model,
    metrics_on_test,
    specs_of,
    tested,
    trained,
    validated,
)
from lightning.pytorch import LightningModule
from rival_layers import HashedEmbedding, halve_steps, learn_steps, remainders_of
from stored_tables import WAYS, halve_projections, store
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from optuna_nis import Allocation, SearchSpace
from optuna_nis.data import EmbeddingDataModule
from optuna_nis.lightning.training import Training
from optuna_nis.models import EmbeddingModule
from optuna_nis.nn import sized_layers

# A column index of a pruned table fits into one byte, a quarter of a parameter.
_INDEX_PARAMETERS = 0.25


def stored(data: str, datamodule: EmbeddingDataModule, job: Job) -> Result:
    """Train once and store the tables in every way; what each is worth is under ``"ways"``."""
    allocation = Allocation.from_json(job["allocation"])
    training = trained(data, datamodule, allocation, job["seed"])
    result = tested(training, datamodule)
    model = training.model
    weights = deepcopy(model.state_dict())
    ways = {}
    for way in WAYS:
        model.load_state_dict(weights)
        store(model, way, job["seed"])
        val = validated(data, model, datamodule)
        ways[way] = {"val": val, **metrics_on_test(model, datamodule)}
    return result | {"ways": ways}


def learned_step(data: str, datamodule: EmbeddingDataModule, job: Job) -> Result:
    """Train with rows rounded to a learned step, from scratch or on from a float32 training."""
    allocation, seed, bits = Allocation.from_json(job["allocation"]), job["seed"], job["bits"]
    before = trained(data, datamodule, allocation, seed) if job["start"] == "trained" else None

    def make(sizes: Allocation) -> LightningModule:
        model = build_model(data, datamodule)(sizes) if before is None else before.model
        return learn_steps(model, bits)

    training = trained(data, datamodule, allocation, seed, make=make)
    halve_steps(training.model)
    halve_projections(training.model)
    return again(data, training, datamodule, before)


def hashed(data: str, datamodule: EmbeddingDataModule, job: Job) -> Result:
    """Train tables that are hashed to so many rows at most."""

    def make(full: Allocation) -> EmbeddingModule:
        model = build_model(data, datamodule)(full)
        bags = datamodule.features.bags
        for index, name in enumerate(model.embeddings.names):
            layer, number = model.embeddings.layers[index], full[name].num_embeddings
            model.embeddings.layers[index] = HashedEmbedding(
                number,
                remainders_of(number, job["rows"], job["quotients"]),
                full[name].embedding_dim,
                quotients=job["quotients"],
                is_bag=name in bags,
                init_std=layer.init_std,
            )
        return model

    full = SearchSpace(specs_of(data, datamodule)).full()
    training = trained(data, datamodule, full, job["seed"], make=make)
    halve(training.model.embeddings.parameters())
    return again(data, training, datamodule)


@torch.no_grad()
def halve(parameters: Iterable[Tensor]) -> None:
    """Give parameters the numbers that they have as float16."""
    for parameter in parameters:
        parameter.copy_(parameter.half())


def again(
    data: str,
    training: Training,
    datamodule: EmbeddingDataModule,
    before: Training | None = None,
) -> Result:
    """What a training is worth with the tables as they are now, and what it took.

    Args:
        data: Name of the data.
        training: The training, whose model has been changed since.
        datamodule: The data.
        before: The training that it began with.
    """
    result = tested(training, datamodule)
    result["val"] = validated(data, training.model, datamodule)
    if before is not None:
        result["steps"] += before.steps
        result["best_steps"] += before.steps
        result["seconds"] += before.seconds
    return result


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
