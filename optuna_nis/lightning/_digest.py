"""What an object comes to, the same in every process."""

from __future__ import annotations

from collections.abc import Iterator
import dis
import hashlib
import io
import pickle
from types import CodeType, FunctionType, ModuleType
from typing import Any

import torch


def digest(value: object) -> str:
    """A digest of an object that tells it apart from others, today and in another process.

    Pickled as usual, tensors say where they are in memory, sets have any order, and functions
    within others are refused: here tensors are their numbers, sets are sorted, and such functions
    are their code with what it refers to.

    Raises:
        Exception: Whatever an object raises that cannot be pickled, classes within functions
            among them.

    Example:
        >>> digest({"a", "b"}) == digest({"b", "a"}) != digest({"a"})
        True
        >>> digest(lambda x: x + 1) == digest(lambda x: x + 1) != digest(lambda x: x + 2)
        True
    """
    return hashlib.sha256(_pickled(value)).hexdigest()


def _pickled(value: object) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=4).dump(value)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Functions that were met, which may refer to themselves, by their addresses.
        self._met: dict[int, tuple[int, FunctionType]] = {}

    def persistent_id(self, value: Any) -> Any:
        """What stands for an object in its place; None for those that are pickled as usual."""
        if isinstance(value, torch.Tensor) and value.layout is torch.strided:
            if value.is_quantized:
                raise TypeError("Cannot tell quantized tensors apart.")
            numbers = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
            shape = type(value), str(value.dtype), tuple(value.shape), value.requires_grad
            return *shape, numbers.numpy().tobytes()
        if isinstance(value, torch.UntypedStorage | torch.TypedStorage):
            raise TypeError("Cannot tell storages apart: they say where they are in memory.")
        if isinstance(value, set | frozenset):
            own = getattr(value, "__dict__", None)
            return type(value), _pickled(own), *sorted(map(_pickled, value))
        if isinstance(value, ModuleType):
            return "module", value.__name__
        # Others are found by their names, which in a notebook are given anew.
        if isinstance(value, FunctionType) and (
            "<" in value.__qualname__ or value.__module__ == "__main__"
        ):
            return self._function(value)
        return None

    def _function(self, value: FunctionType) -> tuple[Any, ...]:
        if id(value) in self._met:
            return "function", self._met[id(value)][0]
        self._met[id(value)] = len(self._met), value
        code, known = value.__code__, value.__globals__
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        given = value.__defaults__, value.__kwdefaults__, value.__dict__
        names = sorted({name for each in _codes(code) for name in _globals(each) if name in known})
        return value.__module__, _told(code), given, cells, [(n, known[n]) for n in names]


def _globals(code: CodeType) -> Iterator[str]:
    """The names that it looks up in its module, and not those of attributes."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval


def _codes(code: CodeType) -> Iterator[CodeType]:
    """The code of a function and of those within it."""
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def _told(code: CodeType) -> tuple[Any, ...]:
    """What a function does, without where it stands."""
    inner = (_told(each) if isinstance(each, CodeType) else each for each in code.co_consts)
    kinds = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    given = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    # From Python 3.11 on.
    handlers = getattr(code, "co_exceptiontable", b"")
    return code.co_name, code.co_code, handlers, code.co_names, kinds, given, *inner
