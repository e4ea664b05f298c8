"""A model as a program of torch.export, for any batch size."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental import _config

from optuna_nis.export._layers import check_not_searchable

#: What a model is called with: one tensor, several, or a mapping that is its only argument.
Batch = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def to_torch_export(
    model: nn.Module, batch: Batch, *, bags: Collection[str] = ()
) -> ExportedProgram:
    """Trace a model, for batches of any size.

    Args:
        model: A model with multi-size layers, swapped, quantised or dense. It is traced in
            evaluation mode and left as it is.
        batch: An example of what the model is called with, of at least two examples: a tensor, a
            tuple of tensors, one for each argument, or a mapping from names to tensors, given as
            the one argument. The first dimension of each is the batch.
        bags: Inputs whose second dimension is of any size, too, such as bags filled up with the
            id unknown; their names in a mapping, else ``"input_0"``, ``"input_1"`` and so on.

    Returns:
        The program; call its ``module()``, or keep it with :func:`torch.export.save`.

    Raises:
        ValueError: If the batch is not of this form or has less than two examples, a bag is not
            in it, the model is still searchable, or it cannot be traced for any batch size.

    Example:
        >>> from optuna_nis import TableAllocation, Tier
        >>> from optuna_nis.nn import MultiSizeEmbeddingBag
        >>> layer = MultiSizeEmbeddingBag(TableAllocation("genres", 18, 8, (Tier(6, 8),)))
        >>> ids = torch.tensor([[0, 7, 18], [1, 18, 18]])
        >>> program = to_torch_export(layer, ids, bags=["input_0"])
        >>> more = torch.tensor([[3], [4], [5], [18]])
        >>> torch.allclose(program.module()(more), layer(more))
        True
    """
    check_not_searchable(model)
    # A tensor that is given for two inputs would be traced as one.
    inputs = {name: tensor.clone() for name, tensor in named_inputs(batch).items()}
    axes = free_axes(inputs, bags)
    sizes = {name: Dim(name) for free in axes.values() for name in free.values()}
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for name, free in axes.items():
        shapes[inputs[name]] = {axis: sizes[size] for axis, size in free.items()}
    arguments = as_called(batch, inputs)
    dynamic = shapes.dynamic_shapes(model, arguments)  # type: ignore[no-untyped-call]
    modes = [(module, module.training) for module in model.modules()]
    try:
        # As torch.onnx does, so that a batch of one is as good as any.
        with torch.no_grad(), _config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            return torch.export.export(model.eval(), arguments, dynamic_shapes=dynamic)
    except (torch._dynamo.exc.UserError, RuntimeError) as error:
        raise ValueError(
            f"`model`, a {type(model).__name__}, cannot be exported for batches of any size: "
            f"{error}"
        ) from error
    finally:
        for module, training in modes:
            module.training = training


def named_inputs(batch: Batch) -> dict[str, Tensor]:
    """The tensors of a batch by the names of the inputs that they become.

    Raises:
        ValueError: If the batch is not of a form that is known, or has less than two examples.
    """
    if isinstance(batch, Tensor):
        batch = (batch,)
    if isinstance(batch, Mapping):
        inputs = dict(batch)
    else:
        inputs = {f"input_{index}": tensor for index, tensor in enumerate(batch)}
    if not inputs or not all(isinstance(tensor, Tensor) for tensor in inputs.values()):
        kinds = [type(tensor).__name__ for tensor in inputs.values()]
        raise ValueError(
            "`batch` must be a tensor, a tuple of tensors or a mapping from names to tensors, got "
            f"a {type(batch).__name__} of {kinds}."
        )
    lengths = {name: tensor.shape[0] if tensor.dim() else 0 for name, tensor in inputs.items()}
    if len(set(lengths.values())) > 1 or min(lengths.values()) < 2:
        raise ValueError(
            "`batch` must have the same number of examples, at least two, in the first dimension "
            f"of every tensor, got {lengths}."
        )
    return inputs


def free_axes(inputs: Mapping[str, Tensor], bags: Collection[str]) -> dict[str, dict[int, str]]:
    """For every input its dimensions that are of any size, and names for them.

    Raises:
        ValueError: If a bag is none of the inputs or has less than two ids.
    """
    for name in bags:
        if name not in inputs:
            raise ValueError(f"`bags` names {name!r}, which is none of {list(inputs)}.")
        if inputs[name].dim() < 2 or inputs[name].shape[1] < 2:
            raise ValueError(
                f"`batch` must have bags of length two or more for {name!r}, got shape "
                f"{tuple(inputs[name].shape)}."
            )
    return {
        name: {0: "batch", 1: f"length_{index}"} if name in bags else {0: "batch"}
        for index, name in enumerate(inputs)
    }


def as_called(batch: Batch, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
    """What belongs to each input, as the model is called with it."""
    return (dict(inputs),) if isinstance(batch, Mapping) else tuple(inputs.values())
