"""Embedding layers with tiers of different widths: what is trained once sizes are chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis.nn._gather import bag_sums, gathers
from optuna_nis.nn._ids import (
    check_bags,
    check_weights,
    flat_bags,
    get_gradients,
    mean_of,
    no_offsets,
)
from optuna_nis.nn._look_up import full_precision, look_up, split
from optuna_nis.nn._pool import pool
from optuna_nis.nn._rounding import rounded
from optuna_nis.nn._shared import places as stored_places
from optuna_nis.nn._tier import Tier as Tier
from optuna_nis.nn._tier import places, rows_of_all
from optuna_nis.nn._tier_rows import Wanted, joins
from optuna_nis.nn._tracing import is_traced
from optuna_nis.nn.table import TableLayer
from optuna_nis.space.allocation import TableAllocation

if TYPE_CHECKING:
    from typing_extensions import Self

BagMode = Literal["sum", "mean"]

# What a weight is made of by hooks of torch before its module is called.
_OF_HOOKS = frozenset({"weight_orig", "weight_g", "weight_v"})


class MultiSize(TableLayer):
    """Tiers and their projection: what layers of chosen sizes have in common.

    As in the supernet, a row of width ``d`` stands for the first ``d`` numbers of a wider one: the
    rows of all tiers live in the same space, and what is learned of it from frequent ids serves
    the rare ones too.
    """

    projection: Tensor | None
    _empty: Tensor | None

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
        self.embedding_dim = self.width = table.embedding_dim
        self.init_std = init_std
        self.sparse = sparse
        self.tiers = nn.ModuleList(
            Tier(
                tier.num_embeddings,
                tier.embedding_dim,
                bits=tier.bits,
                init_std=init_std,
                sparse=sparse,
            )
            for tier in table.stored_tiers
        )
        projection = None
        if table.is_projected:
            shape = (table.tiers[0].embedding_dim, table.embedding_dim)
            projection = nn.Parameter(torch.empty(shape))
        self.register_parameter("projection", projection)
        # A layer of no rows has a type and a device, too.
        self._empty = None if table.tiers else torch.empty(0)
        self._set_ranks(ranks, table.num_embeddings, table.name)
        self._reset_projection()

    def reset_parameters(self) -> None:
        """Draw rows of standard deviation ``init_std``; the projection fills them up with zeros.

        It makes the rows longer, since a model learns more slowly from the few numbers that they
        have: half the way, by its logarithm, to the length of rows of full width. With all of it,
        tables that overfit do so sooner.
        """
        for tier in self.tier_modules():
            tier.reset_parameters()
        self._reset_projection()

    def fit_steps(self) -> None:
        """Start the steps of codes from the rows as they are now: after others were copied."""
        for tier in self.tier_modules():
            tier.fit_step()

    def _reset_projection(self) -> None:
        if self.projection is not None:
            nn.init.eye_(self.projection)
            widest, full = self.projection.shape
            with torch.no_grad():
                self.projection.mul_((full / widest) ** 0.25)

    def tier_modules(self) -> list[Tier]:
        """The tiers, widest first.

        Raises:
            RuntimeError: If the weight of one is made by a hook of its own.
        """
        tiers = [tier for tier in self.tiers if isinstance(tier, Tier)]
        for tier in tiers:
            if "weight" not in tier._parameters and not _OF_HOOKS.isdisjoint(tier._parameters):
                raise RuntimeError(
                    f"The rows of {self.name!r} are made by a hook, as `torch.nn.utils.prune` and "
                    "`weight_norm` have them, which runs when a module is called. Tiers are not "
                    "called: leave their `weight` out of pruning."
                )
        return tiers

    def dense_weight(self) -> Tensor:
        """The table as the model sees it: every kept id's projected row.

        Returns:
            Shape ``(num_embeddings, embedding_dim)``; ids without a row have zeros.
        """
        device = self.like().device
        missing = self._zeros(self._num_left_out, self.embedding_dim, device=device)
        with full_precision(missing):
            return self._by_rank(torch.cat([*self._projected(), missing]), 0)

    def rows(self, choice: int = 0) -> Tensor:
        """All rows as the model sees them, by id; there is one choice."""
        return self._by_id(self.dense_weight(), 0)

    def logits(self, vectors: Tensor) -> Tensor:
        """The product of vectors with all rows: the vectors are projected, not the rows."""
        queries = vectors
        mapping = self.mapping()
        if mapping is not None:
            queries = functional.linear(vectors, mapping.to(self.like().dtype))
        logits = []
        for tier in self.tier_modules():
            rows = tier.table()
            logits.append(functional.linear(queries[..., : rows.shape[1]], rows))
        if missing := self._num_left_out:
            # Zeros of the type that products have here, also under autocast.
            zero = functional.linear(vectors, self._zeros(1, self.width, device=vectors.device))
            logits.append(zero.expand(*vectors.shape[:-1], missing))
        return self._by_id(self._by_rank(torch.cat(logits, -1), -1), -1)

    @property
    def _num_left_out(self) -> int:
        """Number of ids that have no row, not even one that they share."""
        return 0 if self.table.num_shared else self.num_embeddings - self.table.kept

    def _by_rank(self, rows: Tensor, dim: int) -> Tensor:
        """What is in the order in which rows are stored, such as they, in the order of ranks."""
        if not self.table.num_shared:
            return rows
        ranks = torch.arange(self.num_embeddings, device=rows.device)
        return rows.index_select(dim, stored_places(ranks, self.table))

    def _ranks_of(self, ids: Tensor) -> Tensor:
        """Check ids and map them to where their rows are stored; the unknown id stays itself."""
        return stored_places(super()._ranks_of(ids), self.table)

    def mapping(self) -> Tensor | None:
        """The projection as the model sees it."""
        if self.projection is None:
            return None
        return rounded(self.projection, None, self.table.projection_bits)

    def project(self, rows: Tensor) -> Tensor:
        """Rows of a tier in the width of the output."""
        return _wide(rows, self.mapping())

    def _projected(self) -> list[Tensor]:
        mapping = self.mapping()
        return [_wide(tier.table(), mapping) for tier in self.tier_modules()]

    def _sum(self, parts: Iterable[Tensor], *shape: int, device: torch.device) -> Tensor:
        """What all tiers have for some ids or bags, projected and added."""
        mapping = self.mapping()
        output = self._zeros(*shape, self.embedding_dim, device=device)
        for rows in parts:
            output = output + _wide(rows, mapping)
        return output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._empty is not None:
            # Builds of torch that only pretend to have a device may not copy to it.
            with suppress(RuntimeError):
                self._empty = fn(self._empty)
        return self

    def like(self) -> Tensor:
        """A tensor of the type and on the device of the rows, also where there are none."""
        return self.tier_modules()[0].weight if self._empty is None else self._empty

    def _zeros(self, *shape: int, device: torch.device) -> Tensor:
        return torch.zeros(shape, dtype=self.like().dtype, device=device)

    def _for_all(self, ids: Tensor) -> bool:
        """Whether every tier is to look all ids up, so that no shape depends on the data."""
        if is_traced() or ids.is_meta:
            return True
        return ids.device.type != "cpu" and not self.sparse

    def _small(self, num_ids: int) -> bool:
        """Whether projecting the whole table costs less than projecting every looked-up row."""
        return not self.sparse and self._num_stored <= 2 * num_ids

    @property
    def _num_stored(self) -> int:
        return self.table.kept + self.table.num_shared

    def _with_zero_row(self, device: torch.device, projected: bool = True) -> Tensor:
        """The stored rows, then one of zeros for all ids that have none.

        Args:
            device: Where ids are.
            projected: Whether to project them; else all are as wide as the widest.
        """
        if projected or self.projection is None:
            zero = self._zeros(1, self.embedding_dim, device=device)
            return torch.cat([*self._projected(), zero])
        rows = [tier.table() for tier in self.tier_modules()]
        width = len(self.projection)
        zero = self._zeros(1, width, device=device)
        return torch.cat([*(functional.pad(own, (0, width - own.shape[1])) for own in rows), zero])

    def extra_repr(self) -> str:
        """Show the tiers."""
        return str(self.table)


class MultiSizeEmbedding(MultiSize):
    """An embedding whose rows have the widths of an allocation, projected to one width.

    In place of :class:`torch.nn.Embedding`. It holds exactly
    :attr:`TableAllocation.num_parameters <optuna_nis.TableAllocation.num_parameters>` numbers, and
    one from which the step comes for each tier of codes. Rows of fewer than 32 bits are trained as
    they will be stored: they are rounded when they are looked up, with gradients as if they were
    not.

    Ids beyond the tiers give zeros (Joglekar et al., 2020, section 3.2), or share rows if the
    table has some to share. The id ``num_embeddings``, which stands for unknown, missing and
    padding, always gives zeros: a layer cannot tell these apart.

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
        ranks = self._ranks_of(ids)
        with full_precision(ids):
            return self._rows(ranks)

    def parts(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """A table and which row of it each id has, or the rows of the ids and None.

        The table is of all rows as the model sees them, where that is cheaper than to project
        every row that is looked up. Ids that have no row are beyond it.
        """
        table = self._table_of_all(len(ids))
        return (self(ids), None) if table is None else (table, self._ranks_of(ids))

    def wanted(self, ids: Tensor) -> Wanted | None:
        """The rows that ids want; None where they are not made with those of other layers."""
        tiers = self.tier_modules()
        if not tiers or any(tier.bits != 32 for tier in tiers):
            return None
        if not any(gathers(tier.weight) for tier in tiers) or self._has_table(len(ids)):
            return None
        weights = [tier.weight for tier in tiers]
        found = Wanted(weights, self.mapping(), self._ranks_of(ids), self.sparse)
        return found if joins(found) else None

    def _has_table(self, num_ids: int) -> bool:
        """Whether a table of all rows is cheaper than those that are looked up."""
        return not self.sparse and (self._is_plain() or self._small(num_ids))

    def _is_plain(self) -> bool:
        """Whether there is one table, of which nothing is computed."""
        return self.projection is None and [tier.bits for tier in self.tier_modules()] == [32]

    def _table_of_all(self, num_ids: int) -> Tensor | None:
        tiers = self.tier_modules()
        if not tiers or not self._has_table(num_ids):
            return None
        if self._is_plain():
            return tiers[0].weight
        with full_precision(tiers[0].weight):
            return torch.cat(self._projected())

    def _rows(self, ranks: Tensor) -> Tensor:
        if not is_traced() and self._small(ranks.numel()):
            table = self._with_zero_row(ranks.device)
            return functional.embedding(ranks.clamp(max=self._num_stored), table)
        tiers = self.tier_modules()
        if not tiers or self._for_all(ranks):
            return self._sum(rows_of_all(ranks, tiers), *ranks.shape, device=ranks.device)
        output = look_up(
            ranks.reshape(-1),
            tiers,
            self.mapping(),
            self.embedding_dim,
            self.num_embeddings,
            self.sparse,
        )
        return output.reshape(*ranks.shape, self.embedding_dim)


class MultiSizeEmbeddingBag(MultiSize):
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
        check_weights(per_sample_weights, ids, self.table.name)
        ranks = self._ranks_of(ids)
        if per_sample_weights is not None:
            per_sample_weights = per_sample_weights.to(self.like().dtype)
        with full_precision(ids):
            output = self._sums(ranks, offsets, per_sample_weights)
        if self.mode == "mean":
            output = mean_of(output, ranks, offsets, self.num_embeddings)
        return output

    def _sums(
        self, ranks: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None
    ) -> Tensor:
        if is_traced():
            return self._traced(ranks, offsets, per_sample_weights)
        if self._small(ranks.numel()):
            check_bags(ranks, offsets, self.table.name)
            # What are fewer, rows or bags, is projected.
            late = self._num_stored > len(ranks if offsets is None else offsets)
            table = self._with_zero_row(ranks.device, projected=not late)
            places = ranks.clamp(max=self._num_stored)
            sums = bag_sums(places, table, offsets, per_sample_weights)
            return self.project(sums) if late else sums
        flat, starts = flat_bags(ranks, offsets, self.table.name)
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        if self._for_all(ranks):
            return self._pooled_by_all(flat, starts, weights)
        return self._pooled(flat, starts, weights)

    def _pooled_by_all(self, flat: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
        """Every tier pools all ids, those of others with a weight of zero."""
        parts = []
        for tier, inside, ids in places(flat, self.tier_modules()):
            own = inside.to(self.like().dtype)
            parts.append(tier.pooled(ids, starts, own if weights is None else own * weights))
        return self._sum(parts, len(starts), device=flat.device)

    def _pooled(self, flat: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
        tiers = self.tier_modules()
        if not tiers or get_gradients(weights) or flat.device.type != "cpu":
            return self._pooled_by_tier(flat, starts, weights)
        return pool(
            flat,
            starts,
            weights,
            tiers,
            self.mapping(),
            self.embedding_dim,
            self.num_embeddings,
            self.sparse,
        )

    def _pooled_by_tier(self, flat: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
        """Every tier pools its own ids."""
        parts = []
        tiers = self.tier_modules()
        found = split(flat, [tier.num_embeddings for tier in tiers]) if tiers else []
        for tier, (where, ids) in zip(tiers, found):
            own = None if weights is None else weights.index_select(0, where)
            parts.append(tier.pooled(ids, torch.searchsorted(where, starts), own))
        return self._sum(parts, len(starts), device=flat.device)

    def _traced(
        self, ranks: Tensor, offsets: Tensor | None, per_sample_weights: Tensor | None
    ) -> Tensor:
        if offsets is not None:
            raise ValueError(no_offsets(self.table.name, f"the id {self.num_embeddings}"))
        parts = rows_of_all(ranks, self.tier_modules())
        if per_sample_weights is not None:
            weights = per_sample_weights.unsqueeze(-1)
            parts = (rows * weights for rows in parts)
        return self._sum((rows.sum(1) for rows in parts), ranks.shape[0], device=ranks.device)

    def extra_repr(self) -> str:
        """Show the tiers and the mode."""
        return f"{self.table}, mode={self.mode!r}"


def _wide(rows: Tensor, mapping: Tensor | None) -> Tensor:
    return rows if mapping is None else rows @ mapping[: rows.shape[-1]].to(rows.dtype)


def sized_layers(model: nn.Module) -> list[MultiSize]:
    """The layers of a model that hold tables of chosen sizes, each once.

    Example:
        >>> from optuna_nis import TableAllocation, Tier
        >>> table = TableAllocation("user", 100, 16, (Tier(10, 16),))
        >>> [layer.name for layer in sized_layers(nn.Sequential(MultiSizeEmbedding(table)))]
        ['user']
    """
    return [layer for layer in model.modules() if isinstance(layer, MultiSize)]


def check_bag_mode(mode: str, name: str) -> None:
    """Raise a ValueError for a pooling that tiers cannot do."""
    if mode not in ("sum", "mean"):
        raise ValueError(
            f'`mode` of {name!r} must be "sum" or "mean", got {mode!r}; a maximum cannot be '
            "projected after pooling."
        )
