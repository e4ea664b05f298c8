"""Tables in 16 or 8 bits a number, for serving."""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis.nn import sized_layers
from optuna_nis.nn._layers import Model, check_sized, replace_layers
from optuna_nis.nn._stored import (
    StoredEmbedding,
    StoredEmbeddingBag,
    StoredLayer,
    StoredTier,
    check_not_stored,
    half,
)
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
            multi-size layer, or one is quantised or frozen already, was trained for fewer bits
            (:func:`~optuna_nis.nn.freeze` it) or is still one of a supernet. Nothing is changed
            then.

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


def _half_or_more(scales: Tensor, name: str) -> Tensor:
    """Scales as float16, of which none is smaller: the codes of a row must reach its ends."""
    nearest = half(scales, name)
    half_type = torch.finfo(torch.float16)
    next_one = half(scales * (1 + half_type.eps) + half_type.smallest_normal * half_type.eps, name)
    return torch.where(nearest.float() < scales, next_one, nearest)


class QuantizedTier(StoredTier):
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

    def __init__(self, tier: Tier, dtype: Dtype, name: str) -> None:
        super().__init__(tier, name)
        weight = tier.weight.detach().float()
        scale_offset = None
        if dtype == "float16" or weight.shape[1] <= _WIDEST_FLOAT16:
            codes = half(weight, name)
        else:
            low, high = weight.aminmax(dim=1)
            scale = _half_or_more((high - low) / (2 * _LARGEST_CODE), name)
            offset = half((high + low) / 2, name)
            steps = (weight - offset.float().unsqueeze(1)) / scale.float().unsqueeze(1)
            # A row of equal numbers has a scale of zero.
            steps = steps.nan_to_num(0.0, 0.0, 0.0).round()
            codes = steps.clamp(-_LARGEST_CODE, _LARGEST_CODE).to(torch.int8)
            scale_offset = torch.stack([scale, offset], 1)
        self.register_buffer("codes", codes)
        self.register_buffer("scale_offset", scale_offset)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of ids, not projected."""
        rows = functional.embedding(ids, self.codes).to(self._empty.dtype)
        if self.scale_offset is None:
            return rows
        scale_offset = functional.embedding(ids, self.scale_offset).to(self._empty.dtype)
        return rows * scale_offset[..., :1] + scale_offset[..., 1:]


class _Quantized(StoredLayer):
    done = "quantised"

    def __init__(self, layer: MultiSize, dtype: Dtype) -> None:
        name = layer.name
        super().__init__(
            layer, [QuantizedTier(tier, dtype, name) for tier in layer.tier_modules()]
        )
        if layer.projection is not None:
            self.projection = half(layer.projection, name)


class QuantizedEmbedding(_Quantized, StoredEmbedding):
    """A :class:`~optuna_nis.nn.MultiSizeEmbedding` in fewer bits, made by :func:`quantize`.

    Args:
        layer: The layer.
        dtype: As in :func:`quantize`.
    """


class QuantizedEmbeddingBag(_Quantized, StoredEmbeddingBag):
    """A :class:`~optuna_nis.nn.MultiSizeEmbeddingBag` in fewer bits, made by :func:`quantize`.

    Args:
        layer: The layer.
        dtype: As in :func:`quantize`.
    """


def _check(model: nn.Module, dtype: str) -> None:
    if dtype not in get_args(Dtype):
        raise ValueError(f'`dtype` must be "int8" or "float16", got {dtype!r}.')
    check_sized(model)
    layers = sized_layers(model)
    check_not_stored(layers)
    for layer in layers:
        if bits := {tier.bits for tier in layer.table.tiers} - {32}:
            raise ValueError(
                f"The table {layer.name!r} of `model` was trained for {min(bits)} bits a number: "
                "`freeze(model)` keeps it so, and so does `--format packed`."
            )


def _quantized(layer: MultiSize, dtype: Dtype) -> MultiSize:
    if isinstance(layer, MultiSizeEmbeddingBag):
        return QuantizedEmbeddingBag(layer, dtype)
    assert isinstance(layer, MultiSizeEmbedding)
    return QuantizedEmbedding(layer, dtype)


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
