"""The ``weight`` of a swapped layer: to be read, not to be written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from optuna_nis.nn._tracing import is_traced

_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
# Only an optimiser asks a tensor whether it keeps a gradient though it is computed.
_ASKED_BY_OPTIMISERS = Tensor.retains_grad.__get__  # type: ignore[attr-defined]


_GRAD = Tensor.grad.__get__  # type: ignore[union-attr]

_HOOKS = ("register_hook", "register_post_accumulate_grad_hook")
_NO_GRADIENT = (
    "{} and has no gradient of its own: look at those of the `parameters()` of the layer."
)
_LOOK_UPS = ("embedding", "embedding_bag")
_AUGMENTED = {
    f"__i{name}__"
    for name in ("add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or")
}


class TableWeight(Tensor):
    """A table as the model sees it, computed from what is trained.

    Whatever reads it gets plain tensors. What would write to it, and be lost, is refused.
    """

    _of: str

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do what is asked with a plain tensor, unless it writes to this one."""
        kwargs = kwargs or {}
        target = kwargs.get("out", args[0] if args else kwargs.get("tensor"))
        name = getattr(func, "__name__", "")
        if isinstance(target, TableWeight):
            if func == _ASKED_BY_OPTIMISERS:
                raise ValueError(
                    f"{_computed(target)} and cannot be optimised. Give the optimiser what is "
                    "trained instead: the `parameters()` of the layer."
                )
            if func == _GRAD:
                raise AttributeError(_NO_GRADIENT.format(_computed(target)))
            if name == "retain_grad":
                raise RuntimeError(_NO_GRADIENT.format(_computed(target)))
            if name in _HOOKS:
                raise RuntimeError(
                    f"{_computed(target)}: a hook of it would never be called. Register it for "
                    "the `parameters()` of the layer."
                )
            if "out" in kwargs or _writes(name):
                raise RuntimeError(
                    f"{_computed(target)}: what is written to it ({name.strip('_')}) would be "
                    "lost. Initialise, load, resize or tie weights before the layer is swapped; "
                    "on a swapped layer `reset_parameters()` starts anew, and "
                    "`requires_grad_(...)` of the layer freezes or unfreezes it."
                )
        if name in _LOOK_UPS and kwargs.get("max_norm") is not None:
            weight = next(each for each in args if isinstance(each, TableWeight))
            raise RuntimeError(
                f"{_computed(weight)}: rows cannot be cut to a norm, `max_norm` must be None."
            )
        plain_args, plain_kwargs = _plain(args), _plain(kwargs)
        output = func(*plain_args, **plain_kwargs)
        if isinstance(target, TableWeight) and (
            func == _DATA or (name == "__getitem__" and output._is_view())
        ):
            # A part of it would be written to as if it were the table; rows of ids are a copy.
            return table_weight(output, target._of)
        return output


def table_weight(rows: Tensor, name: str) -> Tensor:
    """The rows as the weight of a layer of some name."""
    if type(rows) is not Tensor or is_traced():
        return rows
    weight = rows.as_subclass(TableWeight)
    weight._of = name
    return weight


def _computed(weight: TableWeight) -> str:
    return f"The `weight` of the layer {weight._of!r} is computed at each access"


def _writes(name: str) -> bool:
    """Whether a function of such a name changes its first argument."""
    if name.endswith("__"):
        return name in ("__set__", "__setitem__") or name in _AUGMENTED
    return name.endswith("_")


def _plain(value: Any) -> Any:
    if isinstance(value, TableWeight):
        return value.as_subclass(Tensor)
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value)) if not hasattr(value, "_fields") else value
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return value
