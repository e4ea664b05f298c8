"""Tables for TorchRec, one for each tier, so that its strategies can shard them.

Needs torchrec and fbgemm-gpu or fbgemm-gpu-cpu, of the releases that go with torch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

try:
    from torchrec import (
        EmbeddingBagCollection,
        EmbeddingBagConfig,
        KeyedJaggedTensor,
        KeyedTensor,
        PoolingType,
    )
except ImportError as error:
    raise ModuleNotFoundError(
        "`optuna_nis.serve.torchrec` needs the package `torchrec`, which cannot be imported: "
        f"{error}. See docs/exporting.md for how to install it.",
        name="torchrec",
    ) from error

from optuna_nis.models.embeddings import FeatureEmbeddings
from optuna_nis.nn import (
    MultiSizeEmbeddingBag,
    SwappedEmbedding,
    SwappedLinear,
    output_features,
    sized_layers,
    swapped_layers,
)
from optuna_nis.nn._layers import check_sized
from optuna_nis.nn._ranked import Ranked
from optuna_nis.nn._shared import places
from optuna_nis.nn.multi_size import MultiSize
from optuna_nis.nn.swapped import SwappedLayer
from optuna_nis.space.allocation import Allocation, TableAllocation

# The kernels of FBGEMM want rows of whole multiples of this.
_MULTIPLE = 4


def embedding_bag_configs(allocation: Allocation) -> list[EmbeddingBagConfig]:
    """One table for each tier of each feature.

    The table of tier 0 of the feature ``user`` is called ``user_t0`` and looked up by a key of the
    same name; dots become underscores. Widths are rounded up to a multiple of 4, as FBGEMM wants
    them.

    Args:
        allocation: The sizes.

    Raises:
        ValueError: If two tables would have one name.

    Example:
        >>> from optuna_nis import Tier
        >>> sizes = Allocation([TableAllocation("user", 100, 16, (Tier(10, 16), Tier(30, 2)))])
        >>> [(c.name, c.num_embeddings, c.embedding_dim) for c in embedding_bag_configs(sizes)]
        [('user_t0', 10, 16), ('user_t1', 30, 4)]
    """
    configs: list[EmbeddingBagConfig] = []
    for table in allocation.values():
        for index, tier in enumerate(table.stored_tiers):
            name = _key(table.name, index)
            if any(config.name == name for config in configs):
                raise ValueError(f"`allocation` gives two tables the name {name!r}.")
            configs.append(
                EmbeddingBagConfig(
                    name=name,
                    num_embeddings=tier.num_embeddings,
                    embedding_dim=_padded(tier.embedding_dim),
                    feature_names=[name],
                    pooling=PoolingType.SUM,
                )
            )
    return configs


class TieredEmbeddingBagCollection(nn.Module):
    """Features in tiers, looked up by an ``EmbeddingBagCollection``.

    Ids are mapped to their ranks by frequency, or the rows that they share, and sent to the keys
    of their tiers; what the collection pools is projected by a ``Linear`` without bias that a
    table's tiers share, and added. Ids without a row are sent nowhere. A mean is divided
    afterwards by the number of known ids.

    The ``EmbeddingBagCollection`` is the attribute ``collection``, to be sharded; the rest is
    small.

    Args:
        allocation: The sizes.
        mean: Names of the features whose bags are pooled by their mean; others are summed.
        ranks: For every feature whose ids are not ranks already, the rank by frequency of every
            id, of shape ``(num_embeddings,)``.

    Raises:
        ValueError: If ``mean`` or ``ranks`` names no feature of the allocation, or ranks are not a
            permutation.

    Shapes:
        - features: a ``KeyedJaggedTensor`` with a key for each feature, in any order; ids are
          integers in ``[0, num_embeddings]``
        - output: a ``KeyedTensor`` with rows of width ``embedding_dim`` for each feature, in the
          order of the allocation

    Example:
        >>> from optuna_nis import Tier
        >>> sizes = Allocation([TableAllocation("genres", 18, 8, (Tier(6, 8), Tier(9, 2)))])
        >>> tables = TieredEmbeddingBagCollection(sizes, mean=["genres"])
        >>> bags = KeyedJaggedTensor(
        ...     keys=["genres"], values=torch.tensor([0, 7, 1]), lengths=torch.tensor([2, 1, 0])
        ... )
        >>> tables(bags)["genres"].shape
        torch.Size([3, 8])
    """

    def __init__(
        self,
        allocation: Allocation,
        *,
        mean: Collection[str] = (),
        ranks: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        ranks = ranks or {}
        for argument, names in (("mean", mean), ("ranks", ranks)):
            if unknown := set(names) - set(allocation):
                raise ValueError(
                    f"`{argument}` names {sorted(unknown)}, which are not among the features "
                    f"{list(allocation)}."
                )
        self.allocation = allocation
        configs = embedding_bag_configs(allocation)
        self.collection = EmbeddingBagCollection(tables=configs) if configs else None
        self.features = nn.ModuleList(
            _Feature(table, table.name in mean, ranks.get(table.name))
            for table in allocation.values()
        )

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Look up and pool the bags of all features."""
        if features.weights_or_none() is not None:
            raise ValueError("`features` must not have weights: these tables do not use them.")
        keys, values, lengths = [], [], []
        ranks = {}
        for feature in self._features():
            bags = features[feature.table.name]
            ranks[feature.table.name] = feature.to_ranks(bags.values()), bags.lengths()
            for key, ids, count in feature.route(*ranks[feature.table.name]):
                keys.append(key)
                values.append(ids)
                lengths.append(count)
        pooled: Mapping[str, Tensor] = {}
        if self.collection is not None:
            pooled = self.collection(
                KeyedJaggedTensor(keys=keys, values=torch.cat(values), lengths=torch.cat(lengths))
            ).to_dict()
        outputs = [
            feature.join(pooled, *ranks[feature.table.name]) for feature in self._features()
        ]
        return KeyedTensor(
            keys=list(self.allocation),
            length_per_key=[table.embedding_dim for table in self.allocation.values()],
            values=torch.cat(outputs, 1),
        )

    def _features(self) -> list[_Feature]:
        return [feature for feature in self.features if isinstance(feature, _Feature)]


