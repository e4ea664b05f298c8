"""Files that are there when they are whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import uuid


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A new file in the folder of another, of a name of its own, removed at the end.

    Who is killed meanwhile leaves it; its name begins with ``new.`` and ends as that of the other.
    """
    new = path.with_name(f"new.{uuid.uuid4().hex}.{path.name}")
    try:
        yield new
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of an earlier one once nothing has gone wrong.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "numbers.txt")
        ...     with replacing(path) as new:
        ...         _ = new.write_text("1 2 3")
        ...         path.exists()
        ...     path.read_text()
        False
        '1 2 3'
    """
    with beside(path) as new:
        yield new
        new.replace(path)
