"""Parameters that are part of a computation whose gradients are still to come."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge


def check_unused(weight: nn.Parameter, name: str) -> None:
    """Raise a ValueError if a table cannot be given other rows, since a computation needs them."""
    if _in_graph(weight) and (weight._use_count() > 2 or weakref.getweakrefs(weight)):  # type: ignore[attr-defined]
        raise ValueError(
            f"The table of {name!r} is part of a computation that is still held, such as the "
            "`loss` or the predictions of an earlier step. Let go of it before the swap: "
            "`del loss`."
        )


def refill(weight: nn.Parameter, values: Tensor) -> None:
    """Give a parameter other numbers and another shape; it stays the same object.

    Args:
        weight: The parameter, one that passed :func:`check_unused`.
        values: The numbers.
    """
    weight.grad = None
    if not _in_graph(weight):
        weight.data = values.detach()
        return
    # The node that gathers its gradient knows its old shape, and would serve new computations.
    kept = dict(weight.__dict__)
    torch.utils.swap_tensors(  # type: ignore[no-untyped-call]
        weight, nn.Parameter(values.detach())
    )
    weight.__dict__.update(kept)


def _in_graph(weight: nn.Parameter) -> bool:
    """Whether the node that gathers the gradient of a parameter exists already."""
    if not weight.requires_grad:
        return False
    count: int = weight._use_count()  # type: ignore[attr-defined]
    # Asked for, the node is made if there is none, and then refers to the parameter.
    node = get_gradient_edge(weight).node
    exists: bool = weight._use_count() == count  # type: ignore[attr-defined]
    del node
    return exists
