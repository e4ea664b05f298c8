"""Which files a path, several of them, a folder or a pattern stands for, and in which format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
import os
from pathlib import Path
import re
from typing import Final, Literal
from urllib.parse import unquote

from optuna_nis._checks import check_source

Format = Literal["delimited", "atomic", "libsvm", "parquet"]

#: A file, several, a folder of parts, or a pattern such as ``"logs/day_*.parquet"``.
Paths = str | Path | Sequence[str | Path]

_COMPRESSED: Final = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".xz": "xz"}
_TEXT: Final[dict[str, tuple[Format, str]]] = {
    ".csv": ("delimited", ","),
    ".tsv": ("delimited", "\t"),
    **dict.fromkeys((".inter", ".user", ".item"), ("atomic", "\t")),
    **dict.fromkeys((".libsvm", ".libfm", ".svm"), ("libsvm", "\x01")),
}
_PARQUET: Final = (".parquet", ".pq")
_NO_VALUE: Final = ("__HIVE_DEFAULT_PARTITION__", "")


@dataclass(frozen=True)
class TableFile:
    """A file and how it is written.

    Attributes:
        path: Where it is.
        format: What it is.
        separator: What stands between two cells of a text file.
        compression: Of a text file, as pyarrow calls it, or None.
        partition: Columns of which the path has the value, as in ``day=3/part-0.parquet``; None
            stands for a missing one.
    """

    path: Path
    format: Format
    separator: str = ""
    compression: str | None = None

    @property
    def partition(self) -> dict[str, str | None]:
        """The columns of which the path has the value."""
        found = {}
        for part in reversed(self.path.parts[:-1]):
            name, equals, value = part.partition("=")
            if not equals or not name:
                break
            found[unquote(name)] = None if value in _NO_VALUE else unquote(value)
        return dict(reversed(found.items()))


def find_files(path: Paths, separator: str | None = None) -> list[TableFile]:
    """The files of a table, in a fixed order: that of a list, else that of people, 2 before 10.

    Files of a folder are left out if they are empty, or if their name begins with a dot or an
    underscore, such as ``_SUCCESS``.

    Args:
        path: A file, several, a folder of files, at any depth, or a pattern as those of
            :func:`glob.glob`, in which ``**`` stands for folders.
        separator: What stands between two cells of text files, by default what their names say.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is of an unknown format, another one than the others, or named twice.
    """
    check_path(path, separator)
    found: list[TableFile] = []
    for each in _listed(path):
        found += [table_file(file, separator) for file in _expanded(each)]
    first = found[0]
    for file in found:
        if file.format != first.format:
            raise ValueError(
                "The files of a table must be of one format, got "
                f"{str(first.path)!r} and {str(file.path)!r}."
            )
    paths = [file.path.resolve() for file in found]
    if len(set(paths)) < len(paths):
        twice = next(each.path for each, where in zip(found, paths) if paths.count(where) > 1)
        raise ValueError(f"`path` must name each file once, got {str(twice)!r} twice.")
    return found


def check_path(path: Paths, separator: str | None = None) -> None:
    """Check what can be checked of a path without reading anything.

    Raises:
        TypeError: If it is no path.
        ValueError: If it can be no table by its name, or ``separator`` is wrong.
    """
    if separator is not None and (
        not isinstance(separator, str) or len(separator.encode()) != 1 or separator in '"\r\n'
    ):
        raise ValueError(
            "`separator` must be the one character between two cells, such as ';', got "
            f"{separator!r}."
        )
    listed = _listed(path)
    if not listed:
        raise ValueError(f"`path` must name at least one file, got {path!r}.")
    for each in listed:
        if not Path(each).is_dir() and not has_magic(str(each)):
            table_file(Path(each), separator)


def table_file(path: Path, separator: str | None = None) -> TableFile:
    """How a file is written, by its name.

    Raises:
        ValueError: If the name does not say it.
    """
    name, compression = path.name.lower(), None
    if name.endswith(_PARQUET):
        if separator is not None:
            raise ValueError(
                f"`separator` is for text files, got {separator!r} for {str(path)!r}."
            )
        return TableFile(path, "parquet")
    for suffix, kind in _COMPRESSED.items():
        if name.endswith(suffix):
            name, compression = name.removesuffix(suffix), kind
    found = next((each for suffix, each in _TEXT.items() if name.endswith(suffix)), None)
    if separator is not None and (found is None or found[0] != "libsvm"):
        found = "delimited" if found is None else found[0], separator
    if found is None:
        known = (*(each + more for each in (".csv", ".tsv") for more in ("", ".gz")), *_PARQUET)
        raise ValueError(
            f"`path` must end in one of {', '.join((*known, *list(_TEXT)[2:]))} (text also in "
            f"{', '.join(_COMPRESSED)}), or be a folder or pattern of such files, got "
            f"{str(path)!r}. For text under another name, say what is between its cells: "
            "`separator`."
        )
    return TableFile(path, *found, compression)


def _listed(path: Paths) -> list[str | Path]:
    if isinstance(path, (str, Path)):
        return [path]
    if not isinstance(path, Sequence) or not all(isinstance(each, (str, Path)) for each in path):
        kind = type(path).__name__
        raise TypeError(
            f"`path` must be a file, several, a folder or a pattern, got a {kind}."
            + (" Write it first: `frame.to_parquet(...)`." if kind == "DataFrame" else "")
        )
    return list(path)


def _expanded(path: str | Path) -> list[Path]:
    check_source("path", path)
    whole = Path(path)
    if whole.is_file():
        return [whole]
    if whole.is_dir():
        found = list(_walk(whole))
        kind = "folder"
    else:
        matches = [Path(each) for each in glob(str(path), recursive=True)]
        folders = [each for each in matches if each.is_dir() and not _is_hidden(each.name)]
        found = [each for each in matches if each.is_file() and _is_part(each)]
        found += [each for folder in folders for each in _walk(folder)]
        kind = "pattern"
    if not found:
        raise FileNotFoundError(
            f"`path` must be a file, or a folder or pattern of files, got the {kind} "
            f"{str(path)!r}, in which there is none."
        )
    return sorted(set(found), key=_natural)


def _walk(folder: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(folder, followlinks=True):
        if "_delta_log" in folders:
            raise ValueError(
                f"{where!r} is a Delta table, whose files hold removed rows too; write its rows "
                "to a folder of Parquet files."
            )
        folders[:] = [each for each in folders if not _is_hidden(each)]
        yield from filter(_is_part, (Path(where, each) for each in files))


def _is_part(path: Path) -> bool:
    return not _is_hidden(path.name) and path.stat().st_size > 0


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _natural(path: Path) -> tuple[list[list[str | int]], str]:
    parts = [re.split("([0-9]+)", part) for part in path.parts]
    return [[int(e) if e.isdigit() else e for e in part] for part in parts], str(path)
