"""How often every id occurs in the training data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import islice
import sys
from typing import Any
import warnings

from rich.console import Console
from rich.progress import track
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from optuna_nis._checks import check_integer
from optuna_nis._steps import step_arguments, takes_iterator
from optuna_nis.nn._modes import modes_kept
from optuna_nis.nn._snapshot import Snapshot
from optuna_nis.nn._tables import (
    Plain,
    check_not_lazy,
    check_patterns,
    fits,
    linear_layers,
    no_layer_to,
    plain_layers,
    swapped_names,
)

_Add = Callable[[str, Tensor], None]

_BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def count_ids(
    dataloader: Iterable[Any],
    model: nn.Module,
    *,
    step: Callable[[Any], Any] | None = None,
    ids: Callable[[Any], Mapping[str, Tensor]] | None = None,
    exclude: Collection[str] = (),
    datamodule: Any = None,
    max_batches: int | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Count the ids that the embedding layers of a model look up, for :func:`make_searchable`.

    By default every batch goes through the model, without gradients and in evaluation mode, and
    what each embedding layer is asked for is counted; so it does not matter how batches look. If
    ``ids`` tells where in a batch the ids of each layer are, the model is not run, which is
    faster.

    What is counted is what is looked up: for a model that draws negatives evenly, these too. If
    they are many, let ``ids`` name the positives alone.

    Args:
        dataloader: Batches of the training data; or several dataloaders, in a list, a mapping or
            a ``CombinedLoader``, whose batches Lightning would put together.
        model: A model before its layers are swapped.
        step: Runs the model on a batch. By default its ``training_step`` if it has one, called as
            Lightning calls that of a :class:`~lightning.pytorch.LightningModule`, and else the
            model itself.
        ids: The ids in a batch, of any shape, by the name of the layer that looks them up; for a
            :class:`torch.nn.Linear` that will be among the ``outputs``, the targets.
        exclude: Patterns of the names of layers that will not be swapped, as in
            :func:`make_searchable`; they are not counted.
        datamodule: The data module that the batches are from, if there is one. Where it has hooks
            of a batch, such as ``on_after_batch_transfer``, these are called in place of those
            of the model, as Lightning does; like them, not where ``step`` or ``ids`` is given.
        max_batches: Most batches to count, for data without an end; by default all.
        progress: Whether to show a progress bar, on standard error.

    Returns:
        For the name of every layer that was asked, the occurrences of each id, of shape
        ``(num_embeddings,)``.

    Raises:
        ValueError: If a name or an id does not fit the model, no id was seen, a layer was not
            asked for rows but its ``weight`` was read, the training step cannot be run without a
            trainer or has lazy layers, or ``max_batches`` is below 1.

    Example:
        >>> model = nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 1))
        >>> count_ids([torch.tensor([3, 3, 1])], model, progress=False)
        {'0': tensor([0, 1, 0, 2])}
    """
    if max_batches is not None:
        check_integer("max_batches", max_batches, 1)
    layers = plain_layers(model)
    check_patterns("exclude", exclude, [*layers, *swapped_names(model)])
    layers = {name: layer for name, layer in layers.items() if not fits(name, exclude)}
    sizes = {name: layer.num_embeddings for name, layer in layers.items()}
    if ids is not None:
        # Targets are looked up by no layer.
        sizes |= {name: layer.out_features for name, layer in linear_layers(model).items()}
    if not sizes:
        raise ValueError(no_layer_to("count for", model))
    counts: dict[str, Tensor] = {}

    def add(name: str, found: Tensor) -> None:
        if name not in sizes:
            raise ValueError(
                f"`ids` names {name!r}, which is none of the embedding and linear layers "
                f"{list(sizes)}."
            )
        size = sizes[name]
        if not isinstance(found, Tensor) or found.is_floating_point() or found.is_complex():
            kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"The ids of {name!r} must be a tensor of integers, got {kind}.")
        # Of jagged ones what is in their rows.
        parts = found.detach().unbind() if found.is_nested else [found.detach()]
        flat = torch.cat([part.reshape(-1) for part in parts]).cpu()
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < size:
            raise ValueError(
                f"The ids of {name!r} must be between 0 and {size - 1}, got {int(flat.min())} to "
                f"{int(flat.max())}."
            )
        counts.setdefault(name, torch.zeros(size, dtype=torch.int64))
        counts[name] += torch.bincount(flat.long(), minlength=size)

    batches = _batches(dataloader, max_batches, progress)
    if ids is not None:
        for batch in batches:
            own = ids(batch)
            if not isinstance(own, Mapping):
                raise TypeError(
                    "`ids` must give a mapping from the names of layers to tensors, got "
                    f"{type(own).__name__}."
                )
            for name, found in own.items():
                add(name, found)
    else:
        check_not_lazy(model)
        with _counting(model, layers, add) as read:
            _run(model, step, batches, datamodule)
        if unknown := sorted(read - set(counts)):
            raise ValueError(
                f"The ids of {unknown} cannot be counted: the model reads the `weight` of these "
                "layers and does not ask them for rows. Say what their ids in a batch are, "
                f"`ids=lambda batch: {{{unknown[0]!r}: ...}}`, or leave them out, "
                f"`exclude={unknown}`."
            )
    if not counts:
        raise ValueError("`dataloader` must give batches with ids, no embedding layer was asked.")
    return counts


