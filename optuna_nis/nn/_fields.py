"""What becomes of a table: its fields, and the layers that hold their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn

from optuna_nis.nn._directions import principal_directions
from optuna_nis.nn._graphs import refill
from optuna_nis.nn._shared import shared_means
from optuna_nis.nn._tables import Table
from optuna_nis.nn.multi_size import BagMode, MultiSize, MultiSizeEmbedding, MultiSizeEmbeddingBag
from optuna_nis.nn.supernet import SupernetEmbedding
from optuna_nis.space.allocation import TableAllocation
from optuna_nis.space.spec import EmbeddingSpec

# Of columns that are made equally long, those that are trained count as this long at least, beside
# all of them.
_SHORTEST = 0.01


@dataclass
class Plan:
    """What becomes of a table: fields from a first id on, of so many ids."""

    table: Table
    counts: NDArray[np.int64] | None
    specs: list[EmbeddingSpec] = field(default_factory=list)
    sizes: list[TableAllocation] = field(default_factory=list)
    parts: list[tuple[int, int]] = field(default_factory=list)
    padding_row: Tensor | None = None

    def __post_init__(self) -> None:
        padding = self.table.padding_idx
        if padding is not None:
            if self.counts is not None:
                self.counts[padding] = 0
            row = self.table.weight.detach()[padding].clone()
            # Of a table that is still to be filled it is taken for what torch makes it, zero.
            self.padding_row = row if not row.is_meta and bool(row.any()) else None

    @property
    def sparse(self) -> bool:
        return any(layer.sparse for layer in self.table.layers)

    @property
    def trained(self) -> bool:
        return self.table.weight.requires_grad

    def mode(self) -> BagMode | None:
        """How the layers of the fields pool; those of several fields are added, then divided."""
        layer = self.table.layers[0] if self.table.layers else None
        if not isinstance(layer, nn.EmbeddingBag):
            return None
        return "mean" if layer.mode == "mean" and len(self.parts) == 1 else "sum"

    def ranks(self, index: int) -> Tensor | None:
        """Rank of every id of a field; None if ids are ranks already."""
        start, size = self.parts[index]
        if self.counts is None:
            return None
        counts = self.counts[start : start + size].copy()
        padding = self.table.padding_idx
        if padding is not None and start <= padding < start + size:
            # Whatever its count, the row of padding is never looked up.
            counts[padding - start] = -1
        if (counts[:-1] >= counts[1:]).all():
            return None
        ranks = np.empty(size, dtype=np.int64)
        ranks[np.argsort(-counts, kind="stable")] = np.arange(size)
        return torch.from_numpy(ranks)

    def rows(self, index: int) -> Tensor:
        """The rows of a field as they are, by id."""
        start, size = self.parts[index]
        return self.table.weight.detach()[start : start + size]

    def directions(self, index: int) -> Tensor | None:
        """The principal directions of the rows of a field, if there is something in them."""
        rows, start = self.rows(index), self.parts[index][0]
        padding = self.table.padding_idx
        if self.padding_row is not None and padding is not None:
            others = torch.arange(len(rows), device=rows.device) != padding - start
            rows = rows[others]
        return principal_directions(rows, frozen=not self.trained)


def counts_of(table: Table, given: Mapping[str, Any] | None) -> NDArray[np.int64] | None:
    """How often each id of a table occurs, whichever of its layers it is looked up in.

    Args:
        table: The table.
        given: Occurrences by the names of layers.

    Returns:
        Shape ``(num_embeddings,)``, None if they are given for none of its layers.

    Raises:
        ValueError: If they do not fit the table.
    """
    known = given or {}
    found = [_checked_counts(table, known[name]) for name in table.names if name in known]
    return sum(found[1:], start=found[0]) if found else None


def _checked_counts(table: Table, given: Any) -> NDArray[np.int64]:
    counts = np.asarray(torch.as_tensor(given, device="cpu"))
    if counts.shape != (table.num_embeddings,) or counts.dtype.kind not in "iu":
        raise ValueError(
            f"`counts` of {table.name!r} must be {table.num_embeddings} integers, got shape "
            f"{counts.shape} of {counts.dtype}."
        )
    if counts.min() < 0:
        raise ValueError(f"`counts` of {table.name!r} must not be negative, got {counts.min()}.")
    return counts.astype(np.int64)


def field_sizes(
    table: Table, given: Sequence[int] | Mapping[str, int] | None
) -> Iterator[tuple[str, int, int]]:
    """Name, first id and number of ids of each field."""
    if given is None:
        yield table.name, 0, table.num_embeddings
        return
    named = given if isinstance(given, Mapping) else {str(i): n for i, n in enumerate(given)}
    if sum(named.values()) != table.num_embeddings:
        raise ValueError(
            f"`fields` of {table.name!r} must sum to {table.num_embeddings}, got "
            f"{list(named.values())}."
        )
    start = 0
    for name, size in named.items():
        yield f"{table.name}.{name}", start, int(size)
        start += int(size)


def spec_of(name: str, size: int, dim: int, counts: NDArray[np.int64] | None) -> EmbeddingSpec:
    if counts is None:
        return EmbeddingSpec(name, size, dim)
    return EmbeddingSpec.from_counts(name, counts.tolist(), dim)


@torch.no_grad()
def supernet_field(plan: Plan, index: int) -> SupernetEmbedding:
    spec, rows, ranks = plan.specs[index], plan.rows(index), plan.ranks(index)
    layer = SupernetEmbedding(spec, mode=plan.mode(), ranks=ranks, sparse=plan.sparse)
    layer.to(rows)
    directions = plan.directions(index)
    if directions is not None:
        few_bits = spec.precisions[-1] < 16
        rows, back = _turned(rows, directions, trained=plan.trained, few_bits=few_bits)
        layer.projection.copy_(back)
    layer.weight[-1].zero_()
    layer.weight[:-1].copy_(rows) if ranks is None else layer.weight.index_copy_(
        0, ranks.to(rows.device), rows
    )
    layer.fit_shared()
    if len(plan.parts) == 1:
        # The same object as before: optimisers and regularisers that hold it stay right.
        weight = plan.table.weight
        refill(weight, layer.weight)
        layer.weight = weight
    for parameter in layer.parameters():
        parameter.requires_grad_(plan.trained)
    return layer


@torch.no_grad()
def multi_size_field(plan: Plan, index: int) -> MultiSize:
    rows, ranks, table = plan.rows(index), plan.ranks(index), plan.sizes[index]
    std = _std(rows)
    layer: MultiSize
    mode = plan.mode()
    if mode is None:
        layer = MultiSizeEmbedding(table, ranks=ranks, init_std=std, sparse=plan.sparse)
    else:
        layer = MultiSizeEmbeddingBag(
            table, mode=mode, ranks=ranks, init_std=std, sparse=plan.sparse
        )
    layer.to(rows)
    ids = torch.arange(len(rows), device="cpu") if ranks is None else ranks.argsort()
    directions = plan.directions(index) if table.is_projected else None
    if directions is not None:
        few_bits = any(tier.bits < 16 for tier in table.tiers)
        rows, back = _turned(rows, directions, trained=plan.trained, few_bits=few_bits)
        assert layer.projection is not None
        layer.projection.copy_(back[: len(layer.projection)])
    start = 0
    for size, tier in zip(table.tiers, layer.tier_modules()):
        end = start + size.num_embeddings
        # A row of random numbers says nothing in fewer of them.
        if directions is not None or size.embedding_dim == table.embedding_dim or not plan.trained:
            kept = ids[start:end].to(rows.device)
            tier.weight[: len(kept)].copy_(rows[kept, : size.embedding_dim])
            if table.num_shared and end == table.kept:
                left = rows[ids[end:].to(rows.device), : size.embedding_dim]
                tier.weight[len(kept) :].copy_(shared_means(left, table))
        start = end
    layer.fit_steps()
    for parameter in layer.parameters():
        parameter.requires_grad_(plan.trained)
    return layer


def _std(rows: Tensor) -> float:
    if rows.is_meta:
        return 1.0  # As torch draws them.
    return float(rows.float().std()) if rows.numel() > 1 else 0.0


def _turned(
    rows: Tensor, directions: Tensor, *, trained: bool, few_bits: bool
) -> tuple[Tensor, Tensor]:
    """The coordinates of rows in some directions, and what projects them back.

    Args:
        rows: The rows.
        directions: As :func:`principal_directions` gives them.
        trained: Whether they will be trained.
        few_bits: Whether they are to be rounded, for which all columns have one step: they are
            made equally long then, and the projection has the difference.
    """
    # In half precision they would lose more than the rows have.
    kind = torch.promote_types(rows.dtype, torch.float32)
    directions = directions.to(rows.device, kind)
    turned, back = rows.to(kind) @ directions, directions.T
    if few_bits:
        lengths = torch.linalg.vector_norm(turned, dim=0)
        scale = lengths / lengths.square().mean().sqrt()
        # Next to nothing could not be trained behind a projection of as little.
        scale = scale.clamp(min=_SHORTEST) if trained else torch.where(scale > 0, scale, 1.0)
        turned, back = turned / scale, back * scale.unsqueeze(1)
    return turned.to(rows.dtype), back


def shrunk(supernet: SupernetEmbedding, table: TableAllocation) -> MultiSize:
    ranks = supernet.ranks
    layer: MultiSize
    if supernet.mode is None:
        layer = MultiSizeEmbedding(table, ranks=ranks, sparse=supernet.sparse)
    else:
        layer = MultiSizeEmbeddingBag(
            table, mode=supernet.mode, ranks=ranks, sparse=supernet.sparse
        )
    layer.to(supernet.weight)
    supernet.copy_to(layer)
    for tier in layer.tier_modules():
        for parameter in tier.parameters():
            parameter.requires_grad_(supernet.weight.requires_grad)
    if layer.projection is not None:
        layer.projection.requires_grad_(supernet.projection.requires_grad)
    return layer
