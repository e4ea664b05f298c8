"""The embedding that holds every choice of a search space at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis.allocation import Allocation
from optuna_nis.nn._ids import bag_sizes, check_ranks, to_ranks
from optuna_nis.nn.multi_size import (
    BagMode,
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    check_bag_mode,
)
from optuna_nis.space import EmbeddingSpec, SearchSpace


class SupernetEmbedding(nn.Module):
    """One full table, of which a choice keeps the first columns of every row block.

    The rows of all choices are the same weights, masked: a row of width ``d`` is the first ``d``
    numbers of the full row, times the projection, as in
    :class:`~optuna_nis.nn.MultiSizeEmbedding`.

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

    _ranks: Tensor | None
    _row_block: Tensor
    _mask: Tensor

    def __init__(
        self,
        spec: EmbeddingSpec,
        *,
        mode: BagMode | None = None,
        ranks: Tensor | None = None,
        init_std: float = 0.01,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        if mode is not None:
            check_bag_mode(mode, spec.name)
        self.spec = spec
        self.mode = mode
        self.sparse = sparse
        # The last row stands for ids out of vocabulary; its mask is always zero.
        self.weight = nn.Parameter(torch.empty(spec.num_embeddings + 1, spec.embedding_dim))
        self.projection = nn.Parameter(torch.eye(spec.embedding_dim))
        nn.init.normal_(self.weight, std=init_std)
        sizes = torch.tensor([*spec.row_blocks, 1])
        self.register_buffer("_row_block", torch.arange(len(sizes)).repeat_interleave(sizes))
        self.register_buffer("_ranks", check_ranks(ranks, spec.num_embeddings, spec.name))
        self.register_buffer("_mask", torch.empty(0), persistent=False)
        self.set_widths([[spec.embedding_dim] * len(spec.row_blocks)])

    @property
    def num_choices(self) -> int:
        """Number of choices that a batch is shared among."""
        return self._mask.shape[0]

    def set_widths(self, widths: Sequence[Sequence[int]]) -> None:
        """Set the choices that the next batches are shared among.

        Args:
            widths: For every choice, the width of each row block.

        Raises:
            ValueError: If there is no choice, or a number of blocks or a width does not fit.
        """
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
        # The columns of each choice and row block; ids out of vocabulary, the last one, have none.
        mask = np.zeros((len(table), blocks + 1, dim), dtype=bool)
        mask[:, :-1] = np.arange(dim) < table[:, :, None]
        self._mask = torch.from_numpy(mask).to(self.weight)

    @torch.no_grad()
    def copy_to(self, layer: MultiSizeEmbedding | MultiSizeEmbeddingBag) -> None:
        """Give a multi-size layer of the same feature the weights that its rows have here.

        Under the choice that the layer stands for, both then give the same output.

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
            rows = self.weight[start:end, : size.embedding_dim]
            tier.weight.copy_(rows if table.is_projected else rows @ self.projection)
            start = end
        if layer.projection is not None:
            layer.projection.copy_(self.projection[: len(layer.projection)])

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids, each under the choice of its run of the batch."""
        ranks = to_ranks(ids, self._ranks, self.spec.num_embeddings, self.spec.name)
        choices, blocks, width = self._mask.shape
        if len(ids) % choices:
            raise ValueError(
                f"The batch must be a multiple of the {choices} choices, got {len(ids)} "
                f"examples of {self.spec.name!r}."
            )
        size = len(self.weight)
        if not self.sparse and choices * size <= ranks.numel():
            # Cheaper than masking and projecting every row that is looked up.
            masks = self._mask.index_select(1, self._row_block)
            tables = ((self.weight * masks) @ self.projection).view(-1, width)
            where = self._of_choices(ranks, size)
            if self.mode is None:
                return functional.embedding(where, tables)
            output = functional.embedding_bag(where, tables, mode="sum")
        else:
            where = self._of_choices(self._row_block[ranks], blocks)
            rows = functional.embedding(ranks, self.weight, sparse=self.sparse)
            rows = rows * functional.embedding(where, self._mask.view(-1, width))
            output = (rows if self.mode is None else rows.sum(1)) @ self.projection
            if self.mode is None:
                return output
        if self.mode == "mean":
            output = output / bag_sizes(ranks, None, self.spec.num_embeddings)
        return output

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


def supernet_layers(module: nn.Module) -> dict[str, SupernetEmbedding]:
    """The supernet embeddings of a model by feature name.

    Raises:
        ValueError: If two of them are of the same feature.

    Example:
        >>> model = nn.Sequential(SupernetEmbedding(EmbeddingSpec("user", 1000, 16)))
        >>> list(supernet_layers(model))
        ['user']
    """
    layers: dict[str, SupernetEmbedding] = {}
    for layer in module.modules():
        if isinstance(layer, SupernetEmbedding):
            if layer.spec.name in layers:
                raise ValueError(f"The model has two supernet embeddings of {layer.spec.name!r}.")
            layers[layer.spec.name] = layer
    return layers


def set_choices(module: nn.Module, space: SearchSpace, allocations: Sequence[Allocation]) -> None:
    """Let all supernet embeddings of a model share their batches among some allocations.

    Args:
        module: A model with a :class:`SupernetEmbedding` for every feature of the space.
        space: The space that the allocations are from.
        allocations: The choices, one for each run of a batch.

    Raises:
        ValueError: If an allocation is not of this space.

    Example:
        >>> space = SearchSpace([EmbeddingSpec("user", 100, 8)])
        >>> model = nn.ModuleList([SupernetEmbedding(space.specs[0])])
        >>> set_choices(model, space, [space.full(), space.full()])
        >>> model[0].num_choices
        2
    """
    widths = [space.widths(allocation) for allocation in allocations]
    for name, layer in supernet_layers(module).items():
        layer.set_widths([choice[name] for choice in widths])
