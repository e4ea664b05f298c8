"""Tables as they are stored and served: what an allocation counts in bytes, and nothing else."""

from __future__ import annotations

import sys
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis.nn import _native
from optuna_nis.nn._dequantized import dequantized, has_kernel
from optuna_nis.nn._ids import get_gradients
from optuna_nis.nn._layers import Model, check_sized, replace_layers
from optuna_nis.nn._rounding import codes_of, rows_of
from optuna_nis.nn._stored import (
    StoredEmbedding,
    StoredEmbeddingBag,
    StoredLayer,
    StoredTier,
    check_not_stored,
    check_numbers,
    half,
)
from optuna_nis.nn._tracing import is_traced
from optuna_nis.nn.multi_size import (
    MultiSize,
    MultiSizeEmbedding,
    MultiSizeEmbeddingBag,
    Tier,
    sized_layers,
)

# Rows at a time while a table is packed.
_CHUNK_ROWS = 65536


def freeze(model: Model) -> Model:
    """Keep the tables of a model as they are stored, in place. They can no longer be trained.

    Rows of 32 bits are float32 then, those of 16 bits float16, and those of 8, 4 and 2 bits codes
    that are packed, with the step of their tier in float16; projections are float32 or float16
    (:attr:`TableAllocation.projection_bits <optuna_nis.TableAllocation.projection_bits>`). A layer
    holds exactly the bytes of
    :meth:`TableAllocation.nbytes <optuna_nis.TableAllocation.nbytes>`, besides the order of its
    ids. Only the rows of a batch are unpacked. They are to the bit those that the model saw in
    evaluation mode, and what it gives is the same within the rounding of float32. Casts, such as
    ``model.half()``, change the type of what is looked up, and no stored number.

    In the ``state_dict``, ``tiers.N.weight`` becomes ``tiers.N.codes``, of shape ``(ids, width)``,
    or ``(ids, ceil(width * bits / 8))`` and of type uint8 if there are fewer than 16 bits, with
    ``tiers.N.step`` of shape ``(1,)``. The first number of a byte is in its lowest bits; a
    code ``c`` of ``b`` bits stands for ``(c + 1/2 - 2**(b - 1)) * step``.

    Args:
        model: A model with multi-size layers, trained.

    Returns:
        The model; of a single layer, which is left as it is, the frozen one.

    Raises:
        ValueError: If there is no multi-size layer, a number is beyond float16, or a layer is
            frozen or quantised already or still one of a supernet. Nothing is changed then.
        RuntimeError: From the model, when it is called in training mode with gradients.

    Example:
        >>> from optuna_nis import TableAllocation
        >>> from optuna_nis import Tier as Size
        >>> table = TableAllocation("user", 100, 16, (Size(10, 16, 8), Size(40, 16, 4)))
        >>> layer = freeze(MultiSizeEmbedding(table)).eval()
        >>> layer(torch.tensor([0, 20, 99])).shape
        torch.Size([3, 16])
        >>> sum(buffer.nbytes for buffer in layer.buffers()), table.nbytes()
        (484, 484)
        >>> layer.tiers[1].codes.shape
        torch.Size([40, 8])
    """
    check_sized(model)
    layers = sized_layers(model)
    check_not_stored(layers)
    done = {id(layer): _frozen(layer) for layer in layers}
    replaced = replace_layers(model, MultiSize, lambda layer: done[id(layer)])
    return cast(Model, replaced)


def is_frozen(model: nn.Module) -> bool:
    """Whether all tables of a model are as :func:`freeze` leaves them."""
    layers = sized_layers(model)
    return bool(layers) and all(isinstance(layer, _Packed) for layer in layers)


