"""A reference model that looks up all of its features at once."""

from __future__ import annotations

from collections.abc import Sequence
import copy
from itertools import accumulate
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis.models.base import EmbeddingModule
from optuna_nis.models.embeddings import Batch, FeatureEmbeddings
from optuna_nis.nn import MultiSizeEmbedding

Model = TypeVar("Model", bound=nn.Module)


def fused(model: Model) -> Model:
    """A model for serving whose tables are one: few operations, however many tiers there are.

    Worth it where a call is short: with 26 features of up to five tiers, ONNX Runtime takes 4
    times as long for one example without. :func:`to_onnx` does it by itself; do it before
    :func:`torch.compile`. Rows of full width are projected once and for all, and the numbers of
    all others are kept as they are. Ids are not checked; those out of range have zeros, as in
    exported models.

    Args:
        model: A reference model of chosen sizes. Others, and those with bags, with shared rows or
            with numbers of fewer than 32 bits or not finite, are returned as they are.

    Returns:
        A model that shares all but its tables with the one given, and gives the same.

    Example:
        >>> from optuna_nis import Allocation, TableAllocation, Tier
        >>> from optuna_nis.models import RankingModule
        >>> table = TableAllocation("user", 100, 8, (Tier(6, 8), Tier(9, 2)))
        >>> model = RankingModule(Allocation([table])).eval()
        >>> batch = {"user": torch.tensor([3, 9, 50, 100])}
        >>> torch.allclose(fused(model)(batch), model(batch))
        True
    """
    fields = model.embeddings if isinstance(model, EmbeddingModule) else None
    if not isinstance(fields, FeatureEmbeddings) or not _can_be(fields):
        return model
    served = copy.copy(model)
    # What is set below is not to be set in the model given.
    served._modules = {**model._modules, "embeddings": FusedFields(fields)}
    return served


def _can_be(fields: FeatureEmbeddings) -> bool:
    return not fields.bags and all(
        type(layer) is MultiSizeEmbedding
        and layer.ranks is None
        and layer.table.num_shared == 0
        and layer.like().dtype is torch.float32
        and all(tier.bits == 32 for tier in layer.table.tiers)
        # Beyond a narrow row numbers of others are looked up too, and multiplied by zero.
        and all(bool(tier.weight.isfinite().all()) for tier in layer.tier_modules())
        for layer in fields.layers
    )


