"""Names of files by their content."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from itertools import chain
import json
import os
from pathlib import Path

_REMEMBERED = "digests.json"


def content_digest(parts: Sequence[Sequence[Path]], folder: Path) -> str:
    """A text that is another one as soon as a file, or their order, is.

    A file is read once: what it was is remembered with its size and the time of its last change.

    Args:
        parts: The files of each part of a table.
        folder: Where digests are remembered.
    """
    remembered = folder / _REMEMBERED
    known: dict[str, str] = {}
    with suppress(FileNotFoundError, json.JSONDecodeError):
        known = json.loads(remembered.read_text())
    digests = {}
    for path in chain.from_iterable(parts):
        status = path.stat()
        key = f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
        digests[key] = known.get(key) or _file_digest(path)
    if not digests.keys() <= known.keys():
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f"new.{os.getpid()}.{_REMEMBERED}"
        new.write_text(json.dumps(known | digests))
        new.replace(remembered)
    # Names of parts may be values of a column, such as day=3.
    names = [[f"{path.parent.name}/{path.name}" for path in part] for part in parts]
    text = json.dumps([names, list(digests.values())])
    return blake2b(text.encode(), digest_size=12).hexdigest()


def _file_digest(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
