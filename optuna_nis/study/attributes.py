"""Long texts and numbers among the attributes of a study.

A short text is a user attribute as it is, for people to read. A longer one, such as the
vocabularies of a search, which are megabytes, is compressed into pieces in system attributes. A
piece has the digest of the whole in its name, and the user attribute that names the digest is
written last: a text is there as a whole or not at all, whoever else writes at the same time.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
import hashlib
import itertools
import json
from typing import Any
import zlib

from optuna import Study

from optuna_nis.study.keys import PIECE_KEY

_VERSION = 1
_LONGEST_READABLE = 16_000
# MySQL keeps at most 65,535 bytes of an attribute.
_PIECE = 32_000
# What a study holds may come from anyone: more than this is not read.
_MOST_PIECES = 20_000
_MOST_BYTES = 4_000_000_000
_MOST_PLAIN = 4_000_000


def save_text(study: Study, key: str, text: str) -> None:
    """Keep a text with a study, in place of an earlier one.

    Args:
        study: The study.
        key: Name of the user attribute under which it is found.
        text: The text.

    Raises:
        ValueError: If it is too long, some 600 MB compressed.

    Example:
        >>> save_text(study, "notes", "a text")
        >>> read_text(study, "notes")
        'a text'
    """
    value: str | dict[str, Any] = text
    if len(json.dumps(text)) > _LONGEST_READABLE:
        packed = base64.b85encode(zlib.compress(text.encode())).decode("ascii")
        pieces = [packed[i : i + _PIECE] for i in range(0, len(packed), _PIECE)]
        if len(pieces) > _MOST_PIECES:
            raise ValueError(
                f"`text` named {key!r} must have at most {_MOST_PIECES * _PIECE:,} characters "
                f"when compressed, got {len(packed):,}."
            )
        digest = _digest(packed)
        for index, piece in enumerate(pieces):
            study._storage.set_study_system_attr(
                study._study_id, f"{PIECE_KEY}{key}:{digest}:{index}", piece
            )
        value = {"version": _VERSION, "digest": digest, "pieces": len(pieces)}
    if study.user_attrs.get(key) != value:
        study.set_user_attr(key, value)


def read_text(study: Study, key: str) -> str:
    """What :func:`save_text` kept, an empty text if it kept none.

    Args:
        study: The study.
        key: Name of the user attribute under which it is found.

    Raises:
        ValueError: If the study holds something else in its place.

    Example:
        >>> read_text(study, "notes")
        ''
    """
    attrs = study.user_attrs
    if isinstance(value := attrs.get(key, ""), dict):
        with naming(study, key):
            return _unpack(study._storage.get_study_system_attrs(study._study_id), key, value)
    text = ""
    for index in itertools.count(1):
        if not isinstance(value, str):
            raise ValueError(
                f"The user attribute {key!r} of {study.study_name!r} must be text, "
                f"got {type(value).__name__}."
            )
        text += value
        if len(text) > _MOST_PLAIN:
            raise ValueError(
                f"The user attribute {key!r} of {study.study_name!r} must be of at most "
                f"{_MOST_PLAIN:,} characters in all."
            )
        # Release 0.1 wrote a long text as it was, in several attributes.
        if len(value) != _PIECE:
            break
        value = attrs.get(f"{key}:{index}", "")
    return text


def _unpack(attrs: dict[str, Any], key: str, entry: dict[str, Any]) -> str:
    if entry.get("version") != _VERSION:
        raise ValueError(f"it must be of version {_VERSION}, got {str(entry)[:80]!r}.")
    digest, count = entry.get("digest"), entry.get("pieces")
    if not isinstance(count, int) or not 0 <= count <= _MOST_PIECES:
        raise ValueError(f"it must have at most {_MOST_PIECES:,} pieces, got {count!r}.")
    names = (f"{PIECE_KEY}{key}:{digest}:{index}" for index in range(count))
    packed = "".join(str(attrs.get(name, "")) for name in names)
    if _digest(packed) != digest:
        raise ValueError("its pieces are not all there.")
    reader = zlib.decompressobj()
    text = reader.decompress(base64.b85decode(packed), _MOST_BYTES)
    if not reader.eof:
        raise ValueError(f"it must hold a text of at most {_MOST_BYTES:,} bytes.")
    return text.decode()


def _digest(packed: str) -> str:
    return hashlib.sha256(packed.encode()).hexdigest()[:16]


@contextmanager
def naming(study: Study, key: str) -> Iterator[None]:
    """Let errors say which attribute of which study cannot be read."""
    try:
        yield
    except (ValueError, OverflowError, RecursionError, zlib.error) as error:
        raise ValueError(
            f"The user attribute {key!r} of {study.study_name!r} cannot be read: "
            f"{str(error)[:200]}"
        ) from error


def is_number(value: object) -> bool:
    """Whether a value is a number of a size to reckon with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
