"""Columns by patterns: ``C*``, and ``!C7`` for all but that one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import re


def has_patterns(wanted: Iterable[str]) -> bool:
    """Whether some of the texts may be patterns and not names."""
    return any(_is_pattern(each) for each in wanted)


def select_columns(
    patterns: Sequence[str],
    names: Sequence[str],
    exclude: Iterable[str] = (),
    *,
    argument: str = "features",
) -> tuple[str, ...]:
    """The columns that patterns and names stand for.

    Args:
        patterns: Names; patterns, in which ``*`` stands for any text and ``?`` for a letter; and
            either of them behind ``!`` for what is left out. With such alone, all other columns
            are taken. A column that has the name of a pattern is that column.
        names: Names of all columns.
        exclude: Columns that are something else, such as the label: patterns leave them out.
        argument: What errors call the patterns.

    Returns:
        Each column once, in the order of the patterns and then of the columns. Names that are no
        column are among them.

    Raises:
        TypeError: If something is no text.
        ValueError: If a pattern fits no column, or nothing is left.

    Example:
        >>> names = ["label", "C1", "C2", "day", "C3"]
        >>> select_columns(["day", "C*", "!C2"], names)
        ('day', 'C1', 'C3')
        >>> select_columns(["!day"], names, exclude=["label"])
        ('C1', 'C2', 'C3')
    """
    if wrong := [each for each in patterns if not isinstance(each, str)]:
        raise TypeError(f"`{argument}` must be names of columns, got one with {wrong[0]!r}.")
    others = set(exclude)
    free = [name for name in names if name not in others]
    kept = [each for each in patterns if not _is_negative(each, names)]
    chosen = [] if kept or not patterns else list(free)
    by_pattern: set[str] = set()
    for each in kept:
        if each in names or not _is_pattern(each):
            chosen += [] if each in by_pattern else [each]
            continue
        fitting = _fitting(each, free, names, argument)
        chosen += [name for name in fitting if name not in chosen]
        by_pattern.update(fitting)
    for each in patterns:
        if _is_negative(each, names):
            dropped = _fitting(each[1:], names, names, argument)
            chosen = [name for name in chosen if name not in dropped]
    if patterns and not chosen:
        raise ValueError(
            f"`{argument}` must leave a column, got {', '.join(map(repr, patterns))} of the "
            f"columns {_shown(free)}."
        )
    return tuple(chosen)


def _is_pattern(text: str) -> bool:
    return text.startswith("!") or "*" in text or "?" in text


def _is_negative(text: str, names: Sequence[str]) -> bool:
    return text.startswith("!") and text not in names


def _fitting(pattern: str, among: Sequence[str], names: Sequence[str], argument: str) -> list[str]:
    """The columns that a pattern fits, of those that it may take."""
    letters = {"*": ".*", "?": "."}
    regex = "".join(letters.get(each) or re.escape(each) for each in pattern)
    if pattern in names:
        return [pattern]
    if found := [name for name in among if re.fullmatch(regex, name, re.DOTALL)]:
        return found
    taken = [name for name in names if re.fullmatch(regex, name, re.DOTALL)]
    why = f"; {_shown(taken)} is something else already" if taken else ""
    raise ValueError(
        f"`{argument}` must fit the columns {_shown(names)}, got {pattern!r}, which fits none"
        f"{why}."
    )


def _shown(names: Sequence[str]) -> str:
    most = 20
    return ", ".join(map(repr, names[:most])) + ", ..." * (len(names) > most)