def to_torchrec(model: nn.Module) -> TieredEmbeddingBagCollection:
    """The tables of a model, with their weights, for TorchRec.

    A feature has the name of its table. The features of a fused table have ids of their own, from
    0 on. The id of padding may be left out of a bag or given. Tables that only output layers have
    stay in the model.

    Args:
        model: A model with multi-size layers, or one layer.

    Raises:
        ValueError: If there is no multi-size layer, two are of tables of the same name, a bag is
            pooled by its maximum, or by its mean over several fields, a row of padding is not
            zero, a table is that of an output layer too or there are no others, features of a
            reference model share a table, or a layer is still one of a supernet.

    Example:
        >>> from optuna_nis import Tier
        >>> from optuna_nis.nn import MultiSizeEmbedding
        >>> layer = MultiSizeEmbedding(TableAllocation("user", 100, 16, (Tier(10, 16),)))
        >>> tables = to_torchrec(layer)
        >>> torch.equal(tables.collection.embedding_bags["user_t0"].weight, layer.tiers[0].weight)
        True
    """
    check_sized(model)
    for module in model.modules():
        if isinstance(module, FeatureEmbeddings) and module.share:
            raise ValueError(
                "`model` must have a table for each feature to go to TorchRec, it has features "
                f"that share one: {dict(module.share)}."
            )
    left = output_features(model)
    layers = [layer for layer in sized_layers(model) if layer.name not in left]
    if not layers:
        raise ValueError(
            f"`model` must look ids up, got a {type(model).__name__} whose tables {sorted(left)} "
            "are all of output layers."
        )
    paddings: dict[int, int] = {}
    for swapped in swapped_layers(model):
        paddings |= _checked(swapped, left)
    mean, ranks = [], {}
    for layer in layers:
        name = layer.table.name
        if isinstance(layer, MultiSizeEmbeddingBag) and layer.mode == "mean":
            mean.append(name)
        if layer.ranks is not None:
            ranks[name] = layer.ranks
    allocation = Allocation(layer.table for layer in layers)
    tables = TieredEmbeddingBagCollection(allocation, mean=mean, ranks=ranks)
    with torch.no_grad():
        for layer, feature in zip(layers, tables._features()):
            feature.copy_from(layer, tables.collection)
            if id(layer) in paddings:
                feature.leave_out(paddings[id(layer)])
    return tables


