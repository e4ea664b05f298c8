"""Tables in 16 or 8 bits a number, for serving."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis.nn import sized_layers
from optuna_nis.nn._ids import bags_of
from optuna_nis.nn._layers import Model, check_sized, replace_layers
from optuna_nis.nn.multi_size import MultiSize, MultiSizeEmbedding, MultiSizeEmbeddingBag, Tier

Dtype = Literal["float16", "int8"]

# A row of int8 has two numbers of float16 beside its codes; up to this width float16 takes no more
# bytes and is more exact.
_WIDEST_FLOAT16 = 4
_LARGEST_CODE = 127
_CHUNK_ROWS = 65536


def quantize(model: Model, dtype: Dtype = "int8") -> Model:
    """Keep the tables of a model in fewer bits, in place. They can no longer be trained.

    ``"float16"`` halves the bytes. ``"int8"`` keeps a row as codes from -127 to 127, and in
    float16 a scale and an offset, ``row = scale * code + offset``; the error of a number is half
    a scale, and what float16 does to the offset. Tiers up to 4 wide, where scale and offset would
    take more than they save, are in float16 also then, and so are all projections. Rows are looked
    up first and only these are turned back.

    In the ``state_dict``, ``tiers.N.weight`` becomes ``tiers.N.codes`` and, with int8,
    ``tiers.N.scale_offset`` of shape ``(ids, 2)``.

    Args:
        model: A model with multi-size layers, trained.
        dtype: ``"int8"`` or ``"float16"``.

    Returns:
        The model; of a single layer, which is left as it is, the quantised one.

    Raises:
        ValueError: If the type is neither of them, a number is beyond float16, there is no
            multi-size layer, or one is quantised already or still a layer of a supernet. Nothing
            is changed then.

    Example:
        >>> from optuna_nis import TableAllocation
        >>> from optuna_nis import Tier as Size
        >>> layer = MultiSizeEmbedding(TableAllocation("user", 100, 16, (Size(10, 16),)))
        >>> small = quantize(layer, "int8")
        >>> sum(buffer.nbytes for buffer in small.buffers())  # of 640
        200
        >>> ids = torch.arange(10)
        >>> bool((small(ids) - layer(ids)).abs().max() < 5e-4)
        True
    """
    _check(model, dtype)
    done = {id(layer): _quantized(layer, dtype) for layer in sized_layers(model)}
    replaced = replace_layers(model, MultiSize, lambda layer: done[id(layer)])
    return replaced  # type: ignore[return-value]


@dataclass(frozen=True)
class QuantizedTable:
    """What quantising does to a table.

    Attributes:
        name: Name of the table.
        nbytes_before: Bytes of its rows and projections.
        nbytes: The same when quantised, scales and offsets included.
        nbytes_ranks: Bytes of the order of its ids, which is kept beside it; 0 if ids are sorted
            by frequency.
        max_error: Largest difference in what a lookup gives.
        relative_error: Root of the mean square of the differences, as a share of that of the
            rows.
    """

    name: str
    nbytes_before: int
    nbytes: int
    nbytes_ranks: int
    max_error: float
    relative_error: float


@dataclass(frozen=True)
class QuantizationReport:
    """What quantising does to the tables of a model.

    Attributes:
        tables: One for each table.
    """

    tables: tuple[QuantizedTable, ...]

    @property
    def nbytes_before(self) -> int:
        """Bytes of the rows and projections of all tables."""
        return sum(table.nbytes_before for table in self.tables)

    @property
    def nbytes(self) -> int:
        """The same when quantised, scales and offsets included."""
        return sum(table.nbytes for table in self.tables)

    @property
    def nbytes_ranks(self) -> int:
        """Bytes of the order of the ids of all tables."""
        return sum(table.nbytes_ranks for table in self.tables)

    @property
    def max_error(self) -> float:
        """Largest difference in what a lookup gives."""
        return max(table.max_error for table in self.tables)

    def __str__(self) -> str:
        lines = [
            f"{table.name}: {table.nbytes:,} of {table.nbytes_before:,} bytes, "
            f"error {table.relative_error:.2%}, at most {table.max_error:.2g}"
            for table in self.tables
        ]
        lines.append(f"all tables: {self.nbytes:,} of {self.nbytes_before:,} bytes")
        if self.nbytes_ranks:
            lines.append(f"order of the ids: {self.nbytes_ranks:,} bytes")
        return "\n".join(lines)


def quantization_report(model: nn.Module, dtype: Dtype = "int8") -> QuantizationReport:
    """What :func:`quantize` would do to a model, which is left as it is.

    Args:
        model: As in :func:`quantize`.
        dtype: As in :func:`quantize`.

    Raises:
        ValueError: As :func:`quantize`.

    Example:
        >>> from optuna_nis import TableAllocation
        >>> from optuna_nis import Tier as Size
        >>> sizes = TableAllocation("user", 100, 16, (Size(10, 16), Size(40, 4)))
        >>> report = quantization_report(MultiSizeEmbedding(sizes), "int8")
        >>> report.nbytes, report.nbytes_before  # (10 * (16 + 4) + 40 * 8 + 16 * 16 * 2)
        (1032, 2304)
    """
    _check(model, dtype)
    return QuantizationReport(tuple(_report(layer, dtype) for layer in sized_layers(model)))


class QuantizedTier(Tier):
    """Rows of one width as codes.

    Args:
        tier: The rows.
        dtype: Their type from now on.
        name: Name of the table, for errors.

    Raises:
        ValueError: If a number is beyond float16.
    """

    codes: Tensor
    scale_offset: Tensor | None
    _empty: Tensor

    def __init__(self, tier: Tier, dtype: Dtype, name: str) -> None:
        nn.Module.__init__(self)
        self.num_embeddings = tier.num_embeddings
        self.embedding_dim = tier.embedding_dim
        self.sparse = False
        # Of the type of the rows that are looked up, as the model has it.
        self.register_buffer("_empty", tier.weight.new_empty(0), persistent=False)
        weight = tier.weight.detach().float()
        scale_offset = None
        if dtype == "float16" or weight.shape[1] <= _WIDEST_FLOAT16:
            codes = _half(weight, name)
        else:
            low, high = weight.aminmax(dim=1)
            scale = _half((high - low) / (2 * _LARGEST_CODE), name)
            offset = _half((high + low) / 2, name)
            steps = (weight - offset.float().unsqueeze(1)) / scale.float().unsqueeze(1)
            # A row of equal numbers has a scale of zero.
            steps = steps.nan_to_num(0.0, 0.0, 0.0).round()
            codes = steps.clamp(-_LARGEST_CODE, _LARGEST_CODE).to(torch.int8)
            scale_offset = torch.stack([scale, offset], 1)
        self.register_buffer("codes", codes)
        self.register_buffer("scale_offset", scale_offset)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """All rows, computed at each access."""
        return self.rows(torch.arange(self.num_embeddings, device=self.codes.device))

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of ids, not projected."""
        rows = functional.embedding(ids, self.codes).to(self._empty.dtype)
        if self.scale_offset is None:
            return rows
        scale_offset = functional.embedding(ids, self.scale_offset).to(self._empty.dtype)
        return rows * scale_offset[..., :1] + scale_offset[..., 1:]