class FusedFields(nn.Module):
    """The rows of all features from two tables: rows of full width, and the numbers of all others.

    Args:
        fields: The layers of the features, for which :func:`fused` says that it can be done.

    Shapes:
        - batch: ids of every feature, ``(batch,)``
        - output: ``(batch, features, embedding_dim)``
    """

    wide: Tensor
    wide_starts: Tensor
    wide_ends: Tensor
    flat: Tensor
    ends: Tensor
    starts: Tensor
    widths: Tensor
    masks: Tensor
    projections: Tensor
    _order: Tensor

    def __init__(self, fields: FeatureEmbeddings) -> None:
        super().__init__()
        self.names, self.embedding_dim = fields.names, fields.embedding_dim
        own = dict(zip(self.names, fields.layers))
        layers: dict[str, MultiSizeEmbedding] = {}
        for name in self.names:
            layer = own[fields.share.get(name, name)]
            assert isinstance(layer, MultiSizeEmbedding)
            layers[name] = layer
        narrow = [name for name in self.names if _widest_narrow(layers[name])]
        # Those with narrow rows first.
        self._sorted = [*narrow, *(name for name in self.names if name not in narrow)]
        self._num_narrow = len(narrow)
        order = torch.tensor([self._sorted.index(name) for name in self.names])
        self._is_sorted = self._sorted == self.names
        device = next(iter(layers.values())).like().device
        self._keep("_order", order.to(device))
        self._set_wide([layers[name] for name in self._sorted], device)
        if narrow:
            self._set_narrow([layers[name] for name in narrow], device)

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    @torch.no_grad()
    def _set_wide(self, layers: Sequence[MultiSizeEmbedding], device: torch.device) -> None:
        """One table of all rows of full width, projected, and at last one of zeros."""
        tables: dict[int, tuple[int, int]] = {}
        parts: list[Tensor] = []
        for layer in layers:
            if id(layer) not in tables:
                start = sum(map(len, parts))
                tiers = [t.weight for t in layer.tier_modules() if _is_wide(t, layer)]
                parts += [layer.project(weight) for weight in tiers]
                tables[id(layer)] = start, sum(map(len, tiers))
        parts.append(torch.zeros(1, self.embedding_dim, device=device))
        self._keep("wide", torch.cat(parts))
        found = [tables[id(layer)] for layer in layers]
        self._keep("wide_starts", torch.tensor([start for start, _ in found], device=device))
        self._keep("wide_ends", torch.tensor([size for _, size in found], device=device))

    @torch.no_grad()
    def _set_narrow(self, layers: Sequence[MultiSizeEmbedding], device: torch.device) -> None:
        """The numbers of all narrower rows one after the other, and what projects them."""
        most = max(len(layer.table.tiers) for layer in layers)
        numbers: list[Tensor] = []
        tables: dict[int, list[int]] = {}
        ends, starts, widths = [], [], []
        for layer in layers:
            tiers = layer.tier_modules()
            if id(layer) not in tables:
                tables[id(layer)] = []
                for tier in tiers:
                    tables[id(layer)].append(sum(each.numel() for each in numbers))
                    numbers += [] if _is_wide(tier, layer) else [tier.weight.flatten()]
            own_ends = [*accumulate(tier.num_embeddings for tier in tiers)]
            sizes = [0 if _is_wide(tier, layer) else tier.embedding_dim for tier in tiers]
            # Where the row of id 0 would be, if it were in the tier.
            firsts = zip(tables[id(layer)], [0, *own_ends], sizes)
            # Ids beyond all tiers are in one of no width.
            missing = most + 1 - len(tiers)
            starts += [*(place - id_ * width for place, id_, width in firsts), *[0] * missing]
            widths += [*sizes, *[0] * missing]
            ends.append([*own_ends, *[torch.iinfo(torch.int64).max] * (missing - 1)])
        width = max(map(_widest_narrow, layers))
        # Of a narrow row at the end there is more looked up than there is of it.
        self._keep("flat", torch.cat([*numbers, torch.zeros(width, device=device)]))
        self._keep("ends", torch.tensor(ends, device=device))
        self._keep("starts", torch.tensor(starts, device=device).unsqueeze(1))
        self._keep("widths", torch.tensor(widths, device=device).unsqueeze(1))
        self._keep("masks", (torch.arange(width, device=device) < self.widths).float())
        projections = torch.zeros(len(layers), width, self.embedding_dim, device=device)
        for own, layer in zip(projections, layers):
            mapping = layer.mapping()
            assert mapping is not None
            own[: len(mapping)] = mapping[:width]
        self._keep("projections", projections)

    def forward(self, batch: Batch) -> Tensor:
        """Look up every feature."""
        ids = torch.cat([batch[name].long() for name in self._sorted])
        ids = ids.view(len(self._sorted), -1).T
        # As ids that are too large: zeros.
        ids = torch.where(ids < 0, torch.iinfo(torch.int64).max, ids)
        last = len(self.wide) - 1
        places = torch.where(ids < self.wide_ends, ids + self.wide_starts, last)
        if number := self._num_narrow:
            # To cut what was looked up would copy all of it.
            rows = functional.embedding(places[:, :number], self.wide)
            rows = rows + self._narrow_rows(ids[:, :number])
            rows = torch.cat([rows, functional.embedding(places[:, number:], self.wide)], 1)
        else:
            rows = functional.embedding(places, self.wide)
        return rows if self._is_sorted else rows.index_select(1, self._order)

    def _narrow_rows(self, ids: Tensor) -> Tensor:
        """Projected rows of ids that have narrow ones, zeros for others."""
        features = torch.arange(ids.shape[1], device=ids.device) * (self.ends.shape[1] + 1)
        tiers = (ids.unsqueeze(2) >= self.ends).sum(2) + features
        widths = functional.embedding(tiers, self.widths)
        columns = torch.arange(self.projections.shape[1], device=ids.device)
        places = functional.embedding(tiers, self.starts) + ids.unsqueeze(2) * widths + columns
        # Runtimes copy number by number faster than row by row where rows are of one number.
        rows = self.flat.gather(0, places.flatten()).view(places.shape)
        rows = rows * functional.embedding(tiers, self.masks)
        return torch.bmm(rows.transpose(0, 1), self.projections).transpose(0, 1)


def _is_wide(tier: nn.Embedding, layer: MultiSizeEmbedding) -> bool:
    return tier.embedding_dim == layer.embedding_dim


def _widest_narrow(layer: MultiSizeEmbedding) -> int:
    """The width of the first tier that is narrower than the output, 0 if there is none."""
    widths = [tier.embedding_dim for tier in layer.table.tiers]
    return next((width for width in widths if width < layer.embedding_dim), 0)
