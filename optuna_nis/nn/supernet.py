"""The embedding that holds every choice of a search space at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis.nn._choice_masks import set_sizes
from optuna_nis.nn._distinct import distinct
from optuna_nis.nn._gather import bag_sums, gathers, look_up
from optuna_nis.nn._ids import mean_of
from optuna_nis.nn._look_up import full_precision, sparse_rows
from optuna_nis.nn._ranked import constant
from optuna_nis.nn._shared import shared_means
from optuna_nis.nn._supernet_rounding import Rounding, Spread
from optuna_nis.nn._supernet_rows import Wanted, masked_rows
from optuna_nis.nn._supernet_shared import Sharing
from optuna_nis.nn._tracing import is_traced
from optuna_nis.nn.multi_size import BagMode, MultiSize, Tier, check_bag_mode
from optuna_nis.nn.table import TableLayer
from optuna_nis.space.allocation import TableAllocation
from optuna_nis.space.spec import EmbeddingSpec

if TYPE_CHECKING:
    from typing_extensions import Self


# Ids from which on looking for the distinct ones takes less time than it saves: with those of
# other features, and alone.
_SOME, _MANY = 256, 2048


class _Projection(nn.Module):
    """The projection, apart from the rows.

    Its gradient is dense where theirs are sparse, and torch takes either for all that one module
    holds.
    """

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.eye(embedding_dim))


class SupernetEmbedding(TableLayer, nn.Embedding):
    """One full table, of which a choice keeps the first columns of every row block.

    The rows of all choices are the same weights, masked: a row of width ``d`` is the first ``d``
    numbers of the full row, times the projection, as in
    :class:`~optuna_nis.nn.MultiSizeEmbedding`. Where a choice has fewer bits than 16, they are
    rounded as there. Where ids without a row may share some (``oov`` of the spec), there are as
    many rows more as a choice may have at most, and each has the first of them.

    Several choices are served in one forward pass: with ``k`` choices set, the batch is cut into
    ``k`` equal runs and each run sees one of them.

    Args:
        spec: The full table and its blocks.
        mode: None for one id per example, ``"sum"`` or ``"mean"`` for bags.
        ranks: Rank by frequency of every id. By default ids are ranks already.
        init_std: Standard deviation of the initial rows.
        sparse: Whether the gradients of the rows are sparse, as an optimiser such as
            :class:`~optuna_nis.nn.RowwiseAdagrad` takes them: a step then costs the same in a
            table of any number of rows.

    Raises:
        ValueError: If the mode is unknown or ``ranks`` is not a permutation.

    Shapes:
        - ids: ``(batch, *)``, or ``(batch, length)`` for bags
        - output: ``(batch, *, embedding_dim)``, or ``(batch, embedding_dim)`` for bags

    Example:
        >>> layer = SupernetEmbedding(EmbeddingSpec("user", 100, 8))
        >>> layer.set_widths([[8, 8, 4, 2, 0], [1, 1, 1, 1, 1]])
        >>> rows = layer(torch.tensor([99, 99]))
        >>> (rows[0] == 0).all().item(), (rows[1] == 0).all().item()
        (True, False)
    """

    # No state: what is set is not averaged, cast or broadcast by those who do that to a model.
    _row_cuts: Tensor
    _mask: Tensor
    # The row block of all rows under all choices, kept of tables with fewer of them than a batch
    # has ids.
    _all_blocks: Tensor | None = None
    _rounding: Rounding | None = None
    _sharing: Sharing | None = None

    def __init__(
        self,
        spec: EmbeddingSpec,
        *,
        mode: BagMode | None = None,
        ranks: Tensor | None = None,
        init_std: float = 0.01,
        sparse: bool = False,
    ) -> None:
        if mode is not None:
            check_bag_mode(mode, spec.name)
        # The last row stands for ids out of vocabulary; its mask is always zero.
        rows, dim = spec.num_embeddings + 1, spec.embedding_dim
        super().__init__(
            rows, dim, spec.num_embeddings, sparse=sparse, _weight=torch.empty(rows, dim)
        )
        self.spec = spec
        self.mode = mode
        self.width = dim
        self.init_std = init_std
        self._dense = _Projection(dim)
        nn.init.normal_(self.weight, std=init_std)
        self._shared: nn.Embedding | None = None
        if len(spec.shares) > 1:
            own = torch.empty(spec.shares[-1], dim)
            self._shared = nn.Embedding(len(own), dim, sparse=sparse, _weight=own)
            nn.init.normal_(self._shared.weight, std=init_std)
        self._spread = None if spec.precisions == (32,) else Spread(spec)
        self._row_cuts = torch.from_numpy(np.array(spec.row_cuts))
        self._set_ranks(ranks, spec.num_embeddings, spec.name)
        self.set_widths([[dim] * len(spec.row_blocks)])
        self._measure()

    def reset_parameters(self) -> None:
        """Draw rows of standard deviation ``init_std``; the projection changes nothing."""
        nn.init.normal_(self.weight, std=self.init_std)
        if self._shared is not None:
            nn.init.normal_(self._shared.weight, std=self.init_std)
        nn.init.eye_(self.projection)
        self._measure()

    @property
    def projection(self) -> nn.Parameter:
        """What rows are multiplied by, of shape ``(embedding_dim, embedding_dim)``."""
        return self._dense.projection

    @property
    def num_choices(self) -> int:
        """Number of choices that a batch is shared among."""
        return self._mask.shape[0]

    def set_widths(self, widths: Sequence[Sequence[int]]) -> None:
        """Set the choices that the next batches are shared among.

        No number is rounded, and ids without a row share none.

        Args:
            widths: For every choice, the width of each row block.

        Raises:
            ValueError: If there is no choice, or a number of blocks or a width does not fit.
        """
        set_sizes([(self, widths, None, None)])

    def _checked(self, widths: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        """The width of every choice and row block; that of ids out of vocabulary is 0."""
        # This is done for every batch and feature; numpy is faster with a few numbers.
        table = np.asarray(widths, dtype=np.int64)
        blocks, dim = len(self.spec.row_blocks), self.spec.embedding_dim
        if table.ndim != 2 or table.shape[0] == 0 or table.shape[1] != blocks:
            raise ValueError(
                f"`widths` of {self.spec.name!r} must hold {blocks} widths for each choice, got "
                f"shape {table.shape}."
            )
        if table.min() < 0 or table.max() > dim:
            raise ValueError(
                f"`widths` of {self.spec.name!r} must be between 0 and {dim}, "
                f"got {table.tolist()}."
            )
        whole = np.zeros((len(table), blocks + 1), dtype=np.int64)
        whole[:, :-1] = table
        return whole

    def train(self, mode: bool = True) -> Self:
        """Set the mode; what is evaluated is rounded by the weights as they are then."""
        if not mode and self.training:
            self._measure()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_all_blocks": None}

    def _measure(self) -> None:
        if self._spread is not None:
            self._spread.measure(self.weight)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # As states were before the projection was a module of its own.
        state_dict.pop(f"{prefix}_row_block", None)
        projection = state_dict.pop(f"{prefix}projection", None)
        if projection is not None:
            state_dict[f"{prefix}_dense.projection"] = projection
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()
    def copy_to(self, layer: MultiSize) -> None:
        """Give a multi-size layer of the same feature the weights that its rows have here.

        Under the choice that the layer stands for, both then give the same output, in fewer bits
        than 32 about the same: steps are of whole tiers there, of row blocks here.

        Raises:
            ValueError: If the layer is of another feature or table.
        """
        table = layer.table
        if (table.name, table.num_embeddings, table.embedding_dim) != (
            self.spec.name,
            self.spec.num_embeddings,
            self.spec.embedding_dim,
        ):
            raise ValueError(f"`layer` must be of {self.spec}, got {table}.")
        start = 0
        for size, tier in zip(table.tiers, layer.tier_modules()):
            end = start + size.num_embeddings
            target, rows = self._rows_for(tier, start, end)
            rows = rows[:, : size.embedding_dim]
            if table.num_shared and end == table.kept:
                rows = torch.cat([rows, self._shared_rows(table)[:, : size.embedding_dim]])
            if not table.is_projected:
                with full_precision(rows):
                    rows = rows @ self.projection
            target.copy_(rows)
            tier.fit_step()
            start = end
        if layer.projection is not None:
            layer.projection.copy_(self.projection[: len(layer.projection)])

    def _rows_for(self, tier: Tier, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Where the rows of a tier are, and what they are given."""
        return tier.weight, self.weight[start:end]

    @torch.no_grad()
    def fit_shared(self) -> None:
        """Start the rows that ids may share from the means of the rows that these ids have."""
        if self._shared is not None:
            table = self.spec.table([self.width], num_shared=self.spec.shares[-1])
            self._shared.weight.copy_(shared_means(self.weight[table.kept : -1], table))

    def _shared_rows(self, table: TableAllocation) -> Tensor:
        if self._shared is None:
            return shared_means(self.weight[table.kept : -1], table)
        return self._shared.weight[: table.num_shared]

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids, each under the choice of its run of the batch."""
        ranks = self._ranks_of(ids)
        self.check_runs(len(ids))
        with full_precision(ids):
            output = self._rows_or_sums(ranks)
        if self.mode == "mean":
            output = mean_of(output, ranks, None, self.spec.num_embeddings)
        return output

    def like(self) -> Tensor:
        """The weight."""
        return self.weight

    def rows(self, choice: int = 0) -> Tensor:
        """All rows as the model sees them under one of the choices, by id."""
        with full_precision(self.weight):
            return self._masked(slice(choice, choice + 1))[0] @ self.projection

    def logits(self, vectors: Tensor) -> Tensor:
        """The product of vectors with all rows, each under the choice of its run."""
        self.check_runs(len(vectors))
        runs = vectors.reshape(self.num_choices, -1, self.width)
        logits = (runs @ self.projection.T) @ self._masked(slice(None)).mT
        return logits.view(*vectors.shape[:-1], self.num_ids)

    def _masked(self, choices: slice) -> Tensor:
        """What some choices keep of every row, by id and not projected."""
        weight = self._by_id(self.weight[:-1], 0)
        blocks = self._by_id(self._blocks_of_all(weight)[:-1], 0)
        return self._every(weight, blocks, choices)

    def _every(self, weight: Tensor, blocks: Tensor, choices: slice) -> Tensor:
        """What some choices keep of all rows of known blocks, side by side."""
        mask = constant(self, "_mask", weight.device, weight.dtype)
        if self._sharing is None or self._shared is None:
            rows = self._rounded(weight.unsqueeze(0), blocks, choices)
            return rows * mask[choices].index_select(1, blocks)
        ranks = torch.arange(len(weight), device=weight.device)
        if len(weight) == self.num_ids:  # Without that of ids unknown they are by id.
            ranks = self._by_id(ranks, 0)
        found = self._sharing.places(ranks.unsqueeze(0), blocks.unsqueeze(0), choices)
        is_shared, shared, blocks = found
        rows = torch.where(is_shared.unsqueeze(-1), self._shared(shared), weight)
        number, size, width = mask.shape
        starts = torch.arange(0, number * size, size, device=blocks.device)
        where = blocks + starts[choices].unsqueeze(1)
        if self._rounding is not None and self._spread is not None:
            rows = self._rounding.some(rows, self._spread.of(self), where)
        return rows * functional.embedding(where, mask.view(-1, width))

    def _rounded(self, rows: Tensor, blocks: Tensor, choices: slice) -> Tensor:
        """Rows of known blocks as some choices have them, side by side in a first dimension."""
        if self._rounding is None or self._spread is None:
            return rows
        return self._rounding.every(rows, self._spread.of(self), blocks, choices)

    def parts(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """A table and which row of it each id has, or the rows of the ids and None.

        The table is of all rows under all choices, where that is cheaper than to mask and project
        every row that is looked up, else of the distinct ones.
        """
        ranks = self._ranks_of(ids)
        self.check_runs(len(ids))
        with full_precision(ids):
            found = self._table(ranks)
            return (self._rows(ranks) @ self.projection, None) if found is None else found

    def wanted(self, ids: Tensor) -> tuple[Wanted, Tensor] | None:
        """The rows that ids want, and which of them each has; None where they are not so made.

        What several layers want can be computed at once. It is all rows under all choices, where
        these are fewer than the ids, else the distinct ones.
        """
        if not self._is_plain() or ids.numel() < _SOME:
            return None
        self.check_runs(len(ids))
        return self._wanted(self._ranks_of(ids))

    def _rows_or_sums(self, ranks: Tensor) -> Tensor:
        if self.mode is not None:
            return self._sums(ranks)
        if (found := self._table(ranks)) is not None:
            table, where = found
            return look_up(where, table)
        return self._rows(ranks) @ self.projection

    def _sums(self, ranks: Tensor) -> Tensor:
        """The sums of bags: what are fewer, rows or bags, is projected."""
        if (found := self._kept(ranks)) is None:
            return self._rows(ranks).sum(1) @ self.projection
        rows, where = found
        if len(rows) <= len(ranks):
            return bag_sums(where, rows @ self.projection)
        return bag_sums(where, rows) @ self.projection

    def _table(self, ranks: Tensor) -> tuple[Tensor, Tensor] | None:
        """As :meth:`_kept`, projected."""
        if ranks.numel() >= _MANY and self._is_plain():
            wanted, where = self._wanted(ranks)
            return masked_rows([wanted]), where
        if (found := self._kept(ranks)) is None:
            return None
        rows, where = found
        return rows @ self.projection, where

    def _kept(self, ranks: Tensor) -> tuple[Tensor, Tensor] | None:
        """Rows as the choices have them and which of them each rank has, where that pays."""
        if self.sparse:
            return None
        if self._is_small(ranks):
            rows = self._every(self.weight, self._blocks_of_all(self.weight), slice(None))
            return rows.view(-1, self.width), self._of_choices(ranks, len(self.weight))
        if ranks.numel() < _MANY or not self._is_plain():
            return None
        wanted, where = self._wanted(ranks)
        return wanted.kept(), where

    def _is_plain(self) -> bool:
        """Whether rows are trained on the CPU, and choices differ in what they keep alone."""
        return (
            gathers(self.weight)
            and not self.sparse
            and self._rounding is None
            and self._sharing is None
            and not self._mask.requires_grad
        )

    def _is_small(self, ranks: Tensor) -> bool:
        return self.num_choices * len(self.weight) <= ranks.numel()

    def _wanted(self, ranks: Tensor) -> tuple[Wanted, Tensor]:
        size = len(self.weight)
        where = self._of_choices(ranks, size)
        masks = constant(self, "_mask", self.weight.device, self.weight.dtype).view(-1, self.width)
        number = self.num_choices * size
        if self._is_small(ranks):
            if self._all_blocks is None or len(self._all_blocks) != number:
                self._all_blocks = self._blocks_of_choices(torch.arange(number, device="cpu"))
            return Wanted(self.weight, self.projection, masks, self._all_blocks, None), where
        found = distinct(where.reshape(-1).long(), [number], number - 1)
        rows = found.rows[0] % size
        own = self._blocks_of_choices(found.rows[0])
        return (
            Wanted(self.weight, self.projection, masks, own, rows),
            found.inverse.view(ranks.shape),
        )

    def _rows(self, ranks: Tensor) -> Tensor:
        """The rows of ids, each as its choice has it, not projected."""
        mask = constant(self, "_mask", self.weight.device, self.weight.dtype)
        choices, blocks, width = mask.shape
        rows = self._look_up(ranks)
        own = self._blocks_of(ranks)
        if self._sharing is not None and self._shared is not None:
            runs = ranks.reshape(choices, -1), own.reshape(choices, -1)
            found = self._sharing.places(*runs, slice(None))
            is_shared, shared, own = (each.view(ranks.shape) for each in found)
            rows = torch.where(is_shared.unsqueeze(-1), self._shared(shared), rows)
        where = self._of_choices(own, blocks)
        if self._rounding is not None and self._spread is not None:
            rows = self._rounding.some(rows, self._spread.of(self), where)
        return rows * functional.embedding(where, mask.view(-1, width))

    def _look_up(self, ranks: Tensor) -> Tensor:
        if not self.sparse:
            return look_up(ranks, self.weight)
        if is_traced() or not ranks.is_cpu:
            return functional.embedding(ranks, self.weight, sparse=True)
        return sparse_rows(ranks, self.weight)

    def _blocks_of(self, ranks: Tensor) -> Tensor:
        """The row block of each rank; ids out of vocabulary have one of their own."""
        cuts = constant(self, "_row_cuts", ranks.device, ranks.dtype)
        return torch.bucketize(ranks.contiguous(), cuts, right=True)

    def _blocks_of_all(self, weight: Tensor) -> Tensor:
        return self._blocks_of(torch.arange(self.spec.num_embeddings + 1, device=weight.device))

    def _blocks_of_choices(self, numbers: Tensor) -> Tensor:
        """The row blocks of ranks under choices, both as one number each."""
        cuts = constant(self, "_row_cuts", numbers.device, numbers.dtype)
        starts = torch.arange(self.num_choices, device=numbers.device) * len(self.weight)
        # After the row of ids out of vocabulary begin the blocks of the next choice.
        cuts = torch.cat([cuts, cuts[-1:] + 1]) + starts.unsqueeze(1)
        return torch.bucketize(numbers, cuts.view(-1)[:-1], right=True)

    def _of_choices(self, indices: Tensor, size: int) -> Tensor:
        """Indices into one table of some size for each choice, as those into one of them all."""
        starts = torch.arange(0, self.num_choices * size, size, device=indices.device)
        runs = indices.reshape(self.num_choices, -1) + starts.unsqueeze(1)
        return runs.view(indices.shape)

    def extra_repr(self) -> str:
        """Show the full table and its blocks."""
        spec = self.spec
        return (
            f"{spec.name}: {spec.num_embeddings}x{spec.embedding_dim}, "
            f"rows={list(spec.row_blocks)}, widths={list(spec.widths)}"
        )