class QuantizedEmbedding(MultiSizeEmbedding):
    """A :class:`~optuna_nis.nn.MultiSizeEmbedding` in fewer bits, made by :func:`quantize`.

    Args:
        layer: The layer.
        dtype: As in :func:`quantize`.
    """

    def __init__(self, layer: MultiSizeEmbedding, dtype: Dtype) -> None:
        nn.Module.__init__(self)
        _take_over(self, layer, dtype)

    def _rows(self, ranks: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super()._rows(ranks)
        output = self._zeros(ranks.numel(), self.embedding_dim, device=ranks.device)
        for tier, where, local in _found(ranks.reshape(-1), self.tier_modules()):
            output[where] = self.project(tier.rows(local))
        return output.view(*ranks.shape, self.embedding_dim)


class QuantizedEmbeddingBag(MultiSizeEmbeddingBag):
    """A :class:`~optuna_nis.nn.MultiSizeEmbeddingBag` in fewer bits, made by :func:`quantize`.

    Args:
        layer: The layer.
        dtype: As in :func:`quantize`.
    """

    def __init__(self, layer: MultiSizeEmbeddingBag, dtype: Dtype) -> None:
        nn.Module.__init__(self)
        _take_over(self, layer, dtype)
        self.mode = layer.mode

    def _small(self, num_ids: int) -> bool:
        # Rows are dequantised when they are looked up, never the whole table.
        return False

    def _for_all(self, ids: Tensor) -> bool:
        return False

    def _pooled_by_tier(self, flat: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
        _, bags, num_bags = bags_of(flat, starts, self.table.name)
        output = self._zeros(num_bags, self.embedding_dim, device=flat.device)
        for tier, where, local in _found(flat, self.tier_modules()):
            rows = tier.rows(local)
            if weights is not None:
                rows = rows * weights[where].unsqueeze(1)
            pooled = rows.new_zeros(num_bags, rows.shape[1]).index_add(0, bags[where], rows)
            output = output + self.project(pooled)
        return output


def _check(model: nn.Module, dtype: str) -> None:
    if dtype not in get_args(Dtype):
        raise ValueError(f'`dtype` must be "int8" or "float16", got {dtype!r}.')
    check_sized(model)
    for layer in sized_layers(model):
        if isinstance(layer, QuantizedEmbedding | QuantizedEmbeddingBag):
            raise ValueError(f"The table {layer.table.name!r} of `model` is quantised already.")


def _quantized(layer: MultiSize, dtype: Dtype) -> MultiSize:
    if isinstance(layer, MultiSizeEmbeddingBag):
        return QuantizedEmbeddingBag(layer, dtype)
    assert isinstance(layer, MultiSizeEmbedding)
    return QuantizedEmbedding(layer, dtype)


def _take_over(new: MultiSize, layer: MultiSize, dtype: Dtype) -> None:
    """Give a quantised layer the attributes and tiers of another."""
    kept = ("table", "num_embeddings", "embedding_dim", "width", "init_std")
    for name in kept:
        setattr(new, name, getattr(layer, name))
    new.sparse = False
    new.tiers = nn.ModuleList(
        QuantizedTier(tier, dtype, layer.table.name) for tier in layer.tier_modules()
    )
    projection = layer.projection
    new.register_buffer(
        "projection", None if projection is None else _half(projection.detach(), layer.table.name)
    )
    new._empty = layer.like().new_empty(0)
    new.take_order(layer, torch.int32)


def _half(numbers: Tensor, name: str) -> Tensor:
    half = numbers.half()
    if not bool(half.isfinite().all()):
        wrong = float(numbers[~half.isfinite()].flatten()[0])
        raise ValueError(f"The table {name!r} has the number {wrong:g}, which is beyond float16.")
    return half


def _found(ranks: Tensor, tiers: list[Tier]) -> Iterator[tuple[Tier, Tensor, Tensor]]:
    """For every tier where its ids are, and which of its rows they are."""
    start = 0
    for tier in tiers:
        end = start + tier.num_embeddings
        where = ((ranks >= start) & (ranks < end)).nonzero().squeeze(1)
        yield tier, where, ranks[where] - start
        start = end


@torch.no_grad()
def _report(layer: MultiSize, dtype: Dtype) -> QuantizedTable:
    quantized = _quantized(layer, dtype)
    after = sum(buffer.nbytes for buffer in quantized.buffers())
    largest, squares, of_rows = 0.0, 0.0, 0.0
    for tier, small in zip(layer.tier_modules(), quantized.tier_modules()):
        for start in range(0, tier.num_embeddings, _CHUNK_ROWS):
            end = min(start + _CHUNK_ROWS, tier.num_embeddings)
            ids = torch.arange(start, end, device=tier.weight.device)
            rows = layer.project(tier.rows(ids)).float()
            difference = quantized.project(small.rows(ids)) - rows
            largest = max(largest, float(difference.abs().max()))
            squares += float(difference.square().sum())
            of_rows += float(rows.square().sum())
    order = quantized.ranks
    return QuantizedTable(
        name=layer.name,
        nbytes_before=sum(parameter.nbytes for parameter in layer.parameters()),
        nbytes=after,
        nbytes_ranks=0 if order is None else order.untyped_storage().nbytes(),
        max_error=largest,
        relative_error=math.sqrt(squares / of_rows) if of_rows else 0.0,
    )
