"""Tensors in files."""

from __future__ import annotations

import os
from typing import Any

import torch


def write(value: Any, path: str | os.PathLike[str]) -> None:
    """As :func:`torch.save`, which says of a full disk that a position is unexpected.

    Raises:
        OSError: If the file cannot be written, and why.
    """
    try:
        with open(path, "wb") as file:
            torch.save(value, file)
    except RuntimeError as error:
        why = error.__context__
        if isinstance(why, OSError):
            raise OSError(why.errno, why.strerror, os.fspath(path)) from error
        raise
