"""Embedding layers with tiers of different widths: what is trained once sizes are chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis.allocation import TableAllocation
from optuna_nis.nn._ids import (
    accept_ranks,
    bag_sizes,
    check_bags,
    check_ranks,
    flat_bags,
    no_offsets,
    to_ranks,
)
from optuna_nis.nn._look_up import look_up

BagMode = Literal["sum", "mean"]


class Tier(nn.Module):
    """Rows of one width."""

    def __init__(self, num_embeddings: int, embedding_dim: int) -> None:
        super().__init__()
        self.num_embeddings = num_embeddings
        self.weight = nn.Parameter(torch.empty(num_embeddings, embedding_dim))

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of ids, not projected."""
        return functional.embedding(ids, self.weight)


def rows_of_all(ranks: Tensor, tiers: Sequence[Tier]) -> Iterator[Tensor]:
    """For every tier its rows for all ids, zeros for those of other tiers.

    Costs a row per tier and id, but no shape depends on the data: what tracing needs.
    """
    start = 0
    for tier in tiers:
        end = start + tier.num_embeddings
        inside = ((ranks >= start) & (ranks < end)).unsqueeze(-1)
        rows = tier.rows((ranks - start).clamp(0, tier.num_embeddings - 1))
        yield torch.where(inside, rows, torch.zeros_like(rows))
        start = end


class _MultiSize(nn.Module):
    """Tiers and their projection, and the two ways to look ids up in them.

    As in the supernet, a row of width ``d`` stands for the first ``d`` numbers of a wider one: the
    rows of all tiers live in the same space, and what is learned of it from frequent ids serves
    the rare ones too.
    """

    projection: Tensor | None
    _ranks: Tensor | None

    def __init__(
        self,
        table: TableAllocation,
        *,
        ranks: Tensor | None = None,
        init_std: float = 0.01,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        self.table = table
        self.num_embeddings = table.num_embeddings
        self.embedding_dim = table.embedding_dim
        self.init_std = init_std
        self.sparse = sparse
        self.tiers = nn.ModuleList(
            Tier(tier.num_embeddings, tier.embedding_dim) for tier in table.tiers
        )
        projection = None
        if table.is_projected:
            shape = (table.tiers[0].embedding_dim, table.embedding_dim)
            projection = nn.Parameter(torch.empty(shape))
        self.register_parameter("projection", projection)
        self.register_buffer(
            "_ranks", check_ranks(ranks, table.num_embeddings, table.name), persistent=True
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw rows of standard deviation ``init_std``, projected by filling up with zeros."""
        for tier in self.tier_modules():
            nn.init.normal_(tier.weight, std=self.init_std)
        if self.projection is not None:
            nn.init.eye_(self.projection)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        accept_ranks(self, state_dict.get(f"{prefix}_ranks"), self._device())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def tier_modules(self) -> list[Tier]:
        """The tiers, widest first."""
        return [tier for tier in self.tiers if isinstance(tier, Tier)]

    def dense_weight(self) -> Tensor:
        """The table as the model sees it: every kept id's projected row.

        Returns:
            Shape ``(num_embeddings, embedding_dim)``; ids out of vocabulary have zeros.
        """
        missing = torch.zeros(
            self.num_embeddings - self.table.kept, self.embedding_dim, device=self._device()
        )
        return torch.cat([*self._projected(), missing])

    def project(self, rows: Tensor) -> Tensor:
        """Rows of a tier in the width of the output."""
        if self.projection is None:
            return rows
        return rows @ self.projection[: rows.shape[-1]].to(rows.dtype)

    def _projected(self) -> list[Tensor]:
        return [self.project(tier.weight) for tier in self.tier_modules()]

    def _device(self) -> torch.device | None:
        return next((each.device for each in chain(self.parameters(), self.buffers())), None)

    def _small(self, num_ids: int) -> bool:
        """Whether projecting the whole table costs less than projecting every looked-up row."""
        return not self.sparse and self.table.kept <= 2 * num_ids

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
        init_std: Standard deviation of the initial rows.
        sparse: Whether the gradients of the rows are sparse, as an optimiser such as
            :class:`~optuna_nis.nn.RowwiseAdagrad` takes them. Worth it for tables with many more
            rows than a batch has ids.

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
        if torch.compiler.is_compiling():
            output = torch.zeros(*ids.shape, self.embedding_dim, device=ids.device)
            for rows in rows_of_all(ranks, self.tier_modules()):
                output = output + self.project(rows)
            return output
        if self._small(ranks.numel()):
            return functional.embedding(ranks.clamp(max=self.table.kept), self._with_zero_row())
        tiers = self.tier_modules()
        output = look_up(
            ranks.reshape(-1),
            [tier.weight for tier in tiers],
            self.projection,
            self.embedding_dim,
            self.sparse,
        )
        return output.reshape(*ids.shape, self.embedding_dim)


class MultiSizeEmbeddingBag(_MultiSize):
    """A bag of ids pooled inside each tier, projected and added.

    In place of :class:`torch.nn.EmbeddingBag`; the result is that of looking up every id and
    pooling, since all of it is linear (Joglekar et al., 2020, section 3.2).

    Args:
        table: The tiers.
        mode: ``"sum"``, or ``"mean"`` over the known ids of a bag: those that the allocation cut
            count, the id ``num_embeddings`` (unknown and padding) does not.
        ranks: As in :class:`MultiSizeEmbedding`.
        init_std: As in :class:`MultiSizeEmbedding`.
        sparse: As in :class:`MultiSizeEmbedding`.

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
        sparse: bool = False,
    ) -> None:
        check_bag_mode(mode, table.name)
        super().__init__(table, ranks=ranks, init_std=init_std, sparse=sparse)
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
        if torch.compiler.is_compiling():
            output = self._traced(ranks, offsets, per_sample_weights)
        elif self._small(ranks.numel()):
            check_bags(ranks, offsets, self.table.name)
            output = functional.embedding_bag(
                ranks.clamp(max=self.table.kept),
                self._with_zero_row(),
                None if offsets is None else offsets.to(ranks.dtype),
                mode="sum",
                per_sample_weights=per_sample_weights,
            )
        else:
            output = self._pooled_by_tier(ranks, offsets, per_sample_weights)
        if self.mode == "mean":
            output = output / bag_sizes(ranks, offsets, self.num_embeddings)
        return output

    def _pooled_by_tier(
        self, ranks: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None
    ) -> Tensor:
        flat, starts = flat_bags(ranks, offsets, self.table.name)
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        output = torch.zeros(len(starts), self.embedding_dim, device=self._device())
        for tier in self.tier_modules():
            inside = flat < tier.num_embeddings
            before = functional.pad(inside.cumsum(0), (1, 0))
            pooled = functional.embedding_bag(
                flat[inside],
                tier.weight,
                before[starts],
                mode="sum",
                sparse=self.sparse,
                per_sample_weights=None if weights is None else weights[inside],
            )
            output = output + self.project(pooled)
            # The next tier looks only at the ids that are left.
            outside = ~inside
            starts = starts - before[starts]
            flat = flat[outside] - tier.num_embeddings
            weights = None if weights is None else weights[outside]
        return output

    def _traced(
        self, ranks: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None
    ) -> Tensor:
        if offsets is not None:
            raise ValueError(no_offsets(self.table.name, f"the id {self.num_embeddings}"))
        output = torch.zeros(ranks.shape[0], self.embedding_dim, device=ranks.device)
        for rows in rows_of_all(ranks, self.tier_modules()):
            if per_sample_weights is not None:
                rows = rows * per_sample_weights.unsqueeze(-1)
            output = output + self.project(rows.sum(1))
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
