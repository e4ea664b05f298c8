"""What the texts of the command's options stand for."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from optuna_nis._checks import check_source


def numbers(name: str, text: str, example: str = "0,1,2") -> list[int]:
    """Integers between commas."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"`{name}` must be numbers such as {example}, got {text!r}.") from None


def budget_of(text: str) -> int | float | str:
    """A plain number is one of float32 parameters, or a fraction if it has a decimal point."""
    from optuna_nis.space.budget import parse_budget

    budget: int | float | str = text
    for number in (float, int):
        with suppress(ValueError):
            budget = number(text)
    try:
        # Whether it is too much, only the tables can tell.
        parse_budget(budget, full=2**62)
    except ValueError as error:
        raise ValueError(
            "`budget` must be at least one float32 parameter, 4 bytes, and at most the full "
            "tables: a share of them such as 25%, bytes such as 64MB, or a number of float32 "
            f"parameters such as 50000; got {text!r}."
        ) from error
    return budget


def rows_of(text: str | None) -> int | Literal["all"] | None:
    """A number of rows, or all.

    Raises:
        ValueError: If it is neither.
    """
    if text is None:
        return None
    if text == "all":
        return "all"
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"`max_rows` must be all or a number of rows such as 1000000, got {text!r}."
        ) from None


def shard_of(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(
            "`shard` must be INDEX/COUNT such as 0/2, with an index below the count, got "
            f"{text!r}."
        )
    return int(index), int(count)


def listed(texts: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names between commas, of one text or of several."""
    text = texts if isinstance(texts, str) else ",".join(texts or ())
    return tuple(name.strip() for name in text.split(",") if name.strip())


def shared_of(text: str) -> list[tuple[str, str]]:
    """For each feature that shares a table, whose."""
    owner, sign, others = text.partition("=")
    names = listed(others)
    if not (owner.strip() and sign and names):
        raise ValueError(
            f"`share` must be FEATURE=OTHER such as item=history, or several others between "
            f"commas, got {text!r}."
        )
    return [(name, owner.strip()) for name in names]


def paths_of(texts: Sequence[str] | None) -> str | tuple[str, ...] | None:
    """Paths that hold wherever a later command is started, one or several."""
    found = tuple(str(Path(text).absolute()) for text in texts or ())
    return found[0] if len(found) == 1 else found or None


def check_sources(name: str, texts: Sequence[str] | None) -> None:
    """Check that there is something to read at each of some paths.

    Raises:
        FileNotFoundError: If there is none.
    """
    for text in texts or ():
        check_source(name, text)


def separator_of(text: str | None) -> str | None:
    """What stands between cells; a tab as one can write it."""
    return "\t" if text == "\\t" else text


def bags_of(texts: Sequence[str], columns: Sequence[str]) -> dict[str, str | None]:
    """For every bag its separator, or None if its cells are lists."""
    return dict(_bag(text, columns) for text in texts)


def _bag(text: str, columns: Sequence[str]) -> tuple[str, str | None]:
    if text in columns or (text and ":" not in text):
        return text, None
    splits = [
        (text[:place], text[place + 1 :])
        for place, letter in enumerate(text)
        if letter == ":" and 0 < place < len(text) - 1
    ]
    if not splits:
        raise ValueError(
            f"`bags` must be COLUMN:SEPARATOR such as genres:'|', or COLUMN for lists, got "
            f"{text!r}."
        )
    # The separator may be a colon itself, and names of columns may have some.
    known = [split for split in splits if split[0] in columns]
    return (known or splits)[-1]
