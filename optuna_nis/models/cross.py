"""The reference model of a yes-or-no label whose features are crossed explicitly."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor, nn

from optuna_nis._checks import check_integer
from optuna_nis.models.embeddings import Batch
from optuna_nis.models.products import Products
from optuna_nis.models.ranking import RankingModule
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace


class CrossRankingModule(RankingModule):
    """A model of a yes-or-no label with cross layers: DCN-V2 (Wang et al., 2021).

    A cross layer multiplies the embeddings of all features with a linear map of what the layer
    before gave, and adds the latter: ``x0 * (W x + b) + x``. In parallel, the logit is a linear
    function of the last cross layer and of an MLP over the embeddings; stacked, the MLP is over
    the last cross layer.

    Args:
        tables: As in :class:`RankingModule`.
        bags: As in :class:`RankingModule`.
        num_numeric: As in :class:`RankingModule`; the numbers are crossed too.
        share: As in :class:`RankingModule`.
        num_crosses: Number of cross layers.
        rank: Rank of the matrices of the cross layers, None for full ones.
        stacked: Whether the MLP comes after the cross layers rather than beside them.
        hidden: Widths of the layers of the MLP.
        learning_rate: Of Adam.
        l2: Weight of the mean squared norm of the embeddings looked up.
        dropout: Probability after each layer of the MLP.
        init_std: Standard deviation of the initial embeddings.

    Raises:
        ValueError: If an argument is out of range.

    Shapes:
        - batch: as in :class:`RankingModule`
        - output: logits ``(batch,)``

    Example:
        >>> import torch
        >>> from optuna_nis import EmbeddingSpec
        >>> space = SearchSpace([EmbeddingSpec("user", 100, 8), EmbeddingSpec("item", 50, 8)])
        >>> model = CrossRankingModule(space.full(), rank=4)
        >>> model({"user": torch.tensor([1, 2]), "item": torch.tensor([3, 4])}).shape
        torch.Size([2])
    """

    def __init__(
        self,
        tables: SearchSpace | Allocation,
        *,
        bags: Collection[str] = (),
        num_numeric: int = 0,
        share: Mapping[str, str] | None = None,
        num_crosses: int = 2,
        rank: int | None = None,
        stacked: bool = False,
        hidden: Sequence[int] = (128, 64),
        learning_rate: float = 2e-3,
        l2: float = 1e-3,
        dropout: float = 0.0,
        init_std: float = 0.03,
    ) -> None:
        super().__init__(
            tables,
            bags=bags,
            num_numeric=num_numeric,
            share=share,
            hidden=hidden,
            learning_rate=learning_rate,
            l2=l2,
            dropout=dropout,
            init_std=init_std,
        )
        check_integer("num_crosses", num_crosses, 1)
        inputs = self.wide.in_features
        if rank is not None:
            check_integer("rank", rank, 1)
        self.crosses = nn.ModuleList(_map(inputs, rank) for _ in range(num_crosses))
        self.stacked = stacked
        if stacked:
            del self.wide

    def _logits(self, rows: Tensor, found: Products, batch: Batch) -> Tensor:
        flat = crossed = self._flat(rows, batch)
        for layer in self.crosses:
            crossed = flat * layer(crossed) + crossed
        if self.stacked:
            logits: Tensor = self.head(self.mlp(crossed))
        else:
            logits = self.head(self.mlp(flat)) + self.wide(crossed)
        return logits.squeeze(1)


def _map(width: int, rank: int | None) -> nn.Module:
    """A linear map, perhaps of low rank."""
    if rank is None:
        return nn.Linear(width, width)
    return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))
