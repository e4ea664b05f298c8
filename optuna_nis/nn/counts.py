"""How often every id occurs in the training data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sized
from typing import Any
import warnings

from rich.progress import track
import torch
from torch import Tensor, nn

from optuna_nis.nn.swap import plain_layers


def count_ids(
    dataloader: Iterable[Any],
    model: nn.Module,
    *,
    step: Callable[[Any], Any] | None = None,
    ids: Callable[[Any], Mapping[str, Tensor]] | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Count the ids that the embedding layers of a model look up, for :func:`make_searchable`.

    By default every batch goes through the model, without gradients and in evaluation mode, and
    what each embedding layer is asked for is counted; so it does not matter how batches look. If
    ``ids`` tells where in a batch the ids of each layer are, the model is not run, which is
    faster.

    Args:
        dataloader: Batches of the training data.
        model: A model before its layers are swapped.
        step: Runs the model on a batch. By default its ``training_step`` if it has one, as a
            :class:`~lightning.pytorch.LightningModule` has, and else the model itself.
        ids: The ids in a batch, of any shape, by the name of the layer that looks them up.
        progress: Whether to show a progress bar.

    Returns:
        For the name of every layer that was asked, the occurrences of each id, of shape
        ``(num_embeddings,)``.

    Raises:
        ValueError: If a name or an id does not fit the model, no id was seen, or the training
            step cannot be run because its optimisation is manual.

    Example:
        >>> model = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 1))
        >>> count_ids([torch.tensor([3, 3, 1])], model, progress=False)
        {'0': tensor([0, 1, 0, 2])}
    """
    layers = plain_layers(model)
    counts: dict[str, Tensor] = {}

    def add(name: str, found: Tensor) -> None:
        if name not in layers:
            raise ValueError(
                f"`ids` names {name!r}, which is none of the embedding layers {list(layers)}."
            )
        size = layers[name].num_embeddings
        flat = found.detach().reshape(-1).cpu()
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < size:
            raise ValueError(
                f"The ids of {name!r} must be between 0 and {size - 1}, got {int(flat.min())} to "
                f"{int(flat.max())}."
            )
        counts.setdefault(name, torch.zeros(size, dtype=torch.int64))
        counts[name] += torch.bincount(flat.long(), minlength=size)

    total = len(dataloader) if isinstance(dataloader, Sized) else None
    batches = track(dataloader, "Counting ids", total=total, disable=not progress)
    if ids is not None:
        for batch in batches:
            for name, found in ids(batch).items():
                add(name, found)
    else:
        run = step if step is not None else _default_step(model)
        _run(model, layers, batches, run, add)
    if not counts:
        raise ValueError("`dataloader` must give batches with ids, no embedding layer was asked.")
    return counts


def _default_step(model: nn.Module) -> Callable[[Any], Any]:
    training_step = getattr(model, "training_step", None)
    if not getattr(model, "automatic_optimization", True):
        raise ValueError(
            f"`step` or `ids` must be given: the training step of {type(model).__name__} calls "
            "its optimisers."
        )
    if callable(training_step):
        return lambda batch: training_step(batch, 0)
    return model


def _run(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batches: Iterable[Any],
    step: Callable[[Any], Any],
    add: Callable[[str, Tensor], None],
) -> None:
    def hook(name: str) -> Callable[..., None]:
        def seen(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            add(name, args[0] if args else kwargs["input"])

        return seen

    handles = [
        layer.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # A Lightning module warns that what it logs goes nowhere.
            warnings.filterwarnings("ignore", message=".*self.log.*")
            for batch in batches:
                step(batch)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
