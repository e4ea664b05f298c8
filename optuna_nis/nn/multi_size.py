"""Embedding layers with tiers of different widths: what is trained once sizes are chosen."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis.allocation import TableAllocation
from optuna_nis.nn._ids import bag_sizes, bags_of, check_ranks, to_ranks

BagMode = Literal["sum", "mean"]


class _Tier(nn.Module):
    """Rows of one width and, where it is not the width of the output, their projection."""

    def __init__(self, num_embeddings: int, embedding_dim: int, output_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim))
        self.projection: nn.Parameter | None = None
        if embedding_dim != output_dim:
            self.projection = nn.Parameter(torch.empty(embedding_dim, output_dim))

    def project(self, rows: Tensor) -> Tensor:
        return rows if self.projection is None else rows @ self.projection


class _MultiSize(nn.Module):
    """Tiers, and the two ways to look ids up in them."""

    _ranks: Tensor | None

    def __init__(
        self, table: TableAllocation, *, ranks: Tensor | None = None, init_std: float = 0.01
    ) -> None:
        super().__init__()
        self.table = table
        self.num_embeddings = table.num_embeddings
        self.embedding_dim = table.embedding_dim
        self.init_std = init_std
        self.tiers = nn.ModuleList(
            _Tier(tier.num_embeddings, tier.embedding_dim, table.embedding_dim)
            for tier in table.tiers
        )
        self.register_buffer(
            "_ranks", check_ranks(ranks, table.num_embeddings, table.name), persistent=True
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw rows such that every tier's output has the standard deviation ``init_std``."""
        for tier in self.tier_modules():
            nn.init.normal_(tier.weight, std=self.init_std)
            if tier.projection is not None:
                nn.init.normal_(tier.projection, std=1 / math.sqrt(tier.weight.shape[1]))

    def tier_modules(self) -> list[_Tier]:
        """The tiers, widest first."""
        return [tier for tier in self.tiers if isinstance(tier, _Tier)]

    def dense_weight(self) -> Tensor:
        """The table as the model sees it: every kept id's projected row.

        Returns:
            Shape ``(num_embeddings, embedding_dim)``; ids out of vocabulary have zeros.
        """
        missing = torch.zeros(
            self.num_embeddings - self.table.kept, self.embedding_dim, device=self._device()
        )
        return torch.cat([*self._projected(), missing])

    def _projected(self) -> list[Tensor]:
        return [tier.project(tier.weight) for tier in self.tier_modules()]

    def _device(self) -> torch.device | None:
        return next((parameter.device for parameter in self.parameters()), None)

    def _small(self, num_ids: int) -> bool:
        """Whether projecting the whole table costs less than projecting every looked-up row."""
        return self.table.kept <= 2 * num_ids

    def _with_zero_row(self) -> Tensor:
        """The projected kept rows, then one of zeros for all ids out of vocabulary."""
        zero = torch.zeros(1, self.embedding_dim, device=self._device())
        return torch.cat([*self._projected(), zero])

    def extra_repr(self) -> str:
        return str(self.table)


