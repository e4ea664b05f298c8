"""What a module has gathered besides its weights, to be put back after it was evaluated."""

from __future__ import annotations

from collections import UserDict, UserList, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import is_dataclass
from functools import lru_cache
from operator import is_
import random
import sys
from types import (
    BuiltinFunctionType,
    FunctionType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: A dictionary or the attributes of an object, a key that is new, and what was there before.
Change = tuple[dict[Any, Any], Any, Any]

# What cannot change, or is no state: most of what there is, so it is passed over first.
_ATOMS = frozenset(
    {
        *(bool, int, float, complex, str, bytes, type(None), type, range, slice, frozenset),
        *(FunctionType, MethodType, BuiltinFunctionType, MemberDescriptorType, ModuleType),
        *(torch.device, torch.dtype, torch.Size, nn.Parameter),
    }
)
# Objects of these are not looked into: trainers, optimisers, data sets, threads.
_CLOSED = frozenset(
    {"torch", "lightning", "pytorch_lightning", "optuna_nis", "logging", "threading"}
    | {"multiprocessing"}
)
_RECORDS = (SimpleNamespace, UserDict, UserList)
# Kernels such as that of batch normalisation write to buffers without counting it as a change:
# buffers that are not large are always put back.
_LARGE = 2**16
# Containers that torch keeps in every module, many of them and seldom of use.
_HOOKS = frozenset(name for name in vars(nn.Module()) if name.endswith(("_hooks", "_kwargs")))
_MISSING = object()


class Snapshot:
    """The state of a module and its submodules: attributes, containers, tensors, generators.

    What is reached from the module through attributes, lists, dictionaries, sets, tuples and
    deques is put back in place: every object stays the one that it was. Objects are looked into
    if they are modules, records (dataclasses, namespaces), or of the user's own code: of classes
    that are not installed, or that come from the same package as a module. Weights are left
    alone, they are too many.

    Args:
        module: The module.
        without: Submodules that are left alone, too.
        earlier: The last snapshot of the same module, whose copies of tensors that have not
            changed since are taken over.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        without: Collection[nn.Module] = (),
        earlier: Snapshot | None = None,
    ) -> None:
        self._packages = {_root(type(submodule)) for submodule in module.modules()} - _CLOSED
        self._weights = {_storage(weight) for weight in module.parameters()}
        self._uncounted = {id(b) for b in module.buffers() if b.numel() <= _LARGE}
        self._known = {} if earlier is None else earlier._tensors
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._sequences: list[tuple[list[Any] | deque[Any], list[Any]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._tensors: dict[int, tuple[Tensor, tuple[int, int], Tensor]] = {}
        self._others: list[Callable[[], object]] = []
        self._classes: set[type] = set()
        seen: dict[int, Any] = {id(submodule): submodule for submodule in without}
        found: list[Any] = [module]
        while found:
            value = found.pop()
            if id(value) not in seen:
                seen[id(value)] = value
                found.extend(v for v in self._remember(value) if type(v) not in _ATOMS)
        self._known = {}

    def put_back(self) -> list[Change]:
        """Put everything back as it was.

        Returns:
            What had changed in dictionaries and attributes.
        """
        changes: list[Change] = []
        for entries, saved in self._dicts:
            if (
                len(entries) != len(saved)
                or not all(map(is_, entries, saved))
                or not all(map(is_, entries.values(), saved.values()))
            ):
                changes += [
                    (entries, key, saved.get(key, _MISSING))
                    for key in entries.keys() | saved.keys()
                    if entries.get(key, _MISSING) is not saved.get(key, _MISSING)
                ]
                entries.clear()
                entries.update(saved)
        for sequence, items in self._sequences:
            if len(sequence) != len(items) or not all(map(is_, sequence, items)):
                sequence.clear()
                sequence.extend(items)
        for members, before in self._sets:
            if members != before:
                members.clear()
                members.update(before)
        for key, (tensor, version, copy) in self._tensors.items():
            if _version(tensor) != version or key in self._uncounted:
                _write(tensor, copy)
                self._tensors[key] = (tensor, _version(tensor), copy)
        for put_back in self._others:
            put_back()
        return changes

    def _remember(self, value: Any) -> Iterator[Any]:
        """Note how something is put back, and give what it holds."""
        if isinstance(value, Tensor):
            self._remember_tensor(value)
        elif isinstance(value, dict):
            self._dicts.append((value, dict(value)))
            yield from value.values()
        elif isinstance(value, (list, deque)):
            self._sequences.append((value, list(value)))
            yield from value
        elif isinstance(value, set):
            self._sets.append((value, set(value)))
        elif isinstance(value, tuple):
            yield from value
        elif isinstance(value, np.ndarray):
            if value.flags.writeable and not isinstance(value, np.memmap):
                array = value.copy()
                self._others.append(lambda: np.copyto(value, array))
        elif isinstance(value, (torch.Generator, np.random.RandomState)):
            state: Any = value.get_state()
            self._others.append(lambda: value.set_state(state))
        elif isinstance(value, np.random.Generator):
            state = value.bit_generator.state
            self._others.append(lambda: setattr(value.bit_generator, "state", state))
        elif isinstance(value, random.Random):
            state = value.getstate()
            self._others.append(lambda: value.setstate(state))
        elif isinstance(value, nn.Module) or self._is_open(type(value)):
            yield from self._remember_attributes(value)

    def _remember_attributes(self, value: Any) -> Iterator[Any]:
        attributes = getattr(value, "__dict__", None)
        if attributes is not None:
            self._dicts.append((attributes, dict(attributes)))
            without = _HOOKS if isinstance(value, nn.Module) else ()
            yield from (held for name, held in attributes.items() if name not in without)
        for base in filter(self._is_own, type(value).__mro__):
            if base not in self._classes:
                # What all instances of a class share.
                self._classes.add(base)
                yield from vars(base).values()
            for name, kind in vars(base).items():
                if isinstance(kind, MemberDescriptorType) and hasattr(value, name):
                    yield self._remember_slot(value, name)

    def _remember_slot(self, value: Any, name: str) -> Any:
        held = getattr(value, name)
        self._others.append(lambda: object.__setattr__(value, name, held))
        return held

    def _remember_tensor(self, tensor: Tensor) -> None:
        if (
            type(tensor) is not Tensor
            or tensor.layout != torch.strided
            or tensor.is_nested
            or tensor.is_inference()
            or any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape))
            # A view of a weight, such as `layer.weight.data`.
            or (tensor.numel() and _storage(tensor) in self._weights)
        ):
            return
        known, version, copy = self._known.get(id(tensor), (None, None, tensor))
        counted = id(tensor) not in self._uncounted
        if known is not tensor or version != _version(tensor) or not counted:
            copy = tensor.detach().clone()
            if copy.numel() > _LARGE:
                # The memory of a device is scarce.
                copy = copy.cpu()
        self._tensors[id(tensor)] = (tensor, _version(tensor), copy)

    def _is_open(self, kind: type) -> bool:
        """Whether objects of a class are looked into."""
        if not _CLOSED.isdisjoint(map(_root, kind.__mro__)):
            return False
        return issubclass(kind, _RECORDS) or is_dataclass(kind) or self._is_own(kind)

    def _is_own(self, kind: type) -> bool:
        """Whether a class is of the user's code, or of the package that modules come from."""
        return _root(kind) in self._packages or not _is_installed(kind)


def undo(changes: Iterable[Change]) -> None:
    """Make dictionaries and attributes as they were before some changes."""
    for entries, key, before in changes:
        if before is _MISSING:
            entries.pop(key, None)
        else:
            entries[key] = before


def _version(tensor: Tensor) -> tuple[int, int]:
    """What changes with every write that is counted, and if `tensor.data` is another."""
    return tensor._version, tensor.data_ptr()


def _write(tensor: Tensor, copy: Tensor) -> None:
    if tensor.shape == copy.shape:
        tensor.data.copy_(copy)
    else:
        tensor.data = copy.to(tensor.device, copy=True)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _root(kind: type) -> str:
    return kind.__module__.partition(".")[0]


@lru_cache
def _is_installed(kind: type) -> bool:
    if _root(kind) in sys.stdlib_module_names:
        return True
    path = getattr(sys.modules.get(kind.__module__), "__file__", None) or ""
    return "site-packages" in path or "dist-packages" in path
