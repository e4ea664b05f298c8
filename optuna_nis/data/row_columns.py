"""What a table says of each row besides its features: label, weight and group."""

from __future__ import annotations

from dataclasses import dataclass
import warnings

import numpy as np
from numpy.typing import NDArray

from optuna_nis.data.coded import CodedColumn
from optuna_nis.data.keys import Task
from optuna_nis.data.labels import Label
from optuna_nis.data.meaning import Meaning
from optuna_nis.data.scaling import Floats, check_weights
from optuna_nis.data.store import ColumnStore


@dataclass(frozen=True, eq=False)
class RowColumns:
    """Columns that are no features, of all rows.

    Attributes:
        target: Labels 0 and 1 for ranking, NaN where there is none; for retrieval the targets.
        kept: The rows with a label and, where weights are read, a weight.
        weight: The weight of every row, NaN where it is missing, or None.
        groups: The group of every row, ``NO_GROUP`` where it is missing, or None.
    """

    target: Floats | CodedColumn
    kept: NDArray[np.bool_]
    weight: Floats | None
    groups: NDArray[np.int64] | None


def read_row_columns(
    store: ColumnStore,
    meaning: Meaning,
    label: Label,
    task: Task,
    *,
    weight: str | None,
    group: str | None,
) -> RowColumns:
    """Read the columns of a table that are no features, and warn of rows without a value.

    Args:
        store: The columns.
        meaning: What their cells mean.
        label: The label.
        task: ``"ranking"`` or ``"retrieval"``.
        weight: Column of the weights, or None.
        group: Column of the groups, or None. A row without one has no part in means over groups.

    Raises:
        ValueError: If a column holds something else than it should.
    """
    column = meaning.of(store.column(label.column))
    present = column.cells >= 0
    kept = left_after(present, np.ones_like(present), meaning.table, label.column)
    target = label.of(column) if task == "ranking" and present.any() else column
    weights = groups = None
    if weight is not None:
        weights = np.asarray(store.numbers(weight, meaning.na_values, are_weights=True))
        check_weights(weights, weight)
        kept = left_after(~np.isnan(weights), kept, meaning.table, weight)
    if group is not None:
        # The code of a missing one is `NO_GROUP`.
        groups = meaning.of(store.column(group), as_text=True).cells.astype(np.int64)
        if alone := int((kept & (groups < 0)).sum()):
            warnings.warn(
                f"{meaning.table}: {alone:,} of {int(kept.sum()):,} rows have no value in the "
                f"column {group!r}. They belong to no group, and means over groups leave them "
                "out.",
                stacklevel=5,
            )
    return RowColumns(target, kept, weights, groups)


def left_after(
    present: NDArray[np.bool_], kept: NDArray[np.bool_], table: str, name: str
) -> NDArray[np.bool_]:
    """The rows kept so far that have a value in a column, with a warning of the others."""
    if missing := int((kept & ~present).sum()):
        warnings.warn(
            f"{table}: dropped {missing:,} of {len(kept):,} rows, which have no value in the "
            f"column {name!r}.",
            stacklevel=5,
        )
    return kept & present
