"""Checks of arguments that several modules need."""

from __future__ import annotations


def check_integer(name: str, value: object, least: int) -> None:
    """Check that an argument is an integer of at least some number.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")
