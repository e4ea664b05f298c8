"""Checks of arguments that several modules need."""

from __future__ import annotations

import math
from numbers import Real


def check_integer(name: str, value: object, least: int) -> None:
    """Check that an argument is an integer of at least some number.

    Raises:
        ValueError: If it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")


def check_number(
    name: str,
    value: object,
    least: float,
    below: float = math.inf,
    *,
    or_least: bool = True,
) -> None:
    """Check that an argument is a number in some range.

    Raises:
        ValueError: If it is not.
    """
    fits = isinstance(value, Real) and not isinstance(value, bool)
    if fits:
        number = float(value)  # type: ignore[arg-type]
        fits = least <= number < below and (or_least or number > least)
    if not fits:
        bracket = "[" if or_least else "("
        raise ValueError(
            f"`{name}` must be a number in {bracket}{least:g}, {below:g}), got {value!r}."
        )
