"""Tables that one process cannot hold: rows spread over all processes, by TorchRec.

Needs torchrec and fbgemm-gpu-cpu, of the releases that go with torch, and a process group: all
processes run the same program, which begins with
``torch.distributed.init_process_group("gloo")``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.overrides import TorchFunctionMode

from optuna_nis._checks import check_integer, check_number
from optuna_nis.nn._sharded_layers import (
    FIRST_ROW,
    SHARDED,
    WHOLE,
    ShardedRows,
    ShardedSupernetEmbedding,
    ShardedTier,
    follow_rates,
    own_rows,
)
from optuna_nis.nn._sharded_table import ShardedTable
from optuna_nis.nn.multi_size import MultiSize
from optuna_nis.nn.output import OutputLayer
from optuna_nis.nn.supernet import SupernetEmbedding
from optuna_nis.nn.table import OfFields
from optuna_nis.space.allocation import Allocation, TableAllocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec

__all__ = ["follow_rates", "shard_tables", "sharded", "sharded_state_dict"]

Model = TypeVar("Model", bound=nn.Module)

#: Tables of more rows are spread over the processes.
ABOVE = 1_000_000


def sharded(
    build: Callable[[Any], Model], *, above: int = ABOVE, learning_rate: float | None = None
) -> Callable[[SearchSpace | Allocation], Model]:
    """A function that makes models whose large tables no process ever has as a whole.

    Args:
        build: Makes a supernet of a :class:`~optuna_nis.SearchSpace` and a model of an
            :class:`~optuna_nis.Allocation`, as :func:`~optuna_nis.models.reference_model` gives.
        above: As in :func:`shard_tables`.
        learning_rate: As in :func:`shard_tables`.

    Raises:
        TypeError: If ``build`` is no function.
        ValueError: If an argument is out of range; where a model is made, as in
            :func:`shard_tables`.

    Example:
        >>> from optuna_nis import EmbeddingSpec
        >>> from optuna_nis.models import RankingModule
        >>> build = sharded(RankingModule, above=2_000_000)
        >>> build(SearchSpace([EmbeddingSpec("user", 3_000_000, 8)]))
        Traceback (most recent call last):
        ...
        RuntimeError: Tables are spread over the processes of a process group, and there is none...
    """
    if isinstance(build, nn.Module) or not callable(build):
        raise TypeError(
            "`build` must be a function that makes a model of given sizes, such as "
            f"`reference_model(data.features)`, got {type(build).__name__}."
        )
    _check(above, learning_rate)

    def build_sharded(tables: SearchSpace | Allocation) -> Model:
        _check_group(above)
        _check_kinds(tables, above)
        with _LargeOnMeta(above):
            model = build(tables)
        kept = {id(layer) for layer, _, _ in _to_shard(model, above)}
        for module in model.modules():
            if id(module) not in kept and any(p.is_meta for p in module.parameters(False)):
                # Large, but not to be sharded, such as the table of an output layer.
                module.to_empty(device="cpu", recurse=False)
                module.reset_parameters()  # type: ignore[operator]
        if not kept and isinstance(tables, Allocation):
            # Large tables may have been removed, or have few rows left.
            return model
        return shard_tables(model, above=above, learning_rate=learning_rate)

    setattr(build_sharded, WHOLE, build)
    return build_sharded


def shard_tables(model: Model, *, above: int = ABOVE, learning_rate: float | None = None) -> Model:
    """Spread the rows of large tables over all processes; the model is changed in place.

    Each process has as many rows of such a table, and looks ids up in all of them: TorchRec's
    row-wise sharding. Rows are moved in the backward pass, by row-wise Adagrad as in
    :class:`~optuna_nis.nn.RowwiseAdagrad`, with the mean of the gradients over the processes. So
    the model trains as with ``DistributedDataParallel``, which leaves these tables alone. All
    processes must run the model equally often.

    Sharded are the table of a supernet's layer, and the tiers of a multi-size layer, each by
    itself; tables of output layers stay whole. Ids without a row give zeros, numbers have 32 bits.
    Of a table on the meta device the rows are drawn.

    ``state_dict()``, which all processes must call, has all rows in the first process, as a model
    that is not sharded has them, and can be loaded into any, sharded or not. So have checkpoints
    of Lightning, which the first process writes. In the other processes it has their own rows, to
    be loaded there again. For tables that no process can hold there is
    :func:`sharded_state_dict`.

    Args:
        model: A supernet, or a model with multi-size layers, before its optimisers are made.
        above: Tables of more rows are sharded.
        learning_rate: Of row-wise Adagrad. By default that which an optimiser has for the
            ``weight`` of the layer, see :func:`follow_rates`; reference models tell it themselves.

    Returns:
        The model.

    Raises:
        RuntimeError: If there is no process group.
        ValueError: If an argument is out of range, no feature has so many ids, or a table of so
            many rows cannot be sharded: its gradients are not sparse, it may have fewer than 32
            bits or rows that ids share, or it is one of several fields of a layer.

    Example:
        >>> store = torch.distributed.HashStore()
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> layer = SupernetEmbedding(EmbeddingSpec("user", 1000, 8), sparse=True)
        >>> model = shard_tables(nn.Sequential(layer), above=500, learning_rate=0.1)
        >>> model(torch.tensor([3, 4])).shape, len(model.state_dict()["0.weight"])
        (torch.Size([2, 8]), 1001)
        >>> torch.distributed.destroy_process_group()
    """
    _check(above, learning_rate)
    _check_group(above)
    found = list(_to_shard(model, above))
    sizes = [layer.num_ids for layer in _looked_up(model)]
    if max(sizes, default=0) <= above:
        raise ValueError(
            "`above` must be less than the ids of the largest table that is looked up in "
            f"`model`, {max(sizes, default=0)}, got {above}."
        )
    for layer, kind, name in found:
        weight = layer.weight
        layer.shards = ShardedTable(name, len(weight), weight.shape[1], learning_rate)
        if weight.is_meta:
            layer.shards.draw(layer.init_std)
        else:
            layer.shards.load(weight)
        layer.weight = nn.Parameter(weight.new_empty(0, weight.shape[1], device="cpu"), False)
        object.__setattr__(layer, "__class__", kind)
    for module in list(model.modules()):
        becomes = SHARDED.get(type(module))
        if becomes is not None and any(isinstance(tier, ShardedTier) for tier in module.modules()):
            object.__setattr__(module, "__class__", becomes)
    return model


def sharded_state_dict(model: nn.Module) -> dict[str, Any]:
    """The state of a model for :mod:`torch.distributed.checkpoint`: no process has all rows.

    Sharded tables are a :class:`torch.distributed.tensor.DTensor` under the name that the table
    has in the model that is not sharded, and ``torch.distributed.checkpoint.load`` puts rows into
    the model in place. So a state that is saved from sharded tables can be loaded into whole ones,
    and into those of another number of processes.

    Args:
        model: The model.

    Example:
        >>> from torch.distributed import checkpoint
        >>> folder = getfixture("tmp_path")
        >>> torch.distributed.init_process_group(
        ...     "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
        ... )
        >>> spec = EmbeddingSpec("user", 1000, 8)
        >>> build = lambda: nn.Sequential(SupernetEmbedding(spec, sparse=True))
        >>> model = shard_tables(build(), above=500)
        >>> _ = checkpoint.save(sharded_state_dict(model), checkpoint_id=folder)
        >>> whole = build()
        >>> checkpoint.load(whole.state_dict(), checkpoint_id=folder)
        >>> torch.equal(whole[0].weight, model.state_dict()["0.weight"])
        True
        >>> torch.distributed.destroy_process_group()
    """
    with own_rows():
        state = model.state_dict()
    for name, layer in model.named_modules():
        if isinstance(layer, ShardedRows):
            prefix = f"{name}." if name else ""
            state.pop(f"{prefix}{FIRST_ROW}", None)
            state[f"{prefix}weight"] = layer.shards.distributed_state()
    return state


class _LargeOnMeta(TorchFunctionMode):
    """Tables of more rows than some number are made without memory."""

    def __init__(self, above: int) -> None:
        super().__init__()
        self._above = above

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Make what is large on the meta device."""
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("device") is None:
            shape = args if args and isinstance(args[0], int) else (*args, ())[0]
            if len(shape) == 2 and shape[0] > self._above:
                kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _looked_up(model: nn.Module) -> list[SupernetEmbedding | MultiSize]:
    """The layers of tables that no output layer needs as a whole."""
    outputs = {
        id(field)
        for layer in model.modules()
        if isinstance(layer, OutputLayer)
        for field in layer.field_layers()
    }
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, SupernetEmbedding | MultiSize) and id(layer) not in outputs
    ]


