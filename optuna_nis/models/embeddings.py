"""The embeddings of all features of a reference model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

from torch import Tensor, nn

from optuna_nis.nn import MultiSizeEmbedding, MultiSizeEmbeddingBag, SupernetEmbedding
from optuna_nis.nn._ids import mean_of
from optuna_nis.nn._side_by_side import rows_side_by_side
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
        share: For features without a table of their own, the feature in whose table their ids are
            looked up too. A bag may share the table of a single id.
        init_std: Standard deviation of the initial rows.

    Raises:
        TypeError: If ``tables`` is neither.
        ValueError: If the widths seen downstream differ between features, a bag is unknown, or a
            table cannot be shared; in the forward pass if ids have the wrong number of dimensions.

    Shapes:
        - batch: for every feature ``(batch,)``, or ``(batch, length)`` for bags
        - output: ``(batch, features, embedding_dim)``, those that share a table last

    Example:
        >>> import torch
        >>> space = SearchSpace([EmbeddingSpec("item", 100, 8)])
        >>> layer = FeatureEmbeddings(
        ...     space, bags={"history"}, share={"history": "item"}, init_std=0.1
        ... )
        >>> ids = {"item": torch.tensor([3]), "history": torch.tensor([[7, 9, 100]])}
        >>> layer(ids).shape, len(layer.layers)
        (torch.Size([1, 2, 8]), 1)
    """

    #: As the argument, in order.
    bags: Sequence[str]
    #: As the argument.
    share: Mapping[str, str] = MappingProxyType({})
    # Bags that are pooled here, since their layers look up single ids too, and their unknown ids.
    _pooled: Mapping[str, int] = MappingProxyType({})

    def __init__(
        self,
        tables: SearchSpace | Allocation,
        *,
        bags: Collection[str] = (),
        leave_out: Collection[str] = (),
        share: Mapping[str, str] | None = None,
        init_std: float,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.names: list[str] = []
        widths: set[int] = set()
        looked_up = {n: table for n, table in tables_of(tables).items() if n not in leave_out}
        self.share = dict(share or {})
        for name, owner in self.share.items():
            if name in tables_of(tables) or owner not in looked_up:
                raise ValueError(
                    "`share` must be from features without a table to those of tables that are "
                    f"looked up, {list(looked_up)}, got {name!r}: {owner!r}."
                )
        alone = looked_up.keys() - self.share.values()
        for name, table in looked_up.items():
            is_bag = name in bags and name in alone
            options: dict[str, Any] = {
                "init_std": init_std,
                "sparse": table.num_embeddings > SPARSE_ABOVE,
            }
            if isinstance(table, EmbeddingSpec):
                mode: Any = "mean" if is_bag else None
                self.layers.append(SupernetEmbedding(table, mode=mode, **options))
            else:
                kind = MultiSizeEmbeddingBag if is_bag else MultiSizeEmbedding
                self.layers.append(kind(table, **options))
            self.names.append(name)
            widths.add(table.embedding_dim)
        self.names += self.share
        if unknown := set(bags) - set(self.names):
            raise ValueError(f"`bags` names unknown features {sorted(unknown)}.")
        if len(widths) > 1:
            raise ValueError(
                "All features must have the same `embedding_dim` in this model, got "
                f"{sorted(widths)}."
            )
        self.embedding_dim = widths.pop() if widths else 0
        self.bags = sorted(bags)
        self._pooled = {
            name: looked_up[self.share.get(name, name)].num_embeddings
            for name in self.bags
            if name not in alone
        }
        self._shapes = {
            name: ("batch", "length") if name in bags else ("batch",) for name in self.names
        }

    def forward(self, batch: Batch) -> Tensor:
        """Look up every feature."""
        for name, shape in self._shapes.items():
            if batch[name].dim() != len(shape):
                raise ValueError(
                    f"The ids of {name!r} must have the shape ({', '.join(shape)}), `bags` being "
                    f"{self.bags}, got {tuple(batch[name].shape)}."
                )
        layers = dict(zip(self.names, self.layers))
        pairs = [(layers[self.share.get(name, name)], batch[name]) for name in self.names]
        return rows_side_by_side(pairs, lambda index: self._alone(index, *pairs[index]))

    def _alone(self, index: int, layer: nn.Module, ids: Tensor) -> Tensor:
        rows: Tensor = layer(ids)
        unknown = self._pooled.get(self.names[index])
        return rows if unknown is None else mean_of(rows.sum(1), ids, None, unknown)
