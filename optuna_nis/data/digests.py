"""What files hold, as short texts, without reading a file twice."""

from __future__ import annotations

from contextlib import suppress
import json
from pathlib import Path

from optuna_nis._files import replacing
from optuna_nis.data.files import file_digest

_REMEMBERED = "digests.json"


class Digests:
    """Digests of files, each remembered with its size and the times of its last change.

    Args:
        folder: Where they are remembered.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _REMEMBERED
        self._known: dict[str, str] = {}
        with suppress(FileNotFoundError, json.JSONDecodeError):
            self._known = json.loads(self._path.read_text())

    def of(self, path: Path) -> str:
        """The digest of a file."""
        status = path.stat()
        # Its own time may be set back; that of its entry in the file system is not.
        changed = f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
        key = f"{path.resolve()} {status.st_size} {changed}"
        if key not in self._known:
            self._known[key] = file_digest(path)
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as new:
                new.write_text(json.dumps(self._known))
        return self._known[key]