def _to_shard(model: nn.Module, above: int) -> Iterator[tuple[Any, type[ShardedRows], str]]:
    """The layers whose rows are to be spread, what they become, and what they are called.

    Raises:
        ValueError: If one cannot be.
    """
    of_several = {
        id(field)
        for layer in model.modules()
        if isinstance(layer, OfFields) and len(layer.field_layers()) > 1
        for field in layer.field_layers()
    }
    for layer in _looked_up(model):
        if layer.num_ids <= above or isinstance(layer, ShardedRows):
            continue
        problem = ""
        if isinstance(layer, SupernetEmbedding):
            problem = _problem(layer.spec)
        else:
            problem = _problem(layer.table)
        if not layer.sparse:
            problem = "its gradients are dense: make the layer with `sparse=True`"
        elif id(layer) in of_several:
            problem = "it is one of several fields of a layer"
        if problem:
            raise ValueError(f"The table of {layer.name!r} cannot be sharded: {problem}.")
        if isinstance(layer, SupernetEmbedding):
            yield layer, ShardedSupernetEmbedding, layer.name
        else:
            for number, tier in enumerate(layer.tier_modules()):
                if tier.num_embeddings > above and not isinstance(tier, ShardedRows):
                    yield tier, ShardedTier, f"{layer.name}, tier {number}"