def _batches(dataloader: Any, max_batches: int | None, progress: bool) -> Iterator[Any]:
    """The batches as a training step gets them, with a progress bar."""
    if _are_loaders(dataloader):
        from lightning.pytorch.utilities import CombinedLoader

        dataloader = CombinedLoader(dataloader, "max_size_cycle")
    try:
        batches = iter(dataloader)
    except TypeError as error:
        raise ValueError(
            f"`dataloader` must give batches, got a {type(dataloader).__name__}; for a data "
            "module pass what its `train_dataloader()` returns, and itself as `datamodule`."
        ) from error
    try:
        total = len(dataloader)
    except (NotImplementedError, TypeError):
        # It has no length, or its data set has none.
        total = None
    if max_batches is not None:
        total = max_batches if total is None else min(total, max_batches)
    bar = track(
        islice(batches, max_batches),
        "Counting ids",
        total=total,
        disable=not progress,
        console=Console(stderr=True),
    )
    return (each[0] for each in bar) if _is_combined(dataloader) else iter(bar)


def _are_loaders(value: Any) -> bool:
    """Whether these are dataloaders in lists or mappings."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(isinstance(each, DataLoader) or _are_loaders(each) for each in value)


def _is_combined(dataloader: Any) -> bool:
    """Whether this is Lightning's loader of loaders, whose batches come with their indices."""
    # Where no module of that name was imported, nobody has made one. It goes by two names.
    names = ("lightning.pytorch", "pytorch_lightning")
    found = [sys.modules.get(f"{name}.utilities.combined_loader") for name in names]
    return isinstance(dataloader, tuple(each.CombinedLoader for each in found if each))


def _run(
    model: nn.Module,
    step: Callable[[Any], Any] | None,
    batches: Iterator[Any],
    datamodule: Any,
) -> None:
    training_step = getattr(model, "training_step", None)
    if step is not None or not callable(training_step):
        for batch in batches:
            (step or model)(batch)
        return
    kind = type(model).__name__
    if not getattr(model, "automatic_optimization", True):
        raise ValueError(
            f"`step` or `ids` must be given: the training step of {kind} calls its optimisers."
        )
    if takes_iterator(training_step):
        raise ValueError(
            f"`step` or `ids` must be given: the training step of {kind} takes "
            "`dataloader_iter`, from which it gets as many batches as it likes."
        )
    for index, batch in enumerate(batches):
        try:
            batch = _transferred(model, datamodule, batch)
            training_step(*step_arguments(training_step, batch, index))
        except (AttributeError, RuntimeError) as error:
            if (missed := _missed(model, error)) is None:
                raise
            raise ValueError(
                f"`step` or `ids` must be given: the training step of {kind} or a hook of its "
                f"batches needs {missed} ({error}). Run what looks ids up, "
                "`step=lambda batch: model(batch[0])`, or say where the ids are, "
                "`ids=lambda batch: {'user': batch[0]}`."
            ) from error


