"""The order of rows in time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
import pandas as pd

from optuna_nis.data import cells

# What pandas calls the kinds of values by which rows can be ordered.
_TIMES = ("date", "datetime", "datetime64")
_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal")
_TIME_FORMATS = tuple(
    day + clock
    for day in ("%d/%m/%Y", "%m/%d/%Y", "%Y/%m/%d", "%d.%m.%Y", "%d-%m-%Y", "%m-%d-%Y")
    for clock in ("", " %H:%M", " %H:%M:%S")
)


def order_of(column: pd.Series[Any], name: str, time_format: str | None) -> NDArray[np.int64]:
    """The place of every row's time among all times, -1 where it is missing."""
    kind = pd.api.types.infer_dtype(column, skipna=True)
    if time_format is not None and kind not in _TIMES:
        column, kind = _parsed(column, name, time_format), "datetime64"
    elif kind == "string":
        column = cells.infer(column)
        kind = pd.api.types.infer_dtype(column, skipna=True)
    if kind not in _TIMES and kind not in _NUMBERS and column.notna().any():
        raise ValueError(
            f"The column {name!r} must hold numbers or dates to order rows by time{_found(column)}"
        )
    codes, _ = pd.factorize(column, sort=True)
    return codes.astype(np.int64)


def _parsed(column: pd.Series[Any], name: str, time_format: str) -> pd.Series[Any]:
    texts = cells.like(column, frozenset({str}))
    try:
        times = pd.to_datetime(texts, format=time_format, utc=True, errors="coerce")
    except ValueError as error:
        raise ValueError(
            f"`time_format` must be such as '%d/%m/%Y', got {time_format!r}: {error}."
        ) from error
    if (other := texts[times.isna()].dropna()).size:
        raise ValueError(
            f"The column {name!r} must hold dates written as `time_format` {time_format!r} says, "
            f"got {other.iloc[0]!r}."
        )
    return times


def _found(column: pd.Series[Any]) -> str:
    """What a column without times holds instead, and how to go on."""
    values = column.dropna()
    if pd.api.types.infer_dtype(values) == "boolean":
        return ": it holds false and true."
    texts = values.astype(str)
    odd = next(filter(cells.is_text, texts), texts.iloc[0])
    fitting = [each for each in _TIME_FORMATS if _fits(texts, each)]
    several = f" (or is it {' or '.join(fitting[1:])}?)" if len(fitting) > 1 else ""
    missing = f", or `na_values` if {odd!r} means none" if odd in cells.USUAL_MARKERS else ""
    if fitting:
        how = f": `time_format={fitting[0]!r}`, on the command line `--time-format '{fitting[0]}'`"
    else:
        how = " if they are dates: `time_format`, such as '%d/%m/%Y' for 31/01/2024"
    return (
        f", such as 2024-01-31 or 2024-01-31 18:00:00.5, all with an offset from UTC or all "
        f"without; got {odd!r}. Say how they are written{how}{several}{missing}."
    )


def _fits(texts: pd.Series[Any], time_format: str) -> bool:
    return bool(pd.to_datetime(texts, format=time_format, errors="coerce").notna().all())
