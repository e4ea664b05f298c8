"""The embeddings of all features of a reference model."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from optuna_nis.nn import MultiSizeEmbedding, MultiSizeEmbeddingBag, SupernetEmbedding
from optuna_nis.space.allocation import Allocation, TableAllocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec

Batch = dict[str, Tensor]

#: Tables of features with more values have sparse gradients, see :class:`FeatureEmbeddings`.
SPARSE_ABOVE: Final = 100_000


def tables_of(
    tables: SearchSpace | Allocation,
) -> Mapping[str, EmbeddingSpec] | Mapping[str, TableAllocation]:
    """The tables of a space or an allocation by the names of their features.

    Raises:
        TypeError: If ``tables`` is neither.
    """
    if isinstance(tables, SearchSpace):
        return {spec.name: spec for spec in tables.specs}
    if isinstance(tables, Allocation):
        return tables
    raise TypeError(
        f"`tables` must be a SearchSpace or an Allocation, got {type(tables).__name__}."
    )


class FeatureEmbeddings(nn.Module):
    """The embeddings of all features of a batch, stacked.

    Tables of features with more than 100,000 values have sparse gradients, however few rows a
    choice keeps: sizes are compared, not ways to train them. Milliseconds of a training step that
    go to one table of width 32, with a batch of 4,096 Zipf ids on one core, dense with Adam and
    sparse with row-wise Adagrad:

    =========  ===============  ================  ===========  ============
    rows       supernet, dense  supernet, sparse  full, dense  full, sparse
    =========  ===============  ================  ===========  ============
    10,000     3                2                 2            1
    100,000    15               2                 22           1
    1,000,000  284              3                 289          1
    5,000,000  2,252            3                 1,595        2
    =========  ===============  ================  ===========  ============

    All else in a step of 26 features takes about 90. So up to 100,000 rows, 24 times as many as
    such a batch has ids, what a dense table costs is no reason to leave Adam; beyond, it soon
    takes most of the time.

    Args:
        tables: A space gives supernet embeddings, an allocation multi-size ones.
        bags: Names of the features whose ids come as bags, pooled by their mean.
        leave_out: Names of features that are looked up nowhere: those of output layers.
        init_std: Standard deviation of the initial rows.

    Raises:
        TypeError: If ``tables`` is neither.
        ValueError: If the widths seen downstream differ between features, or a bag is unknown; in
            the forward pass if ids have the wrong number of dimensions.

    Shapes:
        - batch: for every feature ``(batch,)``, or ``(batch, length)`` for bags
        - output: ``(batch, features, embedding_dim)``
    """

    def __init__(
        self,
        tables: SearchSpace | Allocation,
        *,
        bags: Collection[str] = (),
        leave_out: Collection[str] = (),
        init_std: float,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.names: list[str] = []
        widths: set[int] = set()
        for name, table in tables_of(tables).items():
            if name in leave_out:
                continue
            options: dict[str, Any] = {
                "init_std": init_std,
                "sparse": table.num_embeddings > SPARSE_ABOVE,
            }
            if isinstance(table, EmbeddingSpec):
                mode: Any = "mean" if name in bags else None
                self.layers.append(SupernetEmbedding(table, mode=mode, **options))
            else:
                kind = MultiSizeEmbeddingBag if name in bags else MultiSizeEmbedding
                self.layers.append(kind(table, **options))
            self.names.append(name)
            widths.add(table.embedding_dim)
        if unknown := set(bags) - set(self.names):
            raise ValueError(f"`bags` names unknown features {sorted(unknown)}.")
        if len(widths) > 1:
            raise ValueError(
                "All features must have the same `embedding_dim` in this model, got "
                f"{sorted(widths)}."
            )
        self.embedding_dim = widths.pop() if widths else 0
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