class MultiSizeEmbedding(_MultiSize):
    """An embedding whose rows have the widths of an allocation, projected to one width.

    In place of :class:`torch.nn.Embedding`. It holds exactly
    :attr:`TableAllocation.num_parameters <optuna_nis.TableAllocation.num_parameters>` numbers.
    Ids out of vocabulary, among them the id ``num_embeddings`` which stands for unknown and
    padding, give zeros (Joglekar et al., 2020, section 3.2).

    Args:
        table: The tiers.
        ranks: Rank by frequency of every id, of shape ``(num_embeddings,)``. By default ids are
            ranks already.
        init_std: Standard deviation of the initial output.

    Raises:
        ValueError: If ``ranks`` is not a permutation.

    Shapes:
        - ids: ``(*)``, integers in ``[0, num_embeddings]``
        - output: ``(*, embedding_dim)``

    Example:
        >>> from optuna_nis import TableAllocation, Tier
        >>> table = TableAllocation("user", 100, 16, (Tier(10, 16), Tier(30, 4)))
        >>> layer = MultiSizeEmbedding(table)
        >>> layer(torch.tensor([[0, 20, 99]])).shape
        torch.Size([1, 3, 16])
        >>> sum(p.numel() for p in layer.parameters()) == layer.table.num_parameters
        True
    """

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids."""
        ranks = to_ranks(ids, self._ranks, self.num_embeddings, self.table.name)
        if self._small(ranks.numel()):
            return functional.embedding(ranks.clamp(max=self.table.kept), self._with_zero_row())
        flat = ranks.reshape(-1)
        output = torch.zeros(flat.numel(), self.embedding_dim, device=self._device())
        start = 0
        for tier in self.tier_modules():
            end = start + tier.weight.shape[0]
            where = ((flat >= start) & (flat < end)).nonzero().squeeze(1)
            rows = functional.embedding(flat[where] - start, tier.weight)
            output = output.index_copy(0, where, tier.project(rows).to(output.dtype))
            start = end
        return output.reshape(*ids.shape, self.embedding_dim)


class MultiSizeEmbeddingBag(_MultiSize):
    """A bag of ids pooled inside each tier, projected once per tier and added.

    In place of :class:`torch.nn.EmbeddingBag`; the result is that of looking up every id and
    pooling, since all of it is linear (Joglekar et al., 2020, section 3.2).

    Args:
        table: The tiers.
        mode: ``"sum"``, or ``"mean"`` over the known ids of a bag: those that the allocation cut
            count, the id ``num_embeddings`` (unknown and padding) does not.
        ranks: As in :class:`MultiSizeEmbedding`.
        init_std: As in :class:`MultiSizeEmbedding`.

    Raises:
        ValueError: If the mode is unknown (a maximum cannot be projected after pooling) or
            ``ranks`` is not a permutation.

    Shapes:
        - ids: ``(batch, length)``, or flat with ``offsets`` of shape ``(batch,)``
        - per_sample_weights: as ids, for ``mode="sum"``
        - output: ``(batch, embedding_dim)``

    Example:
        >>> from optuna_nis import TableAllocation, Tier
        >>> table = TableAllocation("genres", 18, 8, (Tier(6, 8), Tier(9, 2)))
        >>> layer = MultiSizeEmbeddingBag(table)
        >>> layer(torch.tensor([[0, 7, 18], [1, 18, 18]])).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        table: TableAllocation,
        *,
        mode: BagMode = "mean",
        ranks: Tensor | None = None,
        init_std: float = 0.01,
    ) -> None:
        check_bag_mode(mode, table.name)
        super().__init__(table, ranks=ranks, init_std=init_std)
        self.mode = mode

    def forward(
        self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Look up and pool bags of ids."""
        if per_sample_weights is not None and self.mode != "sum":
            raise ValueError(
                f"`per_sample_weights` of {self.table.name!r} needs mode='sum', got {self.mode!r}."
            )
        ranks = to_ranks(ids, self._ranks, self.num_embeddings, self.table.name)
        flat, bags, num_bags = bags_of(ranks, offsets, self.table.name)
        if self._small(ranks.numel()):
            output = functional.embedding_bag(
                ranks.clamp(max=self.table.kept),
                self._with_zero_row(),
                None if offsets is None else offsets.to(ranks.dtype),
                mode="sum",
                per_sample_weights=per_sample_weights,
            )
        else:
            output = self._pooled_by_tier(flat, bags, num_bags, per_sample_weights)
        if self.mode == "mean":
            output = output / bag_sizes(flat, bags, num_bags, self.num_embeddings)
        return output

    def _pooled_by_tier(
        self, flat: Tensor, bags: Tensor, num_bags: int, per_sample_weights: Tensor | None
    ) -> Tensor:
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1, 1)
        output = torch.zeros(num_bags, self.embedding_dim, device=self._device())
        start = 0
        for tier in self.tier_modules():
            end = start + tier.weight.shape[0]
            where = ((flat >= start) & (flat < end)).nonzero().squeeze(1)
            rows = functional.embedding(flat[where] - start, tier.weight)
            if weights is not None:
                rows = rows * weights[where]
            pooled = rows.new_zeros(num_bags, rows.shape[1]).index_add(0, bags[where], rows)
            output = output + tier.project(pooled)
            start = end
        return output

    def extra_repr(self) -> str:
        """Show the tiers and the mode."""
        return f"{self.table}, mode={self.mode!r}"


def check_bag_mode(mode: str, name: str) -> None:
    """Raise a ValueError for a pooling that tiers cannot do."""
    if mode not in ("sum", "mean"):
        raise ValueError(
            f'`mode` of {name!r} must be "sum" or "mean", got {mode!r}; a maximum cannot be '
            "projected after pooling."
        )
