"""Long texts that a study keeps for its searches, such as their vocabularies.

They are JSON of megabytes, which people do not read: compressed, in system attributes. A piece
has the digest of the whole in its name, and the entry that names the digest is written last, so
that a text is there as a whole or not at all, whoever else writes at the same time.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from typing import Any, Final
import zlib

from optuna import Study

VOCABULARY: Final = "vocabulary"
"""Name of the text that holds the vocabularies of a search."""

_VERSION = 1
_PREFIX = "nis:kept:"
# As in `results`: MySQL keeps at most 65,535 bytes of an attribute.
_PIECE = 32_000
# What a study holds may come from anyone: more than this is not read.
_MOST_PIECES = 20_000
_MOST_BYTES = 4_000_000_000


def keep_text(study: Study, name: str, text: str) -> None:
    """Keep a text with a study, in place of an earlier one.

    Args:
        study: The study.
        name: What the text is found under.
        text: The text.

    Raises:
        ValueError: If it is too long, some 600 MB compressed.

    Example:
        >>> keep_text(study, "notes", "a long text")
        >>> kept_text(study, "notes")
        'a long text'
    """
    packed = base64.b85encode(zlib.compress(text.encode())).decode("ascii")
    digest = _digest(packed)
    pieces = [packed[i : i + _PIECE] for i in range(0, len(packed), _PIECE)]
    if len(pieces) > _MOST_PIECES:
        raise ValueError(
            f"`text` named {name!r} must have at most {_MOST_PIECES * _PIECE:,} characters when "
            f"compressed, got {len(packed):,}."
        )
    for index, piece in enumerate(pieces):
        _set(study, f"{_PREFIX}{name}:{digest}:{index}", piece)
    entry = {"version": _VERSION, "digest": digest, "pieces": len(pieces)}
    _set(study, _PREFIX + name, entry)


def kept_text(study: Study, name: str) -> str | None:
    """What :func:`keep_text` kept, :obj:`None` if a study keeps no such text.

    Args:
        study: The study.
        name: What the text is found under.

    Raises:
        ValueError: If the study holds something else in its place.

    Example:
        >>> kept_text(study, "notes") is None
        True
    """
    attrs = study._storage.get_study_system_attrs(study._study_id)
    if (entry := attrs.get(_PREFIX + name)) is None:
        return None
    try:
        return _unpack(attrs, name, entry)
    except (ValueError, zlib.error) as error:
        raise ValueError(
            f"The system attribute {_PREFIX + name!r} of {study.study_name!r} cannot be read: "
            f"{error}"
        ) from error


def _unpack(attrs: dict[str, Any], name: str, entry: Any) -> str:
    found = entry if isinstance(entry, dict) else {}
    if found.get("version") != _VERSION:
        raise ValueError(f"it must be of version {_VERSION}, got {str(entry)[:80]!r}.")
    digest, count = found.get("digest"), found.get("pieces")
    if not isinstance(count, int) or not 0 <= count <= _MOST_PIECES:
        raise ValueError(f"it must have at most {_MOST_PIECES:,} pieces, got {count!r}.")
    keys = (f"{_PREFIX}{name}:{digest}:{index}" for index in itertools.count())
    packed = "".join(str(attrs.get(key, "")) for key in itertools.islice(keys, count))
    if _digest(packed) != digest:
        raise ValueError("its pieces are not all there.")
    reader = zlib.decompressobj()
    text = reader.decompress(base64.b85decode(packed), _MOST_BYTES)
    if not reader.eof:
        raise ValueError(f"it must hold a text of at most {_MOST_BYTES:,} bytes.")
    return text.decode()


def _digest(packed: str) -> str:
    return hashlib.sha256(packed.encode()).hexdigest()[:16]


def _set(study: Study, key: str, value: Any) -> None:
    study._storage.set_study_system_attr(study._study_id, key, value)