class PackedTier(StoredTier):
    """Rows of one width and precision as they are stored.

    Args:
        tier: The rows.
        name: Name of the table, for errors.

    Raises:
        ValueError: If a number is beyond float16.
    """

    codes: Tensor
    step: Tensor | None

    @torch.no_grad()
    def __init__(self, tier: Tier, name: str) -> None:
        super().__init__(tier, name)
        self.bits = bits = tier.bits
        weight, step = tier.weight.detach(), tier.stored_step()
        if step is not None:
            check_numbers(weight, name)
            chunks = torch.split(weight, _CHUNK_ROWS)
            codes = torch.cat([pack(codes_of(rows, step, bits), bits) for rows in chunks])
        else:
            codes = half(weight, name) if bits == 16 else weight.to(torch.float32, copy=True)
        self.register_buffer("codes", codes)
        self.register_buffer("step", step)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of ids, not projected, of the type of the model."""
        dtype = self._empty.dtype
        if self.step is not None and ids.dim() == 1 and dtype is torch.float32 and not is_traced():
            args = (self.codes, ids, self.step, self.bits, self.embedding_dim)
            if (unpacked := _native.unpacked(*args)) is not None:
                return unpacked
            if has_kernel(self.codes, dtype):
                return dequantized(*args)
        found = functional.embedding(ids, self.codes)
        if self.step is None:
            return found.to(dtype)
        codes = unpack(found, self.bits, self.embedding_dim)
        return rows_of(codes, self.step.to(dtype), self.bits)

    def pooled(self, ids: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
        """The sums of the rows of bags, not projected."""
        can = has_kernel(self.codes, self._empty.dtype) and not get_gradients(weights)
        if self.step is None or not can:
            return super().pooled(ids, starts, weights)
        return dequantized(
            self.codes, ids, self.step, self.bits, self.embedding_dim, starts, weights
        )

    def extra_repr(self) -> str:
        """Show the size."""
        return f"{super().extra_repr()}, bits={self.bits}"


class _Packed(StoredLayer):
    done = "frozen"

    def __init__(self, layer: MultiSize) -> None:
        name = layer.name
        super().__init__(layer, [PackedTier(tier, name) for tier in layer.tier_modules()])
        if layer.projection is not None:
            numbers = layer.projection.detach()
            exact = layer.table.projection_bits == 32
            self.projection = (
                numbers.to(torch.float32, copy=True) if exact else half(numbers, name)
            )

    def requires_grad_(self, requires_grad: bool = True) -> _Packed:
        """Refuse gradients."""
        if requires_grad:
            raise RuntimeError(self._not_trained())
        return self

    def logits(self, vectors: Tensor) -> Tensor:
        """The product of vectors with all rows."""
        self._check_evaluated()
        return super().logits(vectors)

    def _ranks_of(self, ids: Tensor) -> Tensor:
        self._check_evaluated()
        return super()._ranks_of(ids)

    def _check_evaluated(self) -> None:
        if self.training and torch.is_grad_enabled():
            raise RuntimeError(self._not_trained())

    def _not_trained(self) -> str:
        return (
            f"The table {self.name!r} is frozen: its rows are packed and cannot be trained. Call "
            "`model.eval()` to predict; train the model before `freeze(model)`."
        )


class PackedEmbedding(_Packed, StoredEmbedding):
    """A :class:`MultiSizeEmbedding` that was frozen, made by :func:`freeze`.

    Args:
        layer: The layer.
    """


class PackedEmbeddingBag(_Packed, StoredEmbeddingBag):
    """A :class:`MultiSizeEmbeddingBag` that was frozen, made by :func:`freeze`.

    Args:
        layer: The layer.
    """


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes side by side, the first in the lowest bits of the first byte.

    Args:
        codes: Of type uint8 and shape ``(rows, columns)``.
        bits: Bits of a code, 8, 4 or 2.

    Returns:
        Shape ``(rows, ceil(columns * bits / 8))``.

    Example:
        >>> pack(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4)
        tensor([[33,  3]], dtype=torch.uint8)
    """
    if bits == 8:
        return codes
    padded = functional.pad(codes, (0, -codes.shape[1] % (8 // bits)))
    parts = [padded[:, index :: 8 // bits] << index * bits for index in range(8 // bits)]
    return torch.stack(parts).sum(0, dtype=torch.uint8)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """What :func:`pack` was given.

    Args:
        packed: Shape ``(*, ceil(columns * bits / 8))``.
        bits: Bits of a code.
        columns: Codes of a row.

    Returns:
        Shape ``(*, columns)``, of type uint8, or float32 in exported and compiled models.

    Example:
        >>> unpack(torch.tensor([[33, 3]], dtype=torch.uint8), 4, 3)
        tensor([[1, 2, 3]], dtype=torch.uint8)
    """
    if bits == 8:
        return packed
    if is_traced() or sys.byteorder == "big":
        # With what all runtimes know: not all have shifts of bytes, nor other views of them.
        rest, parts = packed.float(), []
        for _ in range(8 // bits - 1):
            above = (rest / 2**bits).floor()
            parts.append(rest - above * 2**bits)
            rest = above
        return torch.stack([*parts, rest], -1).flatten(-2)[..., :columns]
    # Each code moves into a byte of its own.
    wide = packed.flatten().to(torch.int16 if bits == 4 else torch.int32)
    spread = wide << 8 - bits
    for index in range(2, 8 // bits):
        spread |= wide << index * (8 - bits)
    spread |= wide
    spread &= sum((2**bits - 1) << 8 * index for index in range(8 // bits))
    codes = spread.view(torch.uint8).view(*packed.shape[:-1], packed.shape[-1] * 8 // bits)
    return codes[..., :columns]


def _frozen(layer: MultiSize) -> MultiSize:
    if isinstance(layer, MultiSizeEmbeddingBag):
        return PackedEmbeddingBag(layer)
    assert isinstance(layer, MultiSizeEmbedding)
    return PackedEmbedding(layer)
