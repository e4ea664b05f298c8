"""Making the embedding layers of any model searchable, and giving them the sizes found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn

from optuna_nis.allocation import Allocation, TableAllocation
from optuna_nis.nn.multi_size import BagMode, MultiSizeEmbedding, MultiSizeEmbeddingBag, Tier
from optuna_nis.nn.supernet import SupernetEmbedding, supernet_layers
from optuna_nis.nn.swapped import (
    Field,
    SwappedEmbedding,
    SwappedEmbeddingBag,
    become,
    swapped_layers,
)
from optuna_nis.space import EmbeddingSpec, Mode, SearchSpace

#: Occurrences of every id of some tables, by the names of their layers.
Counts: TypeAlias = Mapping[str, "Tensor | Sequence[int] | NDArray[np.int64]"]
#: Sizes of the fields of some fused tables, by the names of their layers.
FieldSizes: TypeAlias = Mapping[str, "Sequence[int] | Mapping[str, int]"]
Model = TypeVar("Model", bound=nn.Module)

_Plain = nn.Embedding | nn.EmbeddingBag


def make_searchable(
    model: nn.Module,
    *,
    budget: int | float | str | None = None,
    counts: Counts | None = None,
    include: Collection[str] | None = None,
    exclude: Collection[str] = (),
    fields: FieldSizes | None = None,
    mode: Mode = "multi",
    dtype: str = "float32",
) -> SearchSpace:
    """Turn the embedding layers of a model into supernet layers, in place.

    Every :class:`torch.nn.Embedding` and :class:`torch.nn.EmbeddingBag`, however nested, becomes
    a feature of a search space. Until a choice is set the model predicts what it did before:
    pretrained weights are the start of the supernet. Forward code, attributes of the layers and
    optimiser stay as they are; the weights stay the same :class:`torch.nn.Parameter` objects, with
    their rows sorted by frequency and one row of zeros more. State that an optimiser has already
    gathered no longer fits.

    A layer that is used for several features, and layers with the same weight and settings, are
    one feature. What is not supported is refused by name: ``max_norm``, ``scale_grad_by_freq``,
    subclasses, and weights that are shared with something other than an embedding.

    Args:
        model: The model. Nothing is changed if an error is raised.
        budget: As in :class:`~optuna_nis.SearchSpace`.
        counts: For every table by the name of its layer, how often each id occurs in the training
            data; see :func:`count_ids`. The ids of a table that is not named here must be
            sorted by falling frequency.
        include: Patterns (as of :mod:`fnmatch`) of the names of the layers to swap, as in
            :meth:`~torch.nn.Module.named_modules`. By default all.
        exclude: Patterns of the names of the layers to leave alone, such as ``"linear.*"``.
        fields: For tables in which the ids of several features follow each other, by the name of
            the layer, the number of ids of each feature, or a mapping from its name to it. The
            features are called ``layer.0``, ``layer.1`` or ``layer.name``.
        mode: As in :class:`~optuna_nis.SearchSpace`.
        dtype: As in :class:`~optuna_nis.SearchSpace`.

    Returns:
        The space. A feature is named after its layer.

    Raises:
        ValueError: If a layer cannot be swapped, a name or pattern fits no layer, or counts,
            fields or budget do not fit.

    Example:
        >>> model = nn.ModuleDict({"user": nn.Embedding(100, 8), "item": nn.Embedding(60, 8)})
        >>> ids = torch.tensor([3, 59])
        >>> before = model["item"](ids)
        >>> space = make_searchable(model, budget="25%")
        >>> [spec.name for spec in space.specs]
        ['user', 'item']
        >>> torch.equal(model["item"](ids), before)
        True
    """
    plain = plain_layers(model)
    _check_patterns("include", include or (), plain)
    _check_patterns("exclude", exclude, plain)
    _check_names("counts", counts or (), list(plain))
    tables = _find_tables(
        model,
        lambda name: (include is None or _fits(name, include)) and not _fits(name, exclude),
    )
    if not tables:
        raise ValueError(f"`model` has no embedding layer to swap: {type(model).__name__}.")
    _check_names("fields", fields or (), [table.name for table in tables])
    plans = []
    for table in tables:
        plan = _Plan(table, _checked_counts(table, (counts or {}).get(table.name)))
        for name, start, size in _field_sizes(table, (fields or {}).get(table.name)):
            part = None if plan.counts is None else plan.counts[start : start + size]
            plan.specs.append(_spec(name, size, table.embedding_dim, part))
            plan.parts.append((start, size))
        plans.append(plan)
    space = SearchSpace(
        [spec for plan in plans for spec in plan.specs], budget=budget, mode=mode, dtype=dtype
    )
    for plan in plans:
        _swap(plan, [_supernet_field(plan, spec) for spec in plan.specs])
    return space


def apply_allocation(
    model: Model, allocation: Allocation, *, counts: Counts | None = None
) -> Model:
    """Give the embedding layers of a model the sizes of an allocation, in place.

    A model that was made searchable, and trained, keeps its weights: it then predicts what the
    supernet does under this choice. In a model that was not, tiers as wide as the table keep its
    rows, and narrower ones start anew with the same standard deviation, to be trained.

    The weights are new parameters: make optimisers, and what else holds on to weights, anew.

    Args:
        model: A searchable model, or a newly built one of the same structure.
        allocation: The sizes, named as the features of :func:`make_searchable`.
        counts: As given to :func:`make_searchable`; not needed for a searchable model.

    Returns:
        The model.

    Raises:
        ValueError: If the allocation does not fit the model. Nothing is changed then.

    Example:
        >>> from optuna_nis import Tier
        >>> table = TableAllocation("user", 100, 8, (Tier(10, 8), Tier(40, 2)))
        >>> model = nn.ModuleDict({"user": nn.Embedding(100, 8)})
        >>> model = apply_allocation(model, Allocation([table]))
        >>> sum(p.numel() for p in model.parameters()) == table.num_parameters
        True
    """
    if any(isinstance(f, SupernetEmbedding) for s in swapped_layers(model) for f in s.fields):
        _shrink(model, allocation)
        return model
    _check_names("counts", counts or (), list(plain_layers(model)))
    tables = _find_tables(model, lambda name: bool(_features_of(name, allocation)))
    plans = []
    for table in tables:
        plan = _Plan(table, _checked_counts(table, (counts or {}).get(table.name)))
        start = 0
        for feature in _features_of(table.name, allocation):
            size = allocation[feature].num_embeddings
            plan.parts.append((start, size))
            plan.sizes.append(allocation[feature])
            start += size
        widths = {size.embedding_dim for size in plan.sizes}
        if start != table.num_embeddings or widths != {table.embedding_dim}:
            raise ValueError(
                f"`allocation` must be of the {table.num_embeddings}x{table.embedding_dim} table "
                f"{table.name!r}, got {', '.join(map(str, plan.sizes))}."
            )
        plans.append(plan)
    known = {size.name for plan in plans for size in plan.sizes}
    if unknown := set(allocation) - known:
        raise ValueError(
            f"`allocation` has features {sorted(unknown)}, which are not among the embedding "
            f"layers of `model`, {list(plain_layers(model))}."
        )
    for plan in plans:
        _swap(plan, [_multi_size_field(plan, index) for index in range(len(plan.sizes))])
    return model


@dataclass
class _Table:
    """A weight, and the layers that look ids up in it."""

    name: str
    layers: list[_Plain]
    weight: nn.Parameter

    @property
    def num_embeddings(self) -> int:
        return int(self.weight.shape[0])

    @property
    def embedding_dim(self) -> int:
        return int(self.weight.shape[1])

    @property
    def padding_idx(self) -> int | None:
        return self.layers[0].padding_idx


@dataclass
class _Plan:
    """What becomes of a table: fields from a first id on, of so many ids."""

    table: _Table
    counts: NDArray[np.int64] | None
    specs: list[EmbeddingSpec] = field(default_factory=list)
    sizes: list[TableAllocation] = field(default_factory=list)
    parts: list[tuple[int, int]] = field(default_factory=list)
    padding_row: Tensor | None = None

    def __post_init__(self) -> None:
        padding = self.table.padding_idx
        if padding is not None:
            if self.counts is not None:
                self.counts[padding] = 0
            row = self.table.weight.detach()[padding].clone()
            self.padding_row = row if bool(row.any()) else None

    @property
    def sparse(self) -> bool:
        return self.table.layers[0].sparse

    def mode(self) -> BagMode | None:
        """How the layers of the fields pool; those of several fields are added, then divided."""
        layer = self.table.layers[0]
        if isinstance(layer, nn.Embedding):
            return None
        return "mean" if layer.mode == "mean" and len(self.parts) == 1 else "sum"

    def ranks(self, index: int) -> Tensor | None:
        """Rank of every id of a field; None if ids are ranks already."""
        start, size = self.parts[index]
        if self.counts is None:
            return None
        counts = self.counts[start : start + size].copy()
        padding = self.table.padding_idx
        if padding is not None and start <= padding < start + size:
            # Whatever its count, the row of padding is never looked up.
            counts[padding - start] = -1
        if (counts[:-1] >= counts[1:]).all():
            return None
        ranks = np.empty(size, dtype=np.int64)
        ranks[np.argsort(-counts, kind="stable")] = np.arange(size)
        return torch.from_numpy(ranks)

    def rows(self, index: int) -> Tensor:
        """The rows of a field as they are, by id."""
        start, size = self.parts[index]
        return self.table.weight.detach()[start : start + size]


def plain_layers(model: nn.Module) -> dict[str, _Plain]:
    """The embedding layers of a model that were not swapped, by name."""
    return {
        name or "embedding": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        and not isinstance(
            module, SwappedEmbedding | SwappedEmbeddingBag | SupernetEmbedding | Tier
        )
    }


def _find_tables(model: nn.Module, selected: Callable[[str], bool]) -> list[_Table]:
    """The tables to swap, each once."""
    owners = _owners(model)
    tables: dict[int, _Table] = {}
    for name, layer in plain_layers(model).items():
        if id(layer.weight) in tables:
            tables[id(layer.weight)].layers.append(layer)
        elif selected(name):
            _check_layer(name, layer)
            assert isinstance(layer.weight, nn.Parameter)
            tables[id(layer.weight)] = _Table(name, [layer], layer.weight)
    for table in tables.values():
        _check_owners(table, owners[id(table.weight)])
    return list(tables.values())


def _fits(name: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(argument: str, patterns: Collection[str], names: Collection[str]) -> None:
    if isinstance(patterns, str):
        raise ValueError(f"`{argument}` must be a list of patterns, got {patterns!r}.")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"`{argument}` has {pattern!r}, which fits none of the embedding layers "
                f"{list(names)}."
            )


def _check_names(argument: str, given: Collection[str], names: Collection[str]) -> None:
    for name in given:
        if name not in names:
            raise ValueError(
                f"`{argument}` names {name!r}, which is none of the embedding layers "
                f"{list(names)}."
            )


def _check_layer(name: str, layer: _Plain) -> None:
    problem = ""
    if type(layer) not in (nn.Embedding, nn.EmbeddingBag):
        problem = f"it is a {type(layer).__name__}, a subclass that may do more than look up"
    elif layer.max_norm is not None:
        problem = f"max_norm={layer.max_norm} changes rows while they are looked up"
    elif layer.scale_grad_by_freq:
        problem = "scale_grad_by_freq=True is not supported"
    elif not layer.weight.is_floating_point():
        problem = f"its weight is of type {layer.weight.dtype}"
    if problem:
        raise ValueError(f"The layer {name!r} cannot be swapped: {problem}. `exclude` it.")


def _owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Which modules hold each parameter, by its id."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                path = f"{name}.{key}" if name else key
                owners.setdefault(id(parameter), []).append((path, module))
    return owners


def _check_owners(table: _Table, owners: Sequence[tuple[str, nn.Module]]) -> None:
    first = _settings(table.layers[0])
    for path, module in owners:
        if not any(module is layer for layer in table.layers) or _settings(module) != first:
            others = [other for other, _ in owners]
            raise ValueError(
                f"The weight of {table.name!r} is tied: {path!r} is one of {others}. Only "
                "embeddings of the same kind and settings may share a weight. Untie it or "
                f"`exclude` {table.name!r}."
            )


def _settings(layer: nn.Module) -> tuple[Any, ...]:
    names = ("padding_idx", "mode", "sparse", "max_norm", "scale_grad_by_freq")
    return (type(layer), *(getattr(layer, name, None) for name in names))


def _checked_counts(table: _Table, given: Any) -> NDArray[np.int64] | None:
    if given is None:
        return None
    counts = np.asarray(torch.as_tensor(given).cpu())
    if counts.shape != (table.num_embeddings,) or counts.dtype.kind not in "iu":
        raise ValueError(
            f"`counts` of {table.name!r} must be {table.num_embeddings} integers, got shape "
            f"{counts.shape} of {counts.dtype}."
        )
    if counts.min() < 0:
        raise ValueError(f"`counts` of {table.name!r} must not be negative, got {counts.min()}.")
    return counts.astype(np.int64)


def _field_sizes(
    table: _Table, given: Sequence[int] | Mapping[str, int] | None
) -> Iterator[tuple[str, int, int]]:
    """Name, first id and number of ids of each field."""
    if given is None:
        yield table.name, 0, table.num_embeddings
        return
    named = given if isinstance(given, Mapping) else {str(i): n for i, n in enumerate(given)}
    if sum(named.values()) != table.num_embeddings:
        raise ValueError(
            f"`fields` of {table.name!r} must sum to {table.num_embeddings}, got "
            f"{list(named.values())}."
        )
    start = 0
    for name, size in named.items():
        yield f"{table.name}.{name}", start, int(size)
        start += int(size)


def _spec(name: str, size: int, dim: int, counts: NDArray[np.int64] | None) -> EmbeddingSpec:
    if counts is None:
        return EmbeddingSpec(name, size, dim)
    return EmbeddingSpec.from_counts(name, counts.tolist(), dim)


def _features_of(table: str, allocation: Allocation) -> list[str]:
    if table in allocation:
        return [table]
    return [name for name in allocation if name.startswith(f"{table}.")]


@torch.no_grad()
def _supernet_field(plan: _Plan, spec: EmbeddingSpec) -> SupernetEmbedding:
    index = plan.specs.index(spec)
    rows, ranks = plan.rows(index), plan.ranks(index)
    layer = SupernetEmbedding(spec, mode=plan.mode(), ranks=ranks, sparse=plan.sparse)
    layer.to(rows)
    layer.weight[-1].zero_()
    layer.weight[:-1].copy_(rows) if ranks is None else layer.weight.index_copy_(
        0, ranks.to(rows.device), rows
    )
    if len(plan.parts) == 1:
        # The same object as before: optimisers and regularisers that hold it stay right.
        weight, plan.table.weight.grad = plan.table.weight, None
        weight.data = layer.weight.data
        layer.weight = weight
    else:
        layer.weight.requires_grad_(plan.table.weight.requires_grad)
    return layer


@torch.no_grad()
def _multi_size_field(plan: _Plan, index: int) -> Field:
    rows, ranks, table = plan.rows(index), plan.ranks(index), plan.sizes[index]
    std = float(rows.float().std()) if rows.numel() > 1 else 0.0
    layer: Field
    mode = plan.mode()
    if mode is None:
        layer = MultiSizeEmbedding(table, ranks=ranks, init_std=std, sparse=plan.sparse)
    else:
        layer = MultiSizeEmbeddingBag(
            table, mode=mode, ranks=ranks, init_std=std, sparse=plan.sparse
        )
    layer.to(rows)
    if table.tiers and table.tiers[0].embedding_dim == table.embedding_dim:
        kept = slice(0, table.tiers[0].num_embeddings)
        ids = torch.arange(len(rows)) if ranks is None else ranks.argsort()
        layer.tier_modules()[0].weight.copy_(rows[ids[kept].to(rows.device)])
    for tier in layer.tier_modules():
        tier.weight.requires_grad_(plan.table.weight.requires_grad)
    return layer


def _swap(plan: _Plan, fields: Sequence[Field]) -> None:
    """Change the class of all layers of a table; they share the fields."""
    shared = nn.ModuleList(fields)
    for layer in plan.table.layers:
        if isinstance(layer, nn.Embedding):
            become(layer, SwappedEmbedding, shared)
            layer.register_buffer("_padding_row", plan.padding_row)
        else:
            become(layer, SwappedEmbeddingBag, shared)


def _shrink(model: nn.Module, allocation: Allocation) -> None:
    """Replace the supernet layers of a searchable model by multi-size layers of their weights."""
    layers = supernet_layers(model)
    if set(layers) != set(allocation):
        raise ValueError(
            f"`allocation` must have the features of `model`, {sorted(layers)}, got "
            f"{sorted(allocation)}."
        )
    for name, layer in layers.items():
        spec, table = layer.spec, allocation[name]
        if (table.num_embeddings, table.embedding_dim) != (
            spec.num_embeddings,
            spec.embedding_dim,
        ):
            raise ValueError(f"`allocation` of {name!r} must be of {spec}, got {table}.")
    done: dict[int, nn.ModuleList] = {}
    for swapped in swapped_layers(model):
        fields = swapped.fields
        if id(fields) not in done:
            done[id(fields)] = nn.ModuleList(
                _shrunk(layer, allocation[layer.spec.name])
                for layer in swapped.field_layers()
                if isinstance(layer, SupernetEmbedding)
            )
        swapped.set_fields(done[id(fields)])


def _shrunk(supernet: SupernetEmbedding, table: TableAllocation) -> Field:
    ranks = None if supernet._ranks is None else supernet._ranks[:-1].cpu()
    layer: Field
    if supernet.mode is None:
        layer = MultiSizeEmbedding(table, ranks=ranks, sparse=supernet.sparse)
    else:
        layer = MultiSizeEmbeddingBag(
            table, mode=supernet.mode, ranks=ranks, sparse=supernet.sparse
        )
    layer.to(supernet.weight)
    supernet.copy_to(layer)
    for tier in layer.tier_modules():
        tier.weight.requires_grad_(supernet.weight.requires_grad)
    return layer
