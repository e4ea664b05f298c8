"""Layers whose rows are spread over the processes that train together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from optuna_nis.nn._look_up import split
from optuna_nis.nn._tier import Tier
from optuna_nis.nn.multi_size import MultiSize, MultiSizeEmbedding, MultiSizeEmbeddingBag
from optuna_nis.nn.supernet import SupernetEmbedding

if TYPE_CHECKING:
    from optuna_nis.nn._sharded_table import ShardedTable

_Build = TypeVar("_Build")
# Whether states are to have the rows of this process alone.
_own: ContextVar[bool] = ContextVar("own rows", default=False)
#: Beside rows that are not all rows, which is the first of them.
FIRST_ROW = "first_row"
#: Of a function that makes models with sharded tables: what makes them with whole ones.
WHOLE = "build_whole"
# Where the state of an optimiser has that of sharded tables.
_STATE = "sharded_tables"


class ShardedRows(nn.Embedding):
    """An embedding whose rows are in a sharded table.

    In place of its ``weight`` it has one without rows, that is not trained: the group of an
    optimiser that it is in tells the learning rate of the rows.

    Attributes:
        shards: The table. It is no module, so that nobody broadcasts, reduces or moves its rows.
    """

    shards: ShardedTable
    init_std: float

    def looked_up(self, ids: Tensor) -> Tensor:
        """The rows of ids; a backward pass moves them in training mode."""
        return self.shards.look_up(ids, trained=self.training)

    def reset_parameters(self) -> None:
        """Draw the rows anew."""
        super().reset_parameters()
        self.shards.draw(self.init_std)

    def whole(self) -> Tensor:
        """Refuse to give all rows."""
        raise RuntimeError(
            f"The table of {self.shards.name!r} is spread over several processes, none of which "
            "has all rows: load the `state_dict()` of the first process into a model that is not "
            "sharded."
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        rows = self.shards.own.clone() if _own.get() else self.shards.state()
        destination[f"{prefix}weight"] = rows
        if len(rows) < self.num_embeddings:
            destination[f"{prefix}{FIRST_ROW}"] = torch.tensor(self.shards.start)

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
        key = f"{prefix}weight"
        first_row = int(state_dict.pop(f"{prefix}{FIRST_ROW}", 0))
        if key in state_dict:
            problem = self.shards.load(state_dict[key], first_row)
            if problem:
                error_msgs.append(f"`{key}`: {problem}.")
            state_dict[key] = self.weight
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )


@contextmanager
def own_rows() -> Iterator[None]:
    """States have the rows of this process alone, for it to load again; nothing is sent."""
    token = _own.set(True)
    try:
        yield
    finally:
        _own.reset(token)


def whole_build(build: _Build) -> _Build:
    """What makes the models of a function with whole tables, the function itself otherwise."""
    whole: _Build = getattr(build, WHOLE, build)
    return whole


class ShardedSupernetEmbedding(ShardedRows, SupernetEmbedding):
    """A supernet embedding whose rows are spread over the processes."""

    def _look_up(self, ranks: Tensor) -> Tensor:
        return self.looked_up(ranks)

    def _rows_for(self, tier: Tier, start: int, end: int) -> tuple[Tensor, Tensor]:
        target, ids = tier.weight, torch.arange(start, end, device="cpu")
        if isinstance(tier, ShardedRows):
            target, ids = tier.shards.own, ids[tier.shards.start : tier.shards.end]
        return target, self.shards.fetch(ids)

    def _masked(self, choices: slice) -> Tensor:
        return self.whole()


class ShardedTier(ShardedRows, Tier):
    """A tier whose rows are spread over the processes."""

    def table(self) -> Tensor:
        """Refuse to give all rows."""
        return self.whole()

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of ids, not projected."""
        return self.looked_up(ids)

    def pooled(self, ids: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
        """The sums of the rows of bags, not projected, as those of any tier."""
        rows = self.looked_up(ids)
        places = torch.arange(len(ids), dtype=starts.dtype, device=starts.device)
        return functional.embedding_bag(
            places, rows, starts, mode="sum", per_sample_weights=weights
        )


class ShardedMultiSizeEmbedding(MultiSizeEmbedding):
    """A multi-size embedding some of whose tiers are spread over the processes."""

    def _rows(self, ranks: Tensor) -> Tensor:
        flat, mapping = ranks.reshape(-1), self.mapping()
        output = self._zeros(len(flat), self.embedding_dim, device=flat.device)
        tiers = self.tier_modules()
        # Also those that have no row of this batch: other processes may ask for some.
        for tier, (where, ids) in zip(tiers, split(flat, [t.num_embeddings for t in tiers])):
            if isinstance(tier, ShardedTier):
                rows = tier.looked_up(ids)
            else:
                rows = functional.embedding(ids, tier.weight, sparse=self.sparse)
            wide = rows if mapping is None else rows @ mapping[: rows.shape[1]]
            output = output.index_copy(0, where, wide)
        return output.view(*ranks.shape, self.embedding_dim)


class ShardedMultiSizeEmbeddingBag(MultiSizeEmbeddingBag):
    """Bags of ids some of whose tiers are spread over the processes."""

    def _pooled(self, flat: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
        return self._pooled_by_tier(flat, starts, weights)


#: What becomes of layers that have a sharded tier.
SHARDED: dict[type[nn.Module], type[MultiSize]] = {
    MultiSizeEmbedding: ShardedMultiSizeEmbedding,
    MultiSizeEmbeddingBag: ShardedMultiSizeEmbeddingBag,
}


def follow_rates(model: nn.Module, optimizer: Optimizer) -> None:
    """Let the rows of sharded tables go by the learning rate of an optimiser, if there are any.

    It is that of the group that holds the ``weight`` of the layer, whatever schedules make of it.
    The sums of Adagrad begin anew, and are in the state of the optimiser from now on. Called where
    optimisers are made: in ``configure_optimizers``, with Lightning.

    Args:
        model: The model.
        optimizer: An optimiser of its parameters.

    Raises:
        ValueError: If no group of the optimiser holds the ``weight`` of a sharded table.
    """
    layers = {name: each for name, each in model.named_modules() if isinstance(each, ShardedRows)}
    for layer in layers.values():
        if not layer.shards.follow(optimizer, layer.weight):
            raise ValueError(
                f"`optimizer` must have the `weight` of the sharded table of "
                f"{layer.shards.name!r} in a group, by whose learning rate its rows go."
            )
    if not layers:
        return

    def save(_: Optimizer, state: dict[str, Any]) -> None:
        own = _own.get()
        sums = {name: each.shards.optimizer_state(own=own) for name, each in layers.items()}
        state[_STATE] = sums

    def load(_: Optimizer, state: dict[str, Any]) -> None:
        for name, sums in state.pop(_STATE, {}).items():
            layers[name].shards.load_optimizer_state(sums)

    optimizer.register_state_dict_post_hook(save)
    optimizer.register_load_state_dict_pre_hook(load)