class _Feature(Ranked):
    """The way of a feature's ids to its tiers, and of what they pool to its output."""

    def __init__(self, table: TableAllocation, mean: bool, ranks: Tensor | None) -> None:
        super().__init__()
        self.table = table
        self.mean = mean
        self._set_ranks(ranks, table.num_embeddings, table.name)
        self.projection: nn.Linear | None = None
        if table.is_projected:
            widest = table.tiers[0].embedding_dim
            self.projection = nn.Linear(widest, table.embedding_dim, bias=False)

    def to_ranks(self, ids: Tensor) -> Tensor:
        """Where the rows of ids are stored, as int64."""
        return places(self._ranks_of(ids), self.table).long()

    def route(self, ranks: Tensor, lengths: Tensor) -> Iterator[tuple[str, Tensor, Tensor]]:
        """For every tier its key, its rows of the ids, and how many there are in each bag."""
        start = 0
        for index, tier in enumerate(self.table.stored_tiers):
            end = start + tier.num_embeddings
            inside = (ranks >= start) & (ranks < end)
            yield _key(self.table.name, index), ranks[inside] - start, _count(inside, lengths)
            start = end

    def join(self, pooled: Mapping[str, Tensor], ranks: Tensor, lengths: Tensor) -> Tensor:
        """What the bags of all tiers add up to, of shape ``(batch, embedding_dim)``."""
        output = torch.zeros(len(lengths), self.table.embedding_dim, device=ranks.device)
        for index, tier in enumerate(self.table.stored_tiers):
            # Without the columns that the width is rounded up by.
            rows = pooled[_key(self.table.name, index)][:, : tier.embedding_dim]
            if self.projection is not None:
                weight = self.projection.weight[:, : tier.embedding_dim]
                rows = nn.functional.linear(rows, weight)
            output = output + rows
        if self.mean:
            known = _count(ranks != self.table.num_embeddings, lengths)
            output = output / known.clamp(min=1).unsqueeze(1)
        return output

    def copy_from(self, layer: MultiSize, collection: EmbeddingBagCollection) -> None:
        """Take over rows and projection; the columns that widths are rounded up by are zero."""
        for index, tier in enumerate(layer.tier_modules()):
            rows = collection.embedding_bags[_key(self.table.name, index)].weight
            rows.zero_()[:, : tier.embedding_dim] = tier.table()
        mapping = layer.mapping()
        if self.projection is not None and mapping is not None:
            self.projection.weight.copy_(mapping.T)

    def leave_out(self, padding: int) -> None:
        """Send an id to no tier, and do not count it."""
        ranks = self._ranks
        if ranks is None:
            ranks = torch.arange(self.table.num_embeddings + 1)
        self._ranks = ranks.index_fill(0, torch.tensor(padding), self.table.num_embeddings)


def _checked(layer: SwappedLayer, left: Collection[str]) -> dict[int, int]:
    """The id of padding of the field that has it, by the field's identity.

    Args:
        layer: The layer.
        left: The features that stay where they are.

    Raises:
        ValueError: If a collection cannot do what the layer does.
    """
    fields = [field for field in layer.field_layers() if isinstance(field, MultiSize)]
    problem = ""
    if isinstance(layer, SwappedLinear):
        if fields[0].name in left:
            return {}
        problem = "it is the weight of an output layer, too"
    elif isinstance(layer, SwappedEmbedding):
        if layer._padding_row is not None:
            problem = "its row of padding is not zero"
    elif layer.mode == "max":
        problem = "a maximum cannot be projected after pooling"
    elif layer.mode == "mean" and len(fields) > 1:
        problem = "it pools several fields by one mean"
    if problem:
        raise ValueError(f"The table {fields[0].table.name!r} cannot go to TorchRec: {problem}.")
    start = 0
    for field in fields:
        if layer.padding_idx is not None and 0 <= layer.padding_idx - start < field.num_embeddings:
            return {id(field): layer.padding_idx - start}
        start += field.num_embeddings
    return {}


def _key(feature: str, tier: int) -> str:
    """Name of a tier's table and key; modules may have no dot in theirs."""
    return f"{feature.replace('.', '_')}_t{tier}"


def _padded(width: int) -> int:
    return -(-width // _MULTIPLE) * _MULTIPLE


def _count(which: Tensor, lengths: Tensor) -> Tensor:
    """How many of the ids of each bag are such."""
    before = functional.pad(which.long().cumsum(0), (1, 0))
    ends = lengths.long().cumsum(0)
    return before[ends] - before[ends - lengths]
