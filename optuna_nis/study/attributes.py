"""Long texts and numbers among the attributes of a study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from optuna import Study

# MySQL keeps at most 65,535 bytes of an attribute. ASCII text at most doubles when Optuna writes
# it as JSON.
_PART_LENGTH = 32_000

# What a study holds may come from anyone: more than this is not read.
_MOST_TEXT = 4_000_000


def save_text(study: Study, key: str, text: str) -> None:
    """Write a text of any length into the user attributes of a study."""
    parts = [text[i : i + _PART_LENGTH] for i in range(0, len(text), _PART_LENGTH)] or [""]
    attrs = study.user_attrs
    stale = len(parts)
    while attrs.get(_part(key, stale)):
        stale += 1
    for index in range(stale):
        part = parts[index] if index < len(parts) else ""
        if attrs.get(_part(key, index)) != part:
            study.set_user_attr(_part(key, index), part)


def read_text(study: Study, key: str) -> str:
    """Read what :func:`save_text` wrote, an empty text if it wrote none."""
    attrs = study.user_attrs
    parts: list[str] = []
    while part := attrs.get(_part(key, len(parts))):
        if not isinstance(part, str):
            raise ValueError(
                f"The user attribute {_part(key, len(parts))!r} of {study.study_name!r} must be "
                f"text, got {type(part).__name__}."
            )
        parts.append(part)
        if sum(map(len, parts)) > _MOST_TEXT:
            raise ValueError(
                f"The user attribute {key!r} of {study.study_name!r} must be of at most "
                f"{_MOST_TEXT:,} characters in all."
            )
    return "".join(parts)


@contextmanager
def naming(study: Study, key: str) -> Iterator[None]:
    """Let errors say which attribute of which study cannot be read."""
    try:
        yield
    except (ValueError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"The user attribute {key!r} of {study.study_name!r} cannot be read: "
            f"{str(error)[:200]}"
        ) from error


def is_number(value: object) -> bool:
    """Whether a value is a number of a size to reckon with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _part(key: str, index: int) -> str:
    return key if index == 0 else f"{key}:{index}"
