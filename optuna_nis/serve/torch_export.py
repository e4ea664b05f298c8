"""A model as a program of torch.export, for any batch size."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
import inspect
from typing import Any
import warnings

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental import _config

from optuna_nis.nn._layers import check_not_searchable
from optuna_nis.nn._modes import modes_kept

#: What a model is called with: one tensor, several, or a mapping of names to tensors.
Batch = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

# Names are written into the source of programs as they are.
_QUOTES = frozenset("'\"")


def to_torch_export(
    model: nn.Module, batch: Batch, *, bags: Collection[str] = ()
) -> ExportedProgram:
    """Trace a model, for batches of any size.

    Args:
        model: A model with multi-size layers, swapped, quantised or dense. It is traced in
            evaluation mode and left as it is.
        batch: An example of what the model is called with, of at least two examples: a tensor, a
            tuple of tensors, one for each argument, or a mapping from names to tensors. A mapping
            whose names are those of the arguments of ``forward`` is given by keyword
            (``model(**batch)``), any other as the one argument. The first dimension of each tensor
            is the batch.
        bags: Inputs whose second dimension is of any size, too, such as bags filled up with the
            id unknown; their names in a mapping, else ``"input_0"``, ``"input_1"`` and so on.

    Returns:
        The program; call its ``module()``, or keep it with :func:`torch.export.save`.

    Raises:
        ValueError: If the batch is not of this form or has less than two examples, a name in it
            has a quote, a bag is not in it, the model is still searchable, or it cannot be traced
            for any batch size.

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
    inputs = Inputs.of(model, batch)
    # A tensor that is given for two inputs would be traced as one.
    tensors = {name: tensor.clone() for name, tensor in inputs.tensors.items()}
    axes = free_axes(tensors, bags)
    sizes = {name: Dim(name) for free in axes.values() for name in free.values()}
    shapes = ShapesCollection()  # type: ignore[no-untyped-call]
    for name, free in axes.items():
        shapes[tensors[name]] = {axis: sizes[size] for axis, size in free.items()}
    args, kwargs = inputs.as_called(tensors)
    problem: Exception | None = None
    with (
        modes_kept(model),
        _arguments(model, kwargs) if kwargs else nullcontext(),
        warnings.catch_warnings(),
    ):
        model.eval()
        # What recurrent layers keep of their weights is given back to them.
        warnings.filterwarnings("ignore", "The tensor attributes .*_flat_weights")
        dynamic = shapes.dynamic_shapes(model, args, kwargs)  # type: ignore[no-untyped-call]
        # As torch.onnx does, so that a batch of one is as good as any. Recurrent layers and
        # attention cannot be traced so, but as torch traces by default.
        for oblivious in (True, False):
            with torch.no_grad(), _config.patch(backed_size_oblivious=oblivious):  # type: ignore[attr-defined]
                try:
                    return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic)
                except (torch._dynamo.exc.UserError, RuntimeError) as error:
                    problem = error
    raise ValueError(
        f"`model`, a {type(model).__name__}, cannot be exported for batches of any size: {problem}"
    ) from problem


@dataclass(frozen=True)
class Inputs:
    """The inputs of a model.

    Attributes:
        tensors: Examples by name.
        form: How the model takes them: ``"positional"``, ``"mapping"`` or ``"keyword"``.
    """

    tensors: dict[str, Tensor]
    form: str

    @classmethod
    def of(cls, model: nn.Module, batch: Batch) -> Inputs:
        """What a batch becomes.

        Raises:
            ValueError: If the batch is not of a form that is known, has less than two examples, or
                has names that no argument or no program can have.
        """
        if isinstance(batch, Tensor):
            batch = (batch,)
        form = "positional"
        if isinstance(batch, Mapping):
            tensors = dict(batch)
            form = "keyword" if _by_keyword(model, tensors) else "mapping"
            if form == "keyword" and (wrong := [n for n in tensors if not n.isidentifier()]):
                raise ValueError(
                    "`batch` must have names of Python's arguments where `model` takes them by "
                    f"keyword, got {wrong[0]!r}."
                )
            if wrong := [name for name in tensors if not _QUOTES.isdisjoint(str(name))]:
                raise ValueError(
                    "`batch` must have names without quotes, with which what torch.export writes "
                    f"cannot be called, got {wrong[0]!r}. Train the model with another name of it."
                )
        elif isinstance(batch, Sequence):
            tensors = {f"input_{index}": tensor for index, tensor in enumerate(batch)}
        else:
            tensors = {}
        if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
            kinds = [type(tensor).__name__ for tensor in tensors.values()]
            raise ValueError(
                "`batch` must be a tensor, a tuple of tensors or a mapping from names to tensors, "
                f"got a {type(batch).__name__} of {kinds}."
            )
        lengths = {
            name: tensor.shape[0] if tensor.dim() else 0 for name, tensor in tensors.items()
        }
        if len(set(lengths.values())) > 1 or min(lengths.values()) < 2:
            raise ValueError(
                "`batch` must have the same number of examples, at least two, in the first "
                f"dimension of every tensor, got {lengths}."
            )
        return cls(tensors, form)

    def as_called(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What belongs to each input, as arguments of the model, by position and by keyword."""
        if self.form == "keyword":
            return (), dict(values)
        return (dict(values),) if self.form == "mapping" else tuple(values.values()), {}


def _by_keyword(model: nn.Module, names: Iterable[str]) -> bool:
    """Whether a model takes such arguments by keyword, rather than a mapping of them."""
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(**dict.fromkeys(names))
    except TypeError:
        return False
    parameters = signature.parameters.values()
    known = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD} & bound.arguments.keys()
    # If any names would do, one argument may be meant.
    return bool(known) or all(p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters)


@contextmanager
def _arguments(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Let a model have arguments of these names alone: torch.export cannot free others."""
    forward = model.forward

    def by_keyword(**kwargs: Any) -> Any:
        return forward(**kwargs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    by_keyword.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, kind) for name in names]
    )
    own = vars(model).get("forward")
    model.forward = by_keyword
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own


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
