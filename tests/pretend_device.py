"""A device that computes on the CPU, but tells tensors on it and on the CPU apart.

What would fail on a GPU fails here, too: an operation on tensors of both. The numbers are real, so
they can be compared, and shapes may depend on data. It counts how often the device would be
waited for.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

#: A type of device that every build of torch knows, and that no tensor is on otherwise.
DEVICE = torch.device("lazy:0")

_aten = torch.ops.aten
# Their results depend on data on the device: as a number, or in their shape.
_WAITING = {
    _aten._local_scalar_dense,
    _aten.bincount,
    _aten.equal,
    _aten.is_nonzero,
    _aten.masked_select,
    _aten.nonzero,
    _aten._unique2,
    _aten.unique_dim,
    _aten.unique_consecutive,
}
_MOVING = {_aten._to_copy, _aten.copy_}


class OnDevice(Tensor):
    """A tensor on the device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        more: dict[str, Any] = {}
        if inner.layout is torch.strided:
            more = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined,no-any-return]
            cls, inner.size(), dtype=inner.dtype, layout=inner.layout, device=DEVICE, **more
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @property
    def data(self) -> Tensor:  # type: ignore[override]
        return self.detach()

    @data.setter
    def data(self, value: OnDevice) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.inner = value.inner

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.inner})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})


class PretendDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on :data:`DEVICE` and moved there.

    Attributes:
        waits: How often the device had to be waited for, by the operation.
        uploads: Number of tensors that were copied to the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Count anew."""
        self.waits: Counter[str] = Counter()
        self.uploads = 0

    def __enter__(self) -> PretendDevice:
        global _counting
        _counting = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        global _counting
        _counting = None
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


_counting: PretendDevice | None = None


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)]
    inside = any(isinstance(tensor, OnDevice) for tensor in tensors)
    wanted = kwargs.get("device")
    to_device = inside if wanted is None else torch.device(wanted).type == DEVICE.type
    packet = func.overloadpacket
    if packet is _aten.copy_:
        to_device = isinstance(args[0], OnDevice)
    elif inside and packet is not _aten._to_copy:
        _check(func, tensors, args)
    if _counting is not None and (inside or to_device):
        _count(func, args, kwargs, to_device)
    if to_device and wanted is not None:
        kwargs = {**kwargs, "device": "cpu"}
    args, kwargs = tree_map(_unwrapped, (args, kwargs))
    result = func(*args, **kwargs)
    if func._schema.is_mutable:
        return _mutated(func, result, args, tensors)
    return tree_map(lambda each: _wrapped(each) if to_device else each, result)


def _check(func: Any, tensors: list[Tensor], args: Any) -> None:
    if func.overloadpacket in (_aten.index, _aten.index_put, _aten.index_put_):
        # Indices may be on the CPU, and are taken along.
        tensors = [args[0], *(each for each in args[2:] if isinstance(each, Tensor))]
    for tensor in tensors:
        if not isinstance(tensor, OnDevice) and tensor.dim():
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but {func} got some on {DEVICE} "
                f"and one on {tensor.device}."
            )


def _count(func: Any, args: Any, kwargs: dict[str, Any], to_device: bool) -> None:
    assert _counting is not None
    packet = func.overloadpacket
    waits = packet in _WAITING
    if packet in _MOVING:
        source = args[1] if packet is _aten.copy_ else args[0]
        blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
        if to_device and not isinstance(source, OnDevice):
            # A number, of no dimension, is handed over with the operation.
            _counting.uploads += source.dim() > 0
            waits = blocking and source.dim() > 0
        elif isinstance(source, OnDevice) and not to_device:
            waits = blocking
    elif packet is _aten.repeat_interleave:
        waits = "Tensor" in func._overloadname and kwargs.get("output_size") is None
    elif packet in (_aten.index, _aten.index_put, _aten.index_put_):
        indices = [each for each in args[1] if each is not None]
        waits = any(each.dtype in (torch.bool, torch.uint8) for each in indices)
        _counting.uploads += sum(not isinstance(each, OnDevice) for each in indices)
    if waits:
        _counting.waits[packet.__name__] += 1


def _unwrapped(each: Any) -> Any:
    return each.inner if isinstance(each, OnDevice) else each


def _wrapped(each: Any) -> Any:
    return OnDevice(each) if isinstance(each, Tensor) and type(each) is not OnDevice else each


def _mutated(func: Any, result: Any, args: Any, tensors: list[Tensor]) -> Any:
    """What an operation gives that writes into its arguments: these, as they were given."""
    known = {id(_unwrapped(tensor)): tensor for tensor in tensors}
    return tree_map(lambda each: known.get(id(each), each), result)
