"""Checks of arguments that several modules need."""

from __future__ import annotations

from collections.abc import Iterable
from glob import has_magic
import math
from numbers import Integral, Real
import os
from pathlib import Path
import tempfile
from typing import Final, TypeVar

Kind = TypeVar("Kind")

#: The largest seed.
MOST_SEED: Final = 2**63 - 1


def check_seed(name: str, value: object) -> None:
    """Check that an argument is a seed that torch takes and every storage can hold.

    Raises:
        ValueError: If it is not.
    """
    check_integer(name, value, 0, MOST_SEED)


def check_integer(name: str, value: object, least: int, most: int | None = None) -> None:
    """Check that an argument is an integer of at least some number, and at most another one.

    Raises:
        ValueError: If it is not.
    """
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    high = math.inf if most is None else most
    if not (is_whole and least <= value <= high):  # type: ignore[operator]
        limit = f"of at least {least}" if most is None else f"between {least} and {most}"
        # What NumPy counts with can be written into no JSON.
        is_other = isinstance(value, Integral) and not isinstance(value, int)
        kind = "an integer of Python" if is_other else "an integer"
        raise ValueError(f"`{name}` must be {kind} {limit}, got {value!r}.")


def check_number(
    name: str,
    value: object,
    least: float,
    below: float = math.inf,
    *,
    or_least: bool = True,
) -> None:
    """Check that an argument is a number in some range.

    Raises:
        ValueError: If it is not.
    """
    fits = isinstance(value, Real) and not isinstance(value, bool)
    if fits:
        number = float(value)  # type: ignore[arg-type]
        fits = least <= number < below and (or_least or number > least)
    if not fits:
        bracket = "[" if or_least else "("
        raise ValueError(
            f"`{name}` must be a number in {bracket}{least:g}, {below:g}), got {value!r}."
        )


def instances(name: str, given: object, kind: type[Kind]) -> tuple[Kind, ...]:
    """An argument that must hold objects of one kind, and hold them one after the other.

    Raises:
        TypeError: If it is something else.
    """
    found = tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else None
    wrong = [given] if found is None else [each for each in found if not isinstance(each, kind)]
    if found is None or wrong:
        raise TypeError(
            f"`{name}` must be a sequence of `{kind.__name__}`, got "
            f"{'' if found is None else 'one with '}{wrong[0]!r}."
        )
    return found


def check_source(name: str, path: str | os.PathLike[str]) -> None:
    """Check that there is something to read: a file, a folder, or a pattern of files.

    Raises:
        FileNotFoundError: If there is none, and the path is no pattern.
    """
    is_there = Path(path).is_file() or Path(path).is_dir()
    if not is_there and not has_magic(str(path)):
        raise FileNotFoundError(
            f"`{name}` must be a file, got {str(path)!r}, which is none, nor a folder."
        )


def check_label(table: object, label: str | None) -> None:
    """Check that a label is named, if there is a table.

    Raises:
        ValueError: If not.
    """
    if table is not None and label is None:
        raise ValueError("`label` must name the label's column of the table, got None.")


def check_file(name: str, path: str | os.PathLike[str]) -> None:
    """Check that a file can be written, before hours of work are lost; nothing is left behind.

    Raises:
        ValueError: If it is a folder, or it or its folder cannot be written or made.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"`{name}` must be a file to write, got the folder {str(path)!r}.")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise ValueError(f"`{name}` must be a file that can be written, got {str(path)!r}.")
        return
    _check_parent(name, path)


def check_table_file(name: str, path: str | os.PathLike[str]) -> None:
    """Check that a table can be written into a file.

    Raises:
        ValueError: If its name ends in something else than it may, or as in :func:`check_file`.
    """
    suffixes = (".csv", ".csv.gz", ".parquet")
    if not Path(path).name.endswith(suffixes):
        raise ValueError(
            f"`{name}` must be a file that ends in one of {', '.join(suffixes)}, got "
            f"{str(path)!r}."
        )
    check_file(name, path)


def check_folder(name: str, path: str | os.PathLike[str]) -> None:
    """Check that files can be written into a folder; nothing is left behind.

    Raises:
        ValueError: If it is a file, or it cannot be written or made.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"`{name}` must be a folder to write, got the file {str(path)!r}.")
    _check_parent(name, path / "new")


def _check_parent(name: str, path: Path) -> None:
    """Check that the nearest folder that exists takes a new file or folder."""
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise ValueError(
            f"`{name}` must be somewhere that can be written, got {str(path)!r}; {str(parent)!r} "
            f"takes no new file: {error.strerror}."
        ) from error
