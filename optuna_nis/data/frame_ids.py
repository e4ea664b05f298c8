"""The ids of the cells of a frame."""

from __future__ import annotations

import reprlib
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
import pandas as pd

from optuna_nis.data import cells
from optuna_nis.data.bags import flatten, without_missing
from optuna_nis.data.columns import converted, types_of_cells
from optuna_nis.data.tally import Tally
from optuna_nis.data.values import plain

if TYPE_CHECKING:
    from optuna_nis.data.features import Features


def ids_of_cells(
    features: Features, column: pd.Series[Any], name: str, tally: Tally | None
) -> NDArray[np.int64]:
    """The ids of a feature.

    Args:
        features: The features.
        column: Cells of the types seen in training.
        name: The feature.
        tally: Counts what is unknown and what is missing.

    Returns:
        Shape ``(rows,)``, or ``(rows, longest bag)``.

    Raises:
        TypeError: If a cell cannot be an id.
    """
    vocabulary, lengths = features.vocabularies[name], None
    if name in features.separators:
        items, lengths = items_of(features, column, name)
        column = converted(items, vocabulary)
    elif vocabulary.unknown is not None or tally is not None:
        # Otherwise what stands for a missing value has the id of one anyway.
        column = cells.without(column, features.na_values)
    try:
        ids = vocabulary.encode(column)
    except (TypeError, NotImplementedError) as error:
        raise TypeError(
            f"The column {name!r} must be of the type seen in training, with values such as "
            f"{vocabulary.values[0]!r}, got {reprlib.repr(_strange(column))}."
        ) from error
    if tally is not None:
        tally.add(name, column, ids, vocabulary.knows(ids), lengths)
    if lengths is None:
        return ids
    width = max(1, int(lengths.max(initial=0)))
    padded = np.full((len(lengths), width), vocabulary.num_embeddings, dtype=np.int64)
    padded[np.arange(width) < lengths[:, None]] = ids
    return padded


def _strange(column: pd.Series[Any]) -> object:
    """The first cell that is no value that a vocabulary can hold."""
    for cell in column[column.notna()]:
        try:
            plain(cell)
        except TypeError:
            return cell
    return None


def items_of(
    features: Features, column: pd.Series[Any], name: str
) -> tuple[pd.Series[Any], NDArray[np.int64]]:
    """The values of all bags one after the other, and how many each bag has."""
    items, lengths = flatten(
        column,
        features.separators[name],
        features.max_bag_length,
        features.bag_keep,
        name,
        features.na_values,
        is_new=True,
    )
    column, vocabulary = pd.Series(items, dtype=object), features.vocabularies[name]
    is_text = pd.api.types.infer_dtype(column, skipna=True) == "string"
    # Numbers in lists are the texts that they have in text files, or had in training, and texts
    # the numbers that they spell; of a mixture each is what it is.
    if (vocabulary.types == {str} and not is_text) or str not in vocabulary.types:
        column = cells.like(column, types_of_cells(vocabulary))
    if features.na_values:
        column = cells.without(column, features.na_values)
        column, lengths = without_missing(
            column, lengths, features.max_bag_length, features.bag_keep
        )
    return column, lengths