def _check_kinds(tables: SearchSpace | Allocation, above: int) -> None:
    """Check that large tables of given sizes are such as can be sharded.

    Raises:
        ValueError: If one is not.
    """
    for table in tables.specs if isinstance(tables, SearchSpace) else tables.values():
        if table.num_embeddings > above and (problem := _problem(table)):
            raise ValueError(f"The table of {table.name!r} cannot be sharded: {problem}.")


def _problem(table: EmbeddingSpec | TableAllocation) -> str:
    """Why rows of such a table cannot be spread, if they cannot."""
    if isinstance(table, EmbeddingSpec):
        few_bits, shares = table.precisions != (32,), len(table.shares) > 1
    else:
        few_bits = any(tier.bits != 32 for tier in table.tiers)
        shares = table.num_shared > 0
    if few_bits:
        return "its numbers may have fewer than 32 bits"
    return "ids may share rows of it, `oov` must be 'zero'" if shares else ""


def _check(above: object, learning_rate: object) -> None:
    check_integer("above", above, 1)
    if learning_rate is not None:
        check_number("learning_rate", learning_rate, 0, or_least=False)


def _check_group(above: int) -> None:
    """Check that there are processes, and that each gets rows of every table.

    Raises:
        RuntimeError: If there is no process group.
        ValueError: If tables may be so small that a process would have none.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise RuntimeError(
            "Tables are spread over the processes of a process group, and there is none: start "
            "the program with torchrun, and let it begin with "
            '`torch.distributed.init_process_group("gloo")`.'
        )
    least = distributed.get_world_size() ** 2
    if above < least:
        raise ValueError(
            f"`above` must be at least {least}, the square of the number of processes, so that "
            f"each has rows of every table that is sharded, got {above}."
        )
