"""How the loss of a supernet depends on every block of its tables, in one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn

from optuna_nis.nn._modes import modes_kept
from optuna_nis.nn.choices import supernet_layers
from optuna_nis.nn.supernet import SupernetEmbedding
from optuna_nis.strategy.block_values import Path

Gradients = dict[str, NDArray[np.float64]]


def mask_gradients(
    model: nn.Module, paths: Sequence[Path], loss: Callable[[], Tensor]
) -> list[Gradients]:
    """Gradients of a loss with respect to the masks of all tables, at points of paths.

    A mask says how much of each column of a row block the model sees: 1 is all of it, 0 is
    nothing. Columns that both ends of the path keep are at 1, those that only the wider one keeps
    at the share of the way, all others at 0. Averaged over the way, the gradients of the columns
    in between add up to the difference of the loss at its ends (integrated gradients:
    Sundararajan et al., 2017, "Axiomatic Attribution for Deep Networks").

    With several paths, each of as many equal runs of the batch sees one of them, as runs see
    choices: the model must treat examples apart, and the loss be a mean over them.

    The model is in evaluation mode while the loss is computed, no number is rounded, ids without a
    row share none, and its weights get no gradients. Masks, modes and whatever gradients there
    were are left as they were.

    Args:
        model: A model with a :class:`SupernetEmbedding` for every feature of the path.
        paths: Each two choices, the wider of which keeps what the other one keeps, and a place
            between them.
        loss: Computes the loss of the model, a single number.

    Returns:
        For each path the gradients of the loss of its run: for every feature of the model, shape
        ``(row blocks, embedding_dim)``; zeros where the loss does not depend on a table.

    Raises:
        ValueError: If there is no path or one does not fit the tables, or the loss is not a single
            number that depends on any of them.

    Example:
        >>> from optuna_nis import EmbeddingSpec, SearchSpace
        >>> space = SearchSpace([EmbeddingSpec("user", 100, 4, row_blocks=[10, 90])])
        >>> layer = SupernetEmbedding(space.specs[0])
        >>> path = Path({"user": (2, 0)}, {"user": (4, 1)}, share=0.5)
        >>> found = mask_gradients(layer, [path], lambda: layer(torch.tensor([3, 50])).mean())
        >>> [gradients["user"].shape for gradients in found]
        [(2, 4)]
    """
    layers = supernet_layers(model)
    if not paths:
        raise ValueError("`paths` must hold at least one path, got none.")
    for path in paths:
        if not path.low.keys() == path.high.keys() == layers.keys():
            raise ValueError(
                f"`paths` must have widths for each of {sorted(layers)}, got {sorted(path.low)} "
                f"and {sorted(path.high)}."
            )
    masks = {name: _soft_mask(layer, paths) for name, layer in layers.items()}
    before = {n: (each._mask, each._rounding, each._sharing) for n, each in layers.items()}
    with _frozen(model), torch.enable_grad():
        try:
            for name, layer in layers.items():
                layer._mask, layer._rounding, layer._sharing = masks[name], None, None
            value = loss()
            if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
                raise ValueError(
                    "`loss` must compute a single number, as a tensor that depends on the tables "
                    f"of the model, got {_described(value)}."
                )
            # What is computed again on the way back (activation checkpointing) sees the masks.
            found = torch.autograd.grad(value, list(masks.values()), allow_unused=True)
        finally:
            for name, layer in layers.items():
                layer._mask, layer._rounding, layer._sharing = before[name]
    if all(gradient is None for gradient in found):
        raise ValueError(
            f"`loss` must depend on a table of the model, it depends on none of {sorted(layers)}."
        )
    arrays = {
        # Of the mean over all examples, each run is a part.
        name: np.zeros(mask.shape)
        if gradient is None
        else len(paths) * gradient.double().cpu().numpy()
        for (name, mask), gradient in zip(masks.items(), found)
    }
    # The last row stands for ids out of vocabulary.
    return [{name: own[run, :-1] for name, own in arrays.items()} for run in range(len(paths))]


def _soft_mask(layer: SupernetEmbedding, paths: Sequence[Path]) -> Tensor:
    columns = np.arange(layer.spec.embedding_dim)
    name = layer.spec.name
    kept, offered = (
        columns < layer._checked([ends[name] for ends in each])[:, :, None]
        for each in ([path.low for path in paths], [path.high for path in paths])
    )
    shares = np.array([path.share for path in paths])[:, None, None]
    mask = torch.from_numpy(np.where(kept, 1.0, np.where(offered, shares, 0.0)))
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
