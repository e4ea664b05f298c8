"""Layers whose rows are stored in another form than they are computed in: not to be trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis.nn._look_up import split
from optuna_nis.nn._weight import table_weight
from optuna_nis.nn.multi_size import (
    MultiSize,
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    Tier,
    sized_layers,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class _Stored(nn.Module):
    """A module whose buffers keep their types, whatever the model is cast to.

    What it gives is of the type that the model has.
    """

    # Of that type, and of no numbers.
    _empty: Tensor | None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        if recurse:
            for module in self.children():
                module._apply(fn)  # type: ignore[no-untyped-call]
        empty = self._empty
        super()._apply(moved, recurse=False)  # type: ignore[no-untyped-call]
        if empty is not None:
            # Builds of torch that only pretend to have a device may not copy to it.
            with suppress(RuntimeError):
                self._empty = fn(empty)
        return self

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name, buffer in self._buffers.items():
            given = state_dict.get(f"{prefix}{name}")
            if buffer is None or not isinstance(given, Tensor) or given.dtype == buffer.dtype:
                continue
            if not (given.is_floating_point() and buffer.is_floating_point()):
                error_msgs.append(
                    f"`{prefix}{name}` must be of type {buffer.dtype}, got {given.dtype}."
                )
                return
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )


class StoredTier(_Stored, Tier, ABC):
    """Rows of one width, turned back when they are looked up.

    Args:
        tier: The rows as they were trained.
        name: Name of the table, for errors.
    """

    def __init__(self, tier: Tier, name: str) -> None:
        nn.Module.__init__(self)
        self.num_embeddings = tier.num_embeddings
        self.embedding_dim = tier.embedding_dim
        self.sparse = False
        self._name = name
        self._empty: Tensor = tier.weight.detach().new_empty(0)

    @property
    def spread(self) -> None:
        """None: the step is no longer trained."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """All rows, computed at each access."""
        return table_weight(self.table(), self._name)

    @abstractmethod
    def rows(self, ids: Tensor) -> Tensor:
        """The rows of ids, not projected, of the type of the model."""

    def table(self) -> Tensor:
        """All rows as the model sees them, not projected."""
        return self.rows(torch.arange(self.num_embeddings, device=self._empty.device))

    def pooled(self, ids: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
        """The sums of the rows of bags, not projected."""
        rows, places = self.rows(ids), torch.arange(len(ids), device=ids.device)
        return functional.embedding_bag(
            places, rows, starts.to(places.dtype), mode="sum", per_sample_weights=weights
        )

    def extra_repr(self) -> str:
        """Show the size."""
        return f"{self.num_embeddings}, {self.embedding_dim}"


class StoredLayer(_Stored, MultiSize):
    """What layers of stored rows have in common.

    Args:
        layer: The layer as it was trained.
        tiers: Its tiers as they are stored.
    """

    #: What was done to it.
    done: str

    def __init__(self, layer: MultiSize, tiers: Sequence[StoredTier]) -> None:
        nn.Module.__init__(self)
        for name in ("table", "num_embeddings", "embedding_dim", "width", "init_std"):
            setattr(self, name, getattr(layer, name))
        self.sparse = False
        self.tiers = nn.ModuleList(tiers)
        self.register_buffer("projection", None)
        self._empty = layer.like().detach().new_empty(0)
        self.take_order(layer, torch.int32)

    def reset_parameters(self) -> None:
        """Refuse: there is nothing to be drawn."""
        raise RuntimeError(f"The table {self.name!r} is {self.done}: it cannot start anew.")

    def _small(self, num_ids: int) -> bool:
        # Rows are turned back when they are looked up, never the whole table.
        return False


class StoredEmbedding(StoredLayer, MultiSizeEmbedding):
    """A :class:`~optuna_nis.nn.MultiSizeEmbedding` of stored rows."""

    def _rows(self, ranks: Tensor) -> Tensor:
        tiers = self.tier_modules()
        if not tiers or self._for_all(ranks):
            return super()._rows(ranks)
        flat = ranks.reshape(-1)
        last = tiers[0].num_embeddings - 1
        if len(tiers) == 1 and (not len(flat) or int(flat.max()) <= last):
            output = self.project(tiers[0].rows(flat))
        else:
            output = self._zeros(len(flat), self.embedding_dim, device=flat.device)
            parts = split(flat, [tier.num_embeddings for tier in tiers])
            for tier, (where, ids) in zip(tiers, parts):
                output.index_copy_(0, where, self.project(tier.rows(ids)))
        return output.view(*ranks.shape, self.embedding_dim)


class StoredEmbeddingBag(StoredLayer, MultiSizeEmbeddingBag):
    """A :class:`~optuna_nis.nn.MultiSizeEmbeddingBag` of stored rows."""

    def __init__(self, layer: MultiSizeEmbeddingBag, tiers: Sequence[StoredTier]) -> None:
        super().__init__(layer, tiers)
        self.mode = layer.mode

    def _pooled(self, flat: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
        return self._pooled_by_tier(flat, starts, weights)


def half(numbers: Tensor, name: str) -> Tensor:
    """Numbers as float16.

    Raises:
        ValueError: If one is beyond it, or none.
    """
    check_numbers(numbers, name)
    found = numbers.detach().half()
    if not found.is_meta and not bool(found.isfinite().all()):
        wrong = float(numbers[~found.isfinite()].flatten()[0])
        raise ValueError(f"The table {name!r} has the number {wrong:g}, which is beyond float16.")
    return found


def stored_tables(model: nn.Module) -> dict[str, str]:
    """What was done to the tables of a model whose rows are stored, by name."""
    layers = [layer for layer in sized_layers(model) if isinstance(layer, StoredLayer)]
    return {layer.name: layer.done for layer in layers}


def check_numbers(numbers: Tensor, name: str) -> None:
    """Raise a ValueError if there is a NaN among the numbers of a table."""
    if not numbers.is_meta and bool(numbers.isnan().any()):
        raise ValueError(
            f"The table {name!r} has NaN among its numbers, which nothing stands for."
        )


def check_not_stored(layers: Sequence[MultiSize], problem: str = "already") -> None:
    """Raise a ValueError if the rows of a layer are stored already.

    Args:
        layers: The layers.
        problem: What follows from it, the end of a sentence.
    """
    for layer in layers:
        if isinstance(layer, StoredLayer):
            raise ValueError(f"The table {layer.name!r} of `model` is {layer.done} {problem}.")
