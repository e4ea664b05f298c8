"""Bags: columns of which a cell holds several values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import chain
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
import pandas as pd

from optuna_nis._checks import check_integer
from optuna_nis.data.values import check_no_struct

BagKeep = Literal["last", "first"]


def check_separators(bags: object) -> None:
    """Raise a ValueError if it is not said of each bag how its values are written."""
    if bags is not None and not isinstance(bags, Mapping):
        raise ValueError(
            "`bags` must map each column to the text between two values, or to None if its cells "
            f"are lists, such as {{'genres': '|', 'history': None}}, got {bags!r}."
        )


def check_bags(
    separators: Mapping[str, str | None],
    max_bag_length: int,
    bag_keep: str,
    features: Sequence[str] | None = None,
) -> None:
    """Check how bags are read.

    Args:
        separators: The text between two values of every bag, None if its cells are lists.
        max_bag_length: How many values of a longer bag are kept.
        bag_keep: Which ones.
        features: Names of all features, if they are known.

    Raises:
        ValueError: If one of them is out of range, or a bag is not a feature.
    """
    for name, separator in separators.items():
        if features is not None and name not in features:
            raise ValueError(
                f"`bags` names {name!r}, which is not a feature; there are "
                f"{', '.join(map(repr, features))}."
            )
        if separator is not None and (not isinstance(separator, str) or not separator):
            raise ValueError(
                f"`bags[{name!r}]` must be the text between two values, or None for cells that "
                f"are lists, got {separator!r}."
            )
    check_integer("max_bag_length", max_bag_length, 1)
    if bag_keep not in get_args(BagKeep):
        raise ValueError(f'`bag_keep` must be "last" or "first", got {bag_keep!r}.')


def flatten(
    column: pd.Series[Any],
    separator: str | None,
    limit: int,
    keep: BagKeep,
    name: str,
    na_values: Sequence[str] = (),
    *,
    is_new: bool = False,
) -> tuple[list[Any], NDArray[np.int64]]:
    """The values of all bags one after the other, and how many each bag has.

    Args:
        column: The bags.
        separator: The text between two values, None if cells are lists.
        limit: How many values of a longer bag are kept.
        keep: Which ones.
        name: Name of the column in errors.
        na_values: Texts that stand for no value. Where there are any bags are not cut: that is
            left to :func:`without_missing`, since values may be missing.
        is_new: Whether these are new rows for a model, whose separator is that of training.

    Raises:
        ValueError: If a cell is no list and should be one.
    """
    kept = slice(None)
    if not na_values:
        kept = slice(-limit, None) if keep == "last" else slice(limit)
    # Texts take long to be split, and many cells may hold the same.
    texts: dict[str, Sequence[Any]] = dict.fromkeys(na_values, ())
    bags = []
    for cell in column.tolist():
        bag = texts.get(cell) if isinstance(cell, str) else None
        if bag is None:
            bag = _items(cell, separator, name, is_new)[kept]
            if isinstance(cell, str):
                texts[cell] = bag
        bags.append(bag)
    lengths = np.fromiter(map(len, bags), dtype=np.int64, count=len(bags))
    return list(chain.from_iterable(bags)), lengths


def without_missing(
    items: pd.Series[Any], lengths: NDArray[np.int64], limit: int, keep: BagKeep
) -> tuple[pd.Series[Any], NDArray[np.int64]]:
    """The values of all bags that are not missing, of each no more than there may be.

    Args:
        items: The values one after the other.
        lengths: How many each bag has.
        limit: How many values of a longer bag are kept.
        keep: Which ones.
    """
    is_there = items.notna().to_numpy()
    bags = np.repeat(np.arange(len(lengths)), lengths)[is_there]
    lengths = np.bincount(bags, minlength=len(lengths))
    places = np.arange(len(bags)) - (np.cumsum(lengths) - lengths)[bags]
    kept = places >= lengths[bags] - limit if keep == "last" else places < limit
    return items[is_there][kept].reset_index(drop=True), np.minimum(lengths, limit)


def _items(cell: Any, separator: str | None, name: str, is_new: bool) -> Sequence[Any]:
    if isinstance(cell, str) and separator is not None:
        return [item for text in cell.split(separator) if (item := text.strip())]
    if isinstance(cell, (list, tuple, np.ndarray)):
        if isinstance(cell, np.ndarray) and cell.dtype.kind in "biu":
            return list(cell)
        # Of whole numbers, which may be many, none needs a closer look.
        return [item for item in cell if type(item) is int or not _is_missing(item)]
    check_no_struct(cell, name)
    if pd.isna(cell):
        return []
    if separator is None and is_new:
        raise ValueError(
            f"The cells of the bag {name!r} must be lists, as in training, got {cell!r:.80}. "
            "Give a table that has lists, such as Parquet; in Python, frames have them, such as "
            f"`frame[{name!r}].str.split('|')` if | stands between two values."
        )
    if separator is None:
        raise ValueError(
            f"`bags[{name!r}]` must be the text between two values, since not all cells are "
            f"lists; got None for {cell!r}. On the command line: `--bags {name}:'|'`, if it is |."
        )
    # A column of which every bag holds one number has been read as numbers.
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return [str(cell)]


def _is_missing(item: Any) -> bool:
    """Whether it is no item, as an empty text is none."""
    if isinstance(item, str):
        return item == ""
    if item is None or item is pd.NA or item is pd.NaT:
        return True
    # No number and no time of its own kind is another than itself.
    return isinstance(item, float | np.generic | Decimal) and bool(item != item)
