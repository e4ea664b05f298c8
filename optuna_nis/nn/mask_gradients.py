"""How the loss of a supernet depends on every block of its tables, in one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn

from optuna_nis.nn._modes import modes_kept
from optuna_nis.nn.supernet import SupernetEmbedding, supernet_layers
from optuna_nis.strategy.block_values import Path

Gradients = dict[str, NDArray[np.float64]]


def mask_gradients(
    model: nn.Module, path: Path, loss: Callable[[], Tensor]
) -> dict[str, NDArray[np.float64]]:
    """Gradients of a loss with respect to the masks of all tables, at a point of a path.

    A mask says how much of each column of a row block the model sees: 1 is all of it, 0 is
    nothing. Columns that both ends of the path keep are at 1, those that only the wider one keeps
    at the share of the way, all others at 0. Averaged over the way, the gradients of the columns
    in between add up to the difference of the loss at its ends (integrated gradients:
    Sundararajan et al., 2017, "Axiomatic Attribution for Deep Networks").

    The model is in evaluation mode while the loss is computed, and its weights get no gradients.
    Masks, modes and whatever gradients there were are left as they were.

    Args:
        model: A model with a :class:`SupernetEmbedding` for every feature of the path.
        path: Two choices, the wider of which keeps what the other one keeps, and a place between.
        loss: Computes the loss of the model, a single number.

    Returns:
        For every feature of the model, shape ``(row blocks, embedding_dim)``; zeros where the
        loss does not depend on a table.

    Raises:
        ValueError: If the path does not fit the tables, or the loss is not a single number that
            depends on any of them.

    Example:
        >>> from optuna_nis import EmbeddingSpec, SearchSpace
        >>> space = SearchSpace([EmbeddingSpec("user", 100, 4, row_blocks=[10, 90])])
        >>> layer = SupernetEmbedding(space.specs[0])
        >>> path = Path({"user": (2, 0)}, {"user": (4, 1)}, share=0.5)
        >>> gradients = mask_gradients(layer, path, lambda: layer(torch.tensor([3, 50])).sum())
        >>> gradients["user"].shape
        (2, 4)
    """
    layers = supernet_layers(model)
    ends = {
        name: (layer._checked([path.low[name]]), layer._checked([path.high[name]]))
        for name, layer in layers.items()
        if name in path.low and name in path.high
    }
    if ends.keys() != layers.keys() or path.low.keys() != layers.keys():
        raise ValueError(
            f"`path` must have widths for each of {sorted(layers)}, got {sorted(path.low)} and "
            f"{sorted(path.high)}."
        )
    before = {name: layer._mask for name, layer in layers.items()}
    with _frozen(model), torch.enable_grad():
        try:
            masks = {
                name: _soft_mask(layer, *ends[name], path.share) for name, layer in layers.items()
            }
            for name, layer in layers.items():
                layer._mask = masks[name]
            value = loss()
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                raise ValueError(
                    "`loss` must compute a single number, as a tensor that depends on the tables "
                    f"of the model, got {_described(value)}."
                )
            found = torch.autograd.grad(value, list(masks.values()), allow_unused=True)
        finally:
            for name, layer in layers.items():
                layer._mask = before[name]
    if all(gradient is None for gradient in found):
        raise ValueError(
            f"`loss` must depend on a table of the model, it depends on none of {sorted(layers)}."
        )
    return {
        name: np.zeros(mask.shape[1:], dtype=np.float64)[:-1]
        if gradient is None
        else gradient[0, :-1].double().cpu().numpy()
        for (name, mask), gradient in zip(masks.items(), found)
    }


def _soft_mask(
    layer: SupernetEmbedding, low: NDArray[np.int64], high: NDArray[np.int64], share: float
) -> Tensor:
    columns = np.arange(layer.spec.embedding_dim)
    kept, offered = (columns < widths[:, :, None] for widths in (low, high))
    mask = torch.from_numpy(np.where(kept, 1.0, np.where(offered, share, 0.0)))
    return mask.to(layer.weight.device, layer.weight.dtype).requires_grad_()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Evaluate a model whose weights need no gradients."""
    trained: Sequence[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
    with modes_kept(model):
        model.eval()
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


def _described(value: object) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    if value.numel() != 1:
        return f"a tensor of shape {tuple(value.shape)}"
    return "a tensor that depends on none of them"
