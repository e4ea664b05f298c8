"""Whole numbers that are held as floats which cannot hold all of them."""

from __future__ import annotations

from typing import Any
import warnings

import numpy as np
import pandas as pd

# Up to two to the power of so much, floats can hold every whole number.
_DIGITS = {"halffloat": 11, "float": 24, "double": 53}
_ADVICE = (
    "Write them as integers or text (DuckDB writes its HUGEINT as floats: CAST it AS VARCHAR)."
)


def warn_of_few_digits(
    column: pd.Series[Any],
    kind: str,
    table: str,
    name: str,
    advice: str = _ADVICE,
) -> None:
    """Warn of them.

    Args:
        column: Numbers.
        kind: Their type in Arrow.
        table: Name of the file or table.
        name: Name of the column.
        advice: What to do.
    """
    digits = _DIGITS.get(kind)
    if digits is not None and _beyond_floats(column, 2.0**digits):
        warnings.warn(
            f"{table}: the column {name!r} holds whole numbers above 2**{digits} as "
            f"floats, in which ids next to each other have become one. {advice}",
            stacklevel=3,
        )


def _beyond_floats(column: pd.Series[Any], most: float) -> bool:
    numbers = column.to_numpy(np.float64)
    with np.errstate(invalid="ignore"):
        whole = np.isnan(numbers) | (np.isfinite(numbers) & (numbers == np.floor(numbers)))
    return bool(np.nanmax(np.abs(numbers), initial=0) >= most and whole.all())
