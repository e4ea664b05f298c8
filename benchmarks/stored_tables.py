"""Trained tables in fewer bytes, rounded or product-quantised, without training again.

A way of storing is named after what it does: ``"4bit"`` rounds each row to 16 levels with a scale
and an offset of its own, both in float16; ``"pq4x8"`` cuts rows into runs of 4 columns, each of
which becomes the index, in 8 bits, of one of 256 centroids that the k-means of all rows has found.
``"16bit"`` is float16, in which also all projections are, and tiers that take no fewer bytes by
codes: narrow rows, or few of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
import torch
from torch import Tensor, nn

from optuna_nis import Allocation, TableAllocation
from optuna_nis.nn import sized_layers

_HALF = 2
_KMEANS_ITERATIONS = 25


@dataclass(frozen=True)
class Way:
    """How the rows of a tier are stored.

    Attributes:
        bits: Bits of a number, or of the index of a centroid.
        columns: Columns that a centroid stands for; None where numbers are rounded.
    """

    bits: int
    columns: int | None = None

    def nbytes(self, rows: int, width: int) -> int:
        """Bytes of a tier, scales, offsets and code books included."""
        return min(self._code_nbytes(rows, width), _HALF * rows * width)

    def round(self, rows: Tensor, seed: int = 0) -> Tensor:
        """Rows as they are stored, in the type that they have."""
        if self._code_nbytes(*rows.shape) >= _HALF * rows.numel():
            return rows.half().to(rows.dtype)
        if self.columns is None:
            return _rounded(rows, self.bits)
        parts = [_centroids(part, 2**self.bits, seed) for part in rows.split(self.columns, 1)]
        return torch.cat(parts, 1)

    def _code_nbytes(self, rows: int, width: int) -> int:
        if self.columns is None:
            scale_and_offset = 0 if self.bits == 16 else 2 * _HALF
            return rows * (-(-width * self.bits // 8) + scale_and_offset)
        # The indices of a run lie side by side; the centroids of all are as wide as a row.
        indices = -(-width // self.columns) * -(-rows * self.bits // 8)
        return indices + _HALF * 2**self.bits * width


def _rounded(rows: Tensor, bits: int) -> Tensor:
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    levels = 2**bits - 1
    offset = low.half().to(rows.dtype)
    scale = ((high - offset) / levels).half().to(rows.dtype)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return offset + scale * ((rows - offset) / scale).round().clamp(0, levels)


def _centroids(rows: Tensor, number: int, seed: int) -> Tensor:
    """The nearest of so many centroids in place of each row."""
    kmeans = KMeans(number, n_init=1, max_iter=_KMEANS_ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        # Rows that are the same need fewer centroids.
        warnings.simplefilter("ignore", ConvergenceWarning)
        nearest = kmeans.fit_predict(rows.numpy().astype(np.float64))
    found = torch.from_numpy(kmeans.cluster_centers_[nearest])
    return found.half().to(rows.dtype)


ROUNDED = {f"{bits}bit": Way(bits) for bits in (16, 8, 4, 3, 2)}
PRODUCT = {
    f"pq{columns}x{bits}": Way(bits, columns)
    for columns in (2, 4, 8, 16, 32)
    for bits in (8, 6, 4)
}
WAYS = ROUNDED | PRODUCT


def stored_nbytes(allocation: Allocation, way: str) -> int:
    """Bytes of tables that are stored in a way: what :func:`store` leaves of them."""
    return sum(_table_nbytes(table, WAYS[way]) for table in allocation.values())


def _table_nbytes(table: TableAllocation, way: Way) -> int:
    rows = sum(way.nbytes(tier.num_embeddings, tier.embedding_dim) for tier in table.tiers)
    return rows + _HALF * table.num_projection_parameters


@torch.no_grad()
def store(model: nn.Module, way: str, seed: int = 0) -> None:
    """Give the tables of a model the numbers that they have when they are stored in a way.

    Args:
        model: A model of chosen sizes in float32.
        way: A key of :data:`WAYS`.
        seed: Of the k-means.
    """
    for rows in tables_of(model):
        rows.copy_(WAYS[way].round(rows, seed))
    halve_projections(model)


@torch.no_grad()
def halve_projections(model: nn.Module) -> None:
    """Give the projections of a model the numbers that they have as float16."""
    for layer in sized_layers(model):
        if layer.projection is not None:
            layer.projection.copy_(layer.projection.half())


def tables_of(model: nn.Module) -> Iterator[Tensor]:
    """The rows of every tier."""
    for layer in sized_layers(model):
        for tier in layer.tier_modules():
            yield tier.weight
