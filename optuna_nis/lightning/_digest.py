"""What an object comes to, the same in every process."""

from __future__ import annotations

import hashlib
import io
import pickle
from types import CodeType, FunctionType
from typing import Any

import torch


def digest(value: object) -> str:
    """A digest of an object that tells it apart from others, today and in another process.

    Pickled as usual, tensors say where they are in memory, sets have any order, and functions
    within others are refused: here tensors are their numbers, sets are sorted, and functions are
    what they do.

    Raises:
        Exception: Whatever an object raises that cannot be pickled.

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
    def persistent_id(self, value: Any) -> Any:
        """What stands for an object in its place; None for those that are pickled as usual."""
        if isinstance(value, torch.Tensor) and value.layout is torch.strided:
            numbers = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
            shape = type(value), str(value.dtype), tuple(value.shape), value.requires_grad
            return *shape, numbers.numpy().tobytes()
        if isinstance(value, (set, frozenset)):
            return type(value), *sorted(map(_pickled, value))
        if not isinstance(value, (type, FunctionType)) or "<" not in value.__qualname__:
            return None
        # Neither can be found by its name.
        if isinstance(value, type):
            return value.__module__, value.__qualname__
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        given = value.__defaults__, value.__kwdefaults__
        return value.__module__, *_code(value.__code__), given, cells


def _code(code: CodeType) -> tuple[Any, ...]:
    """What a function does, without where it stands."""
    inner = (_code(each) if isinstance(each, CodeType) else each for each in code.co_consts)
    return code.co_name, code.co_code, code.co_names, *inner
