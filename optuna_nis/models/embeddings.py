"""The embeddings of all features of a reference model."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from optuna_nis.nn import MultiSizeEmbedding, MultiSizeEmbeddingBag, SupernetEmbedding
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace

Batch = dict[str, Tensor]


class FeatureEmbeddings(nn.Module):
    """The embeddings of all features of a batch, stacked.

    Args:
        tables: A space gives supernet embeddings, an allocation multi-size ones.
        bags: Names of the features whose ids come as bags, pooled by their mean.

    Raises:
        TypeError: If ``tables`` is neither.
        ValueError: If the widths seen downstream differ between features, or a bag is unknown; in
            the forward pass if ids have the wrong number of dimensions.

    Shapes:
        - batch: for every feature ``(batch,)``, or ``(batch, length)`` for bags
        - output: ``(batch, features, embedding_dim)``
    """

    def __init__(
        self, tables: SearchSpace | Allocation, *, bags: Collection[str] = (), init_std: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.names: list[str] = []
        widths: set[int] = set()
        if isinstance(tables, SearchSpace):
            for spec in tables.specs:
                mode: Any = "mean" if spec.name in bags else None
                self.layers.append(SupernetEmbedding(spec, mode=mode, init_std=init_std))
                self.names.append(spec.name)
                widths.add(spec.embedding_dim)
        elif isinstance(tables, Allocation):
            for table in tables.values():
                kind = MultiSizeEmbeddingBag if table.name in bags else MultiSizeEmbedding
                self.layers.append(kind(table, init_std=init_std))
                self.names.append(table.name)
                widths.add(table.embedding_dim)
        else:
            raise TypeError(
                f"`tables` must be a SearchSpace or an Allocation, got {type(tables).__name__}."
            )
        if unknown := set(bags) - set(self.names):
            raise ValueError(f"`bags` names unknown features {sorted(unknown)}.")
        if len(widths) > 1:
            raise ValueError(
                "All features must have the same `embedding_dim` in this model, got "
                f"{sorted(widths)}."
            )
        self.embedding_dim = widths.pop()
        self._bags = sorted(bags)
        self._shapes = {
            name: ("batch", "length") if name in bags else ("batch",) for name in self.names
        }

    def forward(self, batch: Batch) -> Tensor:
        """Look up every feature."""
        for name, shape in self._shapes.items():
            if batch[name].dim() != len(shape):
                raise ValueError(
                    f"The ids of {name!r} must have the shape ({', '.join(shape)}), `bags` being "
                    f"{self._bags}, got {tuple(batch[name].shape)}."
                )
        return torch.stack([layer(batch[n]) for n, layer in zip(self.names, self.layers)], dim=1)
