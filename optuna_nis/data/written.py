"""How the values of a vocabulary are written in types that JSON knows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import date
from decimal import Decimal
from typing import Any, Final

import pandas as pd

from optuna_nis.data.values import Value

_WRITE: Final[dict[type, tuple[str, Callable[[Any], Any]]]] = {
    bool: ("bool", bool),
    int: ("int", int),
    # JSON has no infinity, and a round trip through text is exact.
    float: ("float", repr),
    str: ("str", str),
    bytes: ("bytes", bytes.hex),
    Decimal: ("decimal", str),
    date: ("date", date.isoformat),
    pd.Timestamp: ("datetime", pd.Timestamp.isoformat),
}
_READ: Final[dict[str, Callable[[Any], Value]]] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "bytes": bytes.fromhex,
    "decimal": Decimal,
    "date": date.fromisoformat,
    "datetime": pd.Timestamp,
}


def written(values: Iterable[Value]) -> Iterator[tuple[str, Any]]:
    """The name of the type of each value, and what is written of it.

    Example:
        >>> list(written([2.5, b"x"]))
        [('float', '2.5'), ('bytes', '78')]
    """
    for value in values:
        name, write = _WRITE[type(value)]
        yield name, write(value)


def read(pairs: Iterable[tuple[str, Any]]) -> Iterator[Value]:
    """The values of which :func:`written` gave the pairs.

    Raises:
        KeyError: If there is no type of such a name.
        ValueError: If this is no value of its type; or a :exc:`TypeError`, or an
            :exc:`ArithmeticError`.
    """
    for name, value in pairs:
        yield _READ[name](value)
