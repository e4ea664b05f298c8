"""Batches of any shape: taking their first examples, repeating them for several choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import is_dataclass
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

_SCALARS = (bool, int, float, complex, str, bytes, np.generic, type(None))


def batch_length(batch: Any) -> int:
    """Number of examples: the first dimension that all tensors of a batch share.

    Raises:
        ValueError: If there is no tensor, they do not share it, or there is an object of which
            it is not known how it holds examples.
    """
    lengths: set[int] = set()

    def collect(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) or _is_tensordict(leaf):
            shape = leaf.shape if isinstance(leaf, Tensor) else leaf.batch_size
            lengths.add(shape[0] if len(shape) else -1)
        elif not isinstance(leaf, (*_SCALARS, np.ndarray, list, tuple)) or _is_packed(leaf):
            raise ValueError(f"It is not known which examples a {type(leaf).__name__} holds.")
        return leaf

    _map(batch, collect)
    if len(lengths) != 1 or -1 in lengths:
        raise ValueError(
            "All tensors of a batch must share their first dimension, the examples, got lengths "
            f"{sorted(lengths)}."
        )
    return lengths.pop()


def examples_length(batch: Any) -> int:
    """Number of examples of a batch that can be cut and repeated.

    Raises:
        ValueError: As :func:`batch_length`, and if arrays or lists are of another length, or a
            number may be that of the examples.
    """
    length = batch_length(batch)

    def check(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and (leaf.is_nested or leaf.layout != torch.strided):
            raise ValueError("Tensors of a batch must be neither nested nor sparse to be cut.")
        if _has_rows(leaf) and len(leaf) != length:
            raise ValueError(
                f"Arrays and lists of a batch must be as long as its tensors, {length}, got "
                f"{len(leaf)}."
            )
        if isinstance(leaf, (int, np.integer)) and leaf is not True and leaf == length:
            raise ValueError(f"The number {length} of a batch may be that of its examples.")
        return leaf

    _map(batch, check)
    return length


def take(batch: Any, length: int) -> Any:
    """The first examples of a batch.

    Raises:
        ValueError: As :func:`examples_length`.
    """
    return batch if batch_length(batch) <= length else next(runs(batch, length))


def runs(batch: Any, length: int) -> Iterator[Any]:
    """The examples of a batch in runs of at most so many.

    Raises:
        ValueError: As :func:`examples_length`.
    """
    total = examples_length(batch)
    for start in range(0, total, length):
        part = slice(start, start + length)
        yield _map(batch, lambda leaf: leaf[part] if _has_rows(leaf) else leaf)  # noqa: B023


def repeat(batch: Any, times: int) -> Any:
    """The whole batch several times, one run after the other.

    Raises:
        ValueError: As :func:`examples_length`.
    """
    examples_length(batch)

    def repeated(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) or _is_tensordict(leaf):
            return torch.cat([leaf] * times)
        if isinstance(leaf, np.ndarray):
            return np.concatenate([leaf] * times)
        return leaf * times

    return _map(batch, lambda leaf: repeated(leaf) if _has_rows(leaf) else leaf)


def copied(batch: Any) -> Any:
    """A copy of a batch, as deep as it can be copied: steps may change what they get."""

    def copy(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.clone()
        if isinstance(leaf, _SCALARS):
            return leaf
        try:
            return deepcopy(leaf)
        except (NotImplementedError, RuntimeError, TypeError):
            return leaf  # Not made to be copied.

    try:
        return _map(batch, copy)
    except ValueError:
        return batch  # Not made to be looked into.


class _LeafType(type):
    def __instancecheck__(cls, value: object) -> bool:
        if isinstance(value, Tensor) or _is_tensordict(value) or _is_packed(value):
            return True
        if isinstance(value, Mapping) or is_dataclass(value) or hasattr(value, "_fields"):
            return False
        return not isinstance(value, Sequence) or _is_plain(value)


class _Leaf(metaclass=_LeafType):
    """Whatever is not looked into: anything but a collection, and examples in a list."""


def _map(batch: Any, function: Callable[[Any], Any]) -> Any:
    try:
        return apply_to_collection(batch, _Leaf, function)
    except TypeError as error:
        raise ValueError(f"A batch is not of a type that can be made anew: {error}") from error


def _has_rows(leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray):
        return leaf.ndim > 0
    return isinstance(leaf, (Tensor, list, tuple)) or _is_tensordict(leaf)


def _is_plain(value: object) -> bool:
    """Whether something is a scalar, or a list of scalars or of such lists."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _SCALARS)


def _is_tensordict(value: object) -> bool:
    return isinstance(getattr(value, "batch_size", None), torch.Size)


def _is_packed(value: object) -> bool:
    return isinstance(value, PackedSequence)