def _transferred(model: nn.Module, datamodule: Any, batch: Any) -> Any:
    """The batch on the device of the model, after the hooks of Lightning's modules."""
    before, transfer, after = (
        _own_hook(datamodule, name) or getattr(model, name, None) for name in _BATCH_HOOKS
    )
    if before is None or transfer is None or after is None:
        return batch
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return after(transfer(before(batch, 0), device, 0), 0)


def _own_hook(datamodule: Any, name: str) -> Any:
    """A hook that a data module has in place of Lightning's, in either of its packages."""
    hook = getattr(datamodule, name, None)
    return None if getattr(hook, "__qualname__", "") == f"DataHooks.{name}" else hook


def _missed(model: nn.Module, error: Exception) -> str | None:
    """What a step misses that it has in a training alone; None if it failed for other reasons."""
    if "does not require grad" in str(error):
        return "gradients, which are not computed here"
    # It gives the module a logger too.
    signs = ("is not attached to a `Trainer`", "'NoneType' object has no attribute")
    has_trainer = getattr(model, "_trainer", None) is not None
    return None if has_trainer or not any(sign in str(error) for sign in signs) else "a trainer"


@contextmanager
def _counting(model: nn.Module, layers: Mapping[str, Plain], add: _Add) -> Iterator[set[str]]:
    """Tell what the layers of a model are asked for; gives the names whose weight is read."""
    read: set[str] = set()
    with ExitStack() as stack:
        # What a training step gathers (metrics, lists) is not to be found in the training.
        stack.callback(Snapshot(model).put_back)
        stack.enter_context(modes_kept(model))
        model.eval()
        for name, layer in layers.items():
            stack.enter_context(_listening(name, layer, add, read))
        stack.enter_context(torch.no_grad())
        stack.enter_context(warnings.catch_warnings())
        # A Lightning module warns that what it logs goes nowhere.
        warnings.filterwarnings("ignore", message=".*self.log.*")
        yield read


@contextmanager
def _listening(name: str, layer: Plain, add: _Add, read: set[str]) -> Iterator[None]:
    parameters = _Parameters(layer._parameters, lambda: read.add(name))

    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        add(name, _looked_up(layer, *args, **kwargs))
        parameters.silent = True

    def after(layer: nn.Module, args: Any, output: Any) -> None:
        parameters.silent = False

    handles = [
        layer.register_forward_pre_hook(before, with_kwargs=True),
        layer.register_forward_hook(after),
    ]
    original, layer._parameters = layer._parameters, parameters
    try:
        yield
    finally:
        layer._parameters = original
        for handle in handles:
            handle.remove()


def _looked_up(
    layer: nn.Module, input: Tensor, offsets: Tensor | None = None, *more: Any, **options: Any
) -> Tensor:
    """The ids that a layer looks up of those that it is given."""
    if offsets is None or not getattr(layer, "include_last_offset", False):
        return input
    # What is behind the last bag need not even be ids. Wrong offsets are refused by the layer.
    return input[: int(offsets[-1])] if len(offsets) else input


class _Parameters(dict[str, "nn.Parameter | None"]):
    """The parameters of a layer, which tell when one is read by others than the layer."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter | None], tell: Callable[[], Any]
    ) -> None:
        super().__init__(parameters)
        self.silent = False
        self._tell = tell

    def __getitem__(self, name: str) -> nn.Parameter | None:
        if not self.silent:
            self._tell()
        return super().__getitem__(name)
