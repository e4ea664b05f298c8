"""Tensors in files."""

from __future__ import annotations

import os
from typing import Any

import torch


def read(path: str | os.PathLike[str]) -> Any:
    """What :func:`write` has written in a folder of one's own, page by page as it is needed.

    Not for files of others: models and optimisers may hold any object, and it is made anew.
    """
    return torch.load(path, map_location="cpu", weights_only=False, mmap=True)


def write(value: Any, path: str | os.PathLike[str]) -> None:
    """As :func:`torch.save`, which says of a full disk that a position is unexpected.

    Raises:
        OSError: If the file cannot be written, and why.
    """
    try:
        with open(path, "wb") as file:
            torch.save(value, file)
    except (RuntimeError, OSError) as error:
        why = error if isinstance(error, OSError) else error.__context__
        # Where the rest is written as the file is closed, the name is missing.
        if isinstance(why, OSError) and why.errno is not None and why.filename is None:
            raise OSError(why.errno, why.strerror, os.fspath(path)) from error
        raise
