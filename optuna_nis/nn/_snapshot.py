"""What a module has gathered besides its weights, to be put back after it was evaluated."""

from __future__ import annotations

from collections import UserDict, UserList, deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
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
from weakref import ProxyTypes

import numpy as np
from numpy.typing import NDArray
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
        # They pass for what they refer to, which may be gone.
        *ProxyTypes,
    }
)
# Objects of these are not looked into: trainers, optimisers, data sets, threads.
_CLOSED = frozenset(
    {"torch", "lightning", "pytorch_lightning", "optuna_nis", "logging", "threading"}
    | {"multiprocessing"}
)
_RECORDS = (SimpleNamespace, UserDict, UserList)
_PLAIN = (list, deque, tuple, dict, set)
_REMEMBERING = type(lru_cache(id))
# Kernels such as that of batch normalisation write to buffers without counting it as a change:
# buffers that are not large are always put back.
_LARGE = 2**16
# Entries from which on looking through what a container holds takes long.
_MANY = 2**12
# Containers that torch keeps in every module, many of them and seldom of use.
_HOOKS = frozenset(name for name in vars(nn.Module()) if name.endswith(("_hooks", "_kwargs")))
_MISSING = object()


class Snapshot:
    """The state of a module and its submodules: attributes, containers, tensors, generators.

    What is reached from the module through attributes, lists, dictionaries, sets, tuples and
    deques is put back in place: every object stays the one that it was. Objects are looked into
    if they are modules, records (dataclasses, namespaces), or of the user's own code: of classes
    that are not installed, or that come from the same package as a module. Weights are left
    alone, they are too many. What methods remember of earlier calls (:func:`functools.lru_cache`)
    is forgotten. What large containers of plain values hold, such as the histories of all users,
    is looked through in later snapshots only if something of it was to be put back before.

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
        self._known_arrays = {} if earlier is None else earlier._arrays
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._sequences: list[tuple[list[Any] | deque[Any], list[Any]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        # Large containers by their ids, those of them that hold more than plain values or have
        # changed, and in which of them others are.
        self._many: dict[int, Any] = {}
        self._told: set[int] = set() if earlier is None else set(earlier._told)
        self._inside: dict[int, int] = {}
        self._is_put_back = False
        self._tensors: dict[int, tuple[Tensor, tuple[int, int], Tensor]] = {}
        self._arrays: dict[int, tuple[NDArray[Any], NDArray[Any]]] = {}
        self._others: list[Callable[[], object]] = []
        self._classes: set[type] = set()
        seen: dict[int, Any] = {id(submodule): submodule for submodule in without}
        found: list[tuple[Any, int | None]] = [(module, None)]
        still = {} if earlier is None else earlier._still()
        while found:
            value, many = found.pop()
            if id(value) in seen:
                continue
            seen[id(value)] = value
            if many is not None:
                self._inside[id(value)] = many
                if not isinstance(value, _PLAIN):
                    self._told.add(many)
            elif (
                isinstance(value, _PLAIN) and not isinstance(value, tuple) and len(value) >= _MANY
            ):
                many = id(value)
                self._many[many] = value
                self._inside[many] = many
            held = self._remember(value)
            if many == id(value) and still.get(many) is value:
                continue
            if not _ATOMS.issuperset(map(type, held)):
                found.extend((each, many) for each in held if not _is_fixed(each))
        self._known, self._known_arrays = {}, {}

    def _still(self) -> dict[int, Any]:
        """Large containers of plain values of which nothing was to be put back."""
        if not self._is_put_back:
            return {}
        return {key: value for key, value in self._many.items() if key not in self._told}

    def _tell(self, container: Any) -> None:
        """Note that a container has changed."""
        if (many := self._inside.get(id(container))) is not None:
            self._told.add(many)

    def put_back(self) -> list[Change]:
        """Put everything back as it was.

        Returns:
            What had changed in dictionaries and attributes.
        """
        changes: list[Change] = []
        self._is_put_back = True
        for entries, saved in self._dicts:
            if (
                len(entries) != len(saved)
                or not all(map(is_, entries, saved))
                or not all(map(is_, entries.values(), saved.values()))
            ):
                self._tell(entries)
                changes += [
                    (entries, key, saved.get(key, _MISSING))
                    for key in entries.keys() | saved.keys()
                    if entries.get(key, _MISSING) is not saved.get(key, _MISSING)
                ]
                entries.clear()
                entries.update(saved)
        for sequence, items in self._sequences:
            if len(sequence) != len(items) or not all(map(is_, sequence, items)):
                self._tell(sequence)
                sequence.clear()
                sequence.extend(items)
        for members, before in self._sets:
            if members != before:
                self._tell(members)
                members.clear()
                members.update(before)
        for key, (tensor, version, copy) in self._tensors.items():
            if _version(tensor) != version or key in self._uncounted:
                _write(tensor, copy)
                self._tensors[key] = (tensor, _version(tensor), copy)
        for array, numbers in self._arrays.values():
            np.copyto(array, numbers)
        for put_back in self._others:
            put_back()
        return changes

    def _remember(self, value: Any) -> Collection[Any]:
        """Note how something is put back, and give what it holds."""
        # Most of what there is comes first: a model may hold the history of every user.
        if isinstance(value, (list, deque)):
            items = list(value)
            self._sequences.append((value, items))
            return items
        if isinstance(value, tuple):
            return value
        if isinstance(value, dict):
            entries = dict(value)
            self._dicts.append((value, entries))
            return entries.values()
        if isinstance(value, set):
            self._sets.append((value, set(value)))
        elif isinstance(value, Tensor):
            self._remember_tensor(value)
        elif isinstance(value, np.ndarray):
            self._remember_array(value)
        elif isinstance(value, (torch.Generator, np.random.RandomState)):
            state: Any = value.get_state()
            self._others.append(lambda: value.set_state(state))
        elif isinstance(value, np.random.Generator):
            state = value.bit_generator.state
            self._others.append(lambda: setattr(value.bit_generator, "state", state))
        elif isinstance(value, random.Random):
            state = value.getstate()
            self._others.append(lambda: value.setstate(state))
        elif isinstance(value, _REMEMBERING):
            self._others.append(value.cache_clear)
        elif isinstance(value, nn.Module) or self._is_open(type(value)):
            return list(self._remember_attributes(value))
        return ()

    def _remember_attributes(self, value: Any) -> Iterator[Any]:
        if isinstance(value, nn.Module):
            # It may be held in a list, where those who hold it do not know its buffers.
            buffers = value._buffers.values()
            self._uncounted |= {id(b) for b in buffers if b is not None and b.numel() <= _LARGE}
        with suppress(AttributeError):
            # Not asked for by name: classes may answer as they like to names they do not know.
            attributes = object.__getattribute__(value, "__dict__")
            self._dicts.append((attributes, dict(attributes)))
            without = _HOOKS if isinstance(value, nn.Module) else ()
            yield from [held for name, held in attributes.items() if name not in without]
        for base in filter(self._is_own, type(value).__mro__):
            if base not in self._classes:
                # What all instances of a class share.
                self._classes.add(base)
                yield from vars(base).values()
            for slot in vars(base).values():
                if isinstance(slot, MemberDescriptorType):
                    yield self._remember_slot(value, slot)

    def _remember_slot(self, value: Any, slot: MemberDescriptorType) -> Any:
        held = _held(value, slot)

        def put_back() -> None:
            if held is not _MISSING:
                slot.__set__(value, held)
            elif _held(value, slot) is not _MISSING:
                slot.__delete__(value)

        self._others.append(put_back)
        return None if held is _MISSING else held

    def _remember_array(self, array: NDArray[Any]) -> None:
        if not array.flags.writeable or isinstance(array, np.memmap):
            return
        known, numbers = self._known_arrays.get(id(array), (None, None))
        if known is array and numbers is not None and numbers.shape == array.shape:
            # A large array is not copied anew.
            np.copyto(numbers, array)
        else:
            numbers = array.copy()
        self._arrays[id(array)] = (array, numbers)

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


def _is_fixed(value: Any) -> bool:
    """Whether something cannot change, nor what it holds."""
    kind = type(value)
    return kind in _ATOMS or (kind is tuple and _ATOMS.issuperset(map(type, value)))


def _held(value: Any, slot: MemberDescriptorType) -> Any:
    try:
        return slot.__get__(value)
    except AttributeError:
        return _MISSING


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
