"""Rows of one width: what a layer of chosen sizes is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Tier(nn.Embedding):
    """Rows of one width.

    It is what torch looks for where gradients may be sparse, as its data parallelism does.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        init_std: float = 0.01,
        sparse: bool = False,
    ) -> None:
        rows = torch.empty(num_embeddings, embedding_dim)
        super().__init__(num_embeddings, embedding_dim, sparse=sparse, _weight=rows)
        self.init_std = init_std
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw rows of standard deviation ``init_std``."""
        nn.init.normal_(self.weight, std=self.init_std)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of ids, not projected."""
        return functional.embedding(ids, self.weight)


def rows_of_all(ranks: Tensor, tiers: Sequence[Tier]) -> Iterator[Tensor]:
    """For every tier its rows for all ids, zeros for those of other tiers.

    Costs a row per tier and id, but no shape depends on the data: what tracing needs, and devices
    that would have to be waited for.
    """
    for tier, inside, ids in places(ranks, tiers):
        rows = tier.rows(ids)
        yield torch.where(inside.unsqueeze(-1), rows, torch.zeros_like(rows))


def places(ranks: Tensor, tiers: Sequence[Tier]) -> Iterator[tuple[Tier, Tensor, Tensor]]:
    """For every tier whether it has each of the ids, and which of its rows, any for others."""
    start = 0
    for tier in tiers:
        end = start + tier.num_embeddings
        inside = (ranks >= start) & (ranks < end)
        yield tier, inside, (ranks - start).clamp(0, tier.num_embeddings - 1)
        start = end
