"""Making the tables of any model searchable, and giving them the sizes found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeAlias, TypeVar
import warnings

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn

from optuna_nis.nn._fields import (
    Plan,
    counts_of,
    field_sizes,
    multi_size_field,
    shrunk,
    spec_of,
    supernet_field,
)
from optuna_nis.nn._graphs import check_unused
from optuna_nis.nn._optimizers import hand_over, holders, watch
from optuna_nis.nn._tables import (
    Table,
    bare_tables,
    check_names,
    check_not_lazy,
    check_patterns,
    find_tables,
    fits,
    late_layers,
    linear_layers,
    no_layer_to,
    plain_layers,
    swapped_names,
)
from optuna_nis.nn.choices import supernet_layers
from optuna_nis.nn.supernet import SupernetEmbedding
from optuna_nis.nn.swapped import become, swapped_layers
from optuna_nis.nn.table import TableLayer
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import Mode, SearchSpace
from optuna_nis.space.spec import Oov, replace_oov, replace_precisions

#: Occurrences of every id of some tables, by the names of their layers.
Counts: TypeAlias = Mapping[str, "Tensor | Sequence[int] | NDArray[np.int64]"]
#: Sizes of the fields of some fused tables, by the names of their layers.
FieldSizes: TypeAlias = Mapping[str, "Sequence[int] | Mapping[str, int]"]
Model = TypeVar("Model", bound=nn.Module)


def make_searchable(
    model: nn.Module,
    *,
    budget: int | float | str | None = None,
    counts: Counts | None = None,
    include: Collection[str] | None = None,
    exclude: Collection[str] = (),
    outputs: Collection[str] = (),
    fields: FieldSizes | None = None,
    mode: Mode = "multi",
    precisions: Sequence[int] = (32,),
    oov: Oov = "zero",
    dtype: str = "float32",
) -> SearchSpace:
    """Turn the embedding layers of a model, and its output layers, into supernet layers, in place.

    Every :class:`torch.nn.Embedding` and :class:`torch.nn.EmbeddingBag`, however nested, becomes
    a feature of a search space. Until a choice is set the model predicts what it did before:
    pretrained weights are the start of the supernet. Forward code and attributes of the layers
    stay as they are; the weights of tables without ``fields`` stay the same
    :class:`torch.nn.Parameter` objects, with their rows sorted by frequency and one row of zeros
    more.

    Frozen tables, and tables that were trained before, are turned so that the first numbers of
    their rows say most of them: every choice is then the best approximation of its widths. Of a
    frozen table neither rows nor projection are trained.

    Optimisers that were made before and have made no step hold what the tables become, their
    projections too. Others raise a RuntimeError at their next step, since their state does not
    fit; and a warning at the first step names what no optimiser has.

    A layer that is used for several features, and layers with the same weight and settings, are
    one feature. So are an embedding and the :class:`torch.nn.Linear` that has its weight, as in
    GPT-2, BERT and SASRec, and code that multiplies by the ``weight`` of an embedding. The row of
    padding stays as it is in both. What is not supported is refused by name: ``max_norm``,
    ``scale_grad_by_freq``, subclasses, and weights that are shared with other layers. Parameters
    that look like tables but are of no embedding layer are left alone, with a warning.

    Args:
        model: The model. Nothing is changed if an error is raised.
        budget: As in :class:`~optuna_nis.SearchSpace`.
        counts: For every table by the name of its layer, how often each id occurs in the training
            data; see :func:`count_ids`. Those of several layers of one weight are added. The ids
            of a table that is not named here must be sorted by falling frequency; there is a
            warning if others are named.
        include: Patterns (as of :mod:`fnmatch`) of the names of the layers to swap, as in
            :meth:`~torch.nn.Module.named_modules`. By default all.
        exclude: Patterns of the names of the layers to leave alone, such as ``"linear.*"``.
        outputs: Patterns of the names of :class:`torch.nn.Linear` layers whose weight is searched
            too, as a table of as many ids as the layer has outputs: the softmax over many items.
            Give their ``counts``, how often each output is the target; without, outputs must be
            sorted by falling frequency. Biases stay as they are and are not counted.
        fields: For tables in which the ids of several features follow each other, by the name of
            the layer, the number of ids of each feature, or a mapping from its name to it. The
            features are called ``layer.0``, ``layer.1`` or ``layer.name``.
        mode: As in :class:`~optuna_nis.SearchSpace`.
        precisions: Bits that a number may have, as in :class:`~optuna_nis.EmbeddingSpec`, of every
            table.
        oov: What ids without a row give, as in :class:`~optuna_nis.EmbeddingSpec`, in every table.
        dtype: As in :class:`~optuna_nis.SearchSpace`.

    Returns:
        The space. A feature is named after its layer.

    Raises:
        ValueError: If a layer cannot be swapped, or has no shape before its first batch, a name
            or pattern fits no layer, counts, fields or budget do not fit, a precision is unknown,
            the layers were swapped before, or a computation is held that needs a table as it is.

    Example:
        >>> import torch
        >>> model = nn.ModuleDict({"user": nn.Embedding(100, 8), "item": nn.Embedding(60, 8)})
        >>> ids = torch.tensor([3, 59])
        >>> before = model["item"](ids)
        >>> space = make_searchable(model, budget="25%")
        >>> [spec.name for spec in space.specs]
        ['user', 'item']
        >>> torch.equal(model["item"](ids), before)
        True
    """
    check_not_lazy(model)
    layers = [*plain_layers(model), *swapped_names(model)]
    bare = [] if include is not None else list(bare_tables(model))
    linear = list(linear_layers(model))
    check_patterns("include", include or (), layers)
    check_patterns("exclude", exclude, [*layers, *bare])
    check_patterns("outputs", outputs, linear, "linear layers")
    tables = find_tables(
        model,
        lambda name: (include is None or fits(name, include)) and not fits(name, exclude),
        lambda name: fits(name, outputs),
    )
    if not tables:
        raise ValueError(no_layer_to("swap", model))
    for table in tables:
        _check_excluded(table, exclude)
    check_names("counts", counts or (), _with_counts(layers, tables))
    check_names("fields", fields or (), [table.name for table in tables])
    plans = []
    for table in tables:
        plan = Plan(table, counts_of(table, counts))
        for name, start, size in field_sizes(table, (fields or {}).get(table.name)):
            part = None if plan.counts is None else plan.counts[start : start + size]
            spec = spec_of(name, size, table.embedding_dim, part)
            plan.specs.append(replace_oov(replace_precisions(spec, precisions), oov))
            plan.parts.append((start, size))
        plans.append(plan)
    space = SearchSpace(
        [spec for plan in plans for spec in plan.specs], budget=budget, mode=mode, dtype=dtype
    )
    for plan in plans:
        if len(plan.parts) == 1:
            check_unused(plan.table.weight, plan.table.name)
    _warn(tables, counts, [name for name in bare if not fits(name, exclude)])
    _swap(model, plans, supernet_field)
    return space


def apply_allocation(
    model: Model, allocation: Allocation, *, counts: Counts | None = None
) -> Model:
    """Give the tables of a model the sizes of an allocation, in place.

    A model that was made searchable, and trained, keeps its weights: it then predicts what the
    supernet does under this choice, with numbers of 16 bits to their accuracy. In a model that was
    not, tiers as wide as the table keep its rows. Narrower ones are the best approximation of a
    table that is frozen or was trained before; where there is nothing to keep they start anew with
    the same standard deviation. Frozen tables stay frozen, rows and projection.

    The weights are new parameters: make what holds on to weights anew. Optimisers that have made
    no step yet hold the new ones, others raise a RuntimeError at their next step.

    Args:
        model: A searchable model, or a newly built one of the same structure.
        allocation: The sizes, named as the features of :func:`make_searchable`; one that is named
            after a :class:`torch.nn.Linear` is of that.
        counts: As given to :func:`make_searchable`; not needed for a searchable model.

    Returns:
        The model.

    Raises:
        ValueError: If the allocation does not fit the model, or it was given sizes before.
            Nothing is changed then.

    Example:
        >>> from optuna_nis import TableAllocation, Tier
        >>> table = TableAllocation("user", 100, 8, (Tier(10, 8), Tier(40, 2)))
        >>> model = nn.ModuleDict({"user": nn.Embedding(100, 8)})
        >>> model = apply_allocation(model, Allocation([table]))
        >>> sum(p.numel() for p in model.parameters()) == table.num_parameters
        True
    """
    if any(isinstance(f, SupernetEmbedding) for s in swapped_layers(model) for f in s.fields):
        _shrink(model, allocation)
        return model
    layers, linear = plain_layers(model), linear_layers(model)
    features = _features_of([*layers, *linear], allocation)
    tables = find_tables(model, features.__contains__, features.__contains__)
    check_names("counts", counts or (), _with_counts(layers, tables))
    plans = []
    for table in tables:
        plan = Plan(table, counts_of(table, counts))
        start = 0
        for feature in features[table.name]:
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
        if sized := swapped_names(model):
            raise ValueError(
                f"The layers {sized} of `model` were given sizes before. Build the model anew."
            )
        raise ValueError(
            f"`allocation` has features {sorted(unknown)}, which are not among the embedding "
            f"layers of `model`, {list(layers)}, nor its linear ones.{late_layers(model)}"
        )
    _swap(model, plans, multi_size_field)
    return model


def counts_by_rank(model: nn.Module) -> dict[str, Tensor]:
    """Counts by which :func:`apply_allocation` sorts the ids of a new model as a searchable one's.

    Args:
        model: A model that was made searchable.

    Returns:
        For the tables whose ids are not sorted already, numbers that fall with the rank.
    """
    counts = {}
    for swapped in swapped_layers(model):
        layers = swapped.field_layers()
        if any(layer.ranks is not None for layer in layers):
            counts[swapped._name] = torch.cat(
                [
                    layer.num_ids - (torch.arange(layer.num_ids) if ranks is None else ranks.cpu())
                    for layer in layers
                    for ranks in [layer.ranks]
                ]
            )
    return counts


def _features_of(layers: Sequence[str], allocation: Allocation) -> dict[str, list[str]]:
    """The features of an allocation by the layers that they are of.

    A feature is named after its layer, or is a field of it. Of layers inside of others it is the
    innermost.
    """
    found: dict[str, list[str]] = {}
    for feature in allocation:
        own = [name for name in layers if feature == name or feature.startswith(f"{name}.")]
        if own:
            found.setdefault(max(own, key=len), []).append(feature)
    return found


def _with_counts(layers: Collection[str], tables: Sequence[Table]) -> list[str]:
    """The layers that counts may name: embeddings, and what else is searched."""
    return [*dict.fromkeys([*layers, *(name for table in tables for name in table.names)])]


def _check_excluded(table: Table, exclude: Collection[str]) -> None:
    """Raise a ValueError if a table is to be swapped of which a layer is to be left alone."""
    names = table.names[: len(table.layers)]
    for name in names:
        if fits(name, exclude):
            other = next(each for each in names if not fits(each, exclude))
            raise ValueError(
                f"`exclude` leaves {name!r} alone, which has the weight of {other!r}: exclude "
                "both, or untie them before."
            )


def _warn(tables: Sequence[Table], counts: Counts | None, bare: Sequence[str]) -> None:
    """Say which tables are taken as sorted, and which are left alone, though nobody said so."""
    unnamed = [table.name for table in tables if counts and not counts.keys() & {*table.names}]
    if unnamed:
        warnings.warn(
            f"`counts` has none for {unnamed}, whose ids are taken as sorted by falling "
            "frequency. If they are not, count them too or `exclude` them.",
            stacklevel=3,
        )
    if bare:
        warnings.warn(
            f"The parameters {list(bare)} may be tables, but they are of no nn.Embedding: they "
            "are neither searched nor part of the budget. Hold each in an nn.Embedding and call "
            "that, or name them in `exclude` if this is right.",
            stacklevel=3,
        )
    for frozen, trained in _frozen_copies(tables):
        warnings.warn(
            f"The table of {frozen!r} is frozen and begins as a copy of that of {trained!r}. If "
            "it is to follow that, as a momentum or target network does, it no longer can: each "
            "has sizes and a projection of its own. Search without it, and copy the layer once it "
            "has its sizes.",
            stacklevel=3,
        )


def _frozen_copies(tables: Sequence[Table]) -> Iterator[tuple[str, str]]:
    """Names of frozen tables that hold what a trained one does, and of that."""
    trained = [table for table in tables if table.weight.requires_grad]
    for table in tables:
        weight = table.weight
        # Rows that are all alike, such as zeros, are no copy.
        if weight.requires_grad or weight.is_meta or bool((weight == weight[:1, :1]).all()):
            continue
        for other in trained:
            alike = (weight.shape, weight.device) == (other.weight.shape, other.weight.device)
            if alike and torch.equal(weight, other.weight):
                yield table.name, other.name
                break


def _swap(
    model: nn.Module, plans: Sequence[Plan], build: Callable[[Plan, int], TableLayer]
) -> None:
    """Change the class of all layers of some tables; those of a table share the fields."""
    # Each is known to this list, its plan and its layers.
    known = [2 + len(plan.table.layers) + len(plan.table.outputs) for plan in plans]
    optimizers = holders([plan.table.weight for plan in plans], known)
    for plan in plans:
        table = plan.table
        fields = nn.ModuleList(build(plan, index) for index in range(len(plan.parts)))
        hand_over(optimizers, table.name, [table.weight], fields)
        first, *_ = users = [*table.layers, *table.outputs]
        for layer in users:
            # What a state has twice, transformers does not save.
            guest = isinstance(layer, nn.Linear) and layer is not first
            become(layer, table.name, fields, guest, table.padding_idx, plan.padding_row)
    watch(model)


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
    old = [parameter for layer in layers.values() for parameter in layer.parameters()]
    # Each is known to this list and its layer.
    optimizers = holders(old, [2] * len(old))
    done: dict[int, nn.ModuleList] = {}
    for swapped in swapped_layers(model):
        fields = swapped.fields
        if id(fields) not in done:
            done[id(fields)] = nn.ModuleList(
                shrunk(layer, allocation[layer.spec.name])
                for layer in swapped.field_layers()
                if isinstance(layer, SupernetEmbedding)
            )
            hand_over(optimizers, swapped._name, list(fields.parameters()), done[id(fields)])
        swapped.set_fields(done[id(fields)])
    watch(model)
