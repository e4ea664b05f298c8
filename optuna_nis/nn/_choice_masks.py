"""What choices keep of the tables of supernet layers, set for many layers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
import torch

from optuna_nis.nn._supernet_rounding import Rounding
from optuna_nis.nn._supernet_shared import Sharing

if TYPE_CHECKING:
    from optuna_nis.nn.supernet import SupernetEmbedding


def set_sizes(
    given: Sequence[tuple[SupernetEmbedding, Any, NDArray[np.int64] | None, Sequence[int] | None]],
) -> None:
    """Set the choices of some layers.

    Args:
        given: For each layer the width of every choice and row block, the bits of its numbers, and
            how many rows ids without one share under each choice.
    """
    tables = [layer._checked(widths) for layer, widths, *_ in given]
    for layer, widths, bits, shared in given:
        sharing = Sharing.of(layer.spec, np.asarray(widths), shared)
        rounding = Rounding.of(layer.spec, np.asarray(widths), bits)
        if rounding is not None and layer._spread is None:
            raise ValueError(
                f"The layer {layer.name!r} was made for float32 alone and rounds nothing: make it "
                "with the `precisions` of the space."
            )
        # This is done for every batch and feature, and modules take long to set what is the same.
        if layer._rounding is not rounding:
            layer._rounding = rounding
        if layer._sharing is not sharing:
            layer._sharing = sharing
    _set_masks([(layer, table) for (layer, *_), table in zip(given, tables)])


def _set_masks(given: Sequence[tuple[SupernetEmbedding, NDArray[np.int64]]]) -> None:
    """Set which columns the choices of some layers keep, by the widths of all row blocks."""
    groups: dict[torch.device, dict[tuple[torch.dtype, int], list[Any]]] = {}
    for layer, table in given:
        weight = layer.weight
        device = torch.device("cpu") if weight.is_meta else weight.device
        group = groups.setdefault(device, {}).setdefault((weight.dtype, layer.width), [])
        group.append((layer, table))
    for device, alike in groups.items():
        tables = [table.ravel() for group in alike.values() for _, table in group]
        # One way to the device, which is not waited for, is as good as one for each layer.
        widths = torch.from_numpy(np.concatenate(tables)).to(device, non_blocking=True)
        sizes = [sum(table.size for _, table in group) for group in alike.values()]
        parts = torch.split(widths, sizes)
        for ((dtype, width), group), part in zip(alike.items(), parts):
            masks = (torch.arange(width, device=device) < part.unsqueeze(1)).to(dtype)
            own = torch.split(masks, [table.size for _, table in group])
            for (layer, table), mask in zip(group, own):
                layer._mask = mask.view(*table.shape, width)
