"""What the cells of a column mean: text, numbers, times, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
import warnings

import numpy as np
import pandas as pd
import pyarrow
from pyarrow import compute

from optuna_nis.data import cells
from optuna_nis.data.coded import CodedColumn, arrow_type, merged, plain_values
from optuna_nis.data.columns import integers_of_floats
from optuna_nis.data.few_digits import warn_of_few_digits
from optuna_nis.data.values import factorize
from optuna_nis.data.vocabulary import Vocabulary

_HEAD = 1000
_TEXT: frozenset[type] = frozenset({str})


@dataclass(frozen=True)
class Meaning:
    """How the cells of a table are understood. Each distinct value is looked at once.

    Attributes:
        table: Name of the table in warnings.
        is_text: Whether the cells of a column are text that may mean something else.
        na_values: Texts, and numbers written as text, that stand for a missing value.
        types: For columns that were seen before the types that their values had.
    """

    table: str
    is_text: Callable[[str], bool]
    na_values: Sequence[str] = ()
    types: dict[str, frozenset[type]] = field(default_factory=dict)

    def of(self, column: CodedColumn, *, as_text: bool = False) -> CodedColumn:
        """A column with its values as they are meant.

        Args:
            column: A column as it is written.
            as_text: Whether its text stays text even if it looks like numbers.
        """
        types = None if as_text else self.types.get(column.name)
        if self._is_plain_text(column, types, as_text):
            may_be_numbers = as_text and self.is_text(column.name)
            return self._without_markers(column, may_be_numbers=may_be_numbers)
        if not self.na_values and arrow_type(column.values) is int and types in (None, {int}):
            return column
        found = self.series(column)
        found = cells.without(found, self.na_values)
        if types is not None:
            found = cells.like(found, types)
        elif self.is_text(column.name) and not as_text:
            found = inferred(found, f"{self.table}: the column {column.name!r}")
        # A marker such as -1 is a number by now.
        return _coded_again(column, cells.without(found, self.na_values))

    def of_items(self, column: CodedColumn) -> CodedColumn:
        """A column of bags with its items as they are meant: text is always text."""
        if arrow_type(column.values) is str:
            return column
        found = self.series(column)
        if self.types.get(column.name) == _TEXT:
            found = cells.like(found, _TEXT)
        return _coded_again(column, found)

    def times(self, column: CodedColumn, *, as_text: bool) -> tuple[pd.Series[Any], CodedColumn]:
        """The distinct values of a column of times, and the column that has them."""
        if not self.is_text(column.name) and not self.na_values:
            return self.series(column), column
        column = self.of(column, as_text=as_text)
        return pd.Series(plain_values(column.values)), column

    def series(self, column: CodedColumn) -> pd.Series[Any]:
        """The distinct values of a column as it is written."""
        found: pd.Series[Any] = _arrow(column).to_pandas()
        if not self.is_text(column.name):
            warn_of_few_digits(found, str(_arrow(column).type), self.table, column.name)
        return found

    def _is_plain_text(
        self, column: CodedColumn, types: frozenset[type] | None, as_text: bool
    ) -> bool:
        if arrow_type(column.values) is not str or types not in (None, {str}):
            return False
        if types is not None or as_text or not self.is_text(column.name):
            return True
        head = _arrow(column).slice(0, _HEAD).drop_null().to_pylist()
        return any(map(cells.is_text, head)) and not _may_be_marked(column.values)

    def _without_markers(
        self, column: CodedColumn, *, may_be_numbers: bool = False
    ) -> CodedColumn:
        values = _arrow(column)
        markers = pyarrow.array(self.na_values, values.type)
        marked = compute.is_in(values, value_set=markers).to_numpy(zero_copy_only=False)
        if may_be_numbers and self.na_values:
            # A number that a marker spells may be written in another way.
            typed = cells.infer(cells.without(self.series(column), self.na_values))
            marked = marked | cells.without(typed, self.na_values).isna().to_numpy()
        if not marked.any():
            return column
        return column.renamed(column.values, np.where(marked, -1, np.arange(len(marked))))


def _arrow(column: CodedColumn) -> pyarrow.Array:
    """The values of a column as it is written."""
    assert isinstance(column.values, pyarrow.Array)
    return column.values


def _may_be_marked(values: pyarrow.Array) -> bool:
    """Whether a usual marker of missing values is among them, which may be all that is text."""
    markers = pyarrow.array(sorted(cells.USUAL_MARKERS), values.type)
    return bool(compute.any(compute.is_in(values, value_set=markers)).as_py())


def _coded_again(column: CodedColumn, values: pd.Series[Any]) -> CodedColumn:
    """A column whose distinct values, in their order, have become others."""
    codes, found = factorize(values, column.name)
    names, places = merged(found, codes)
    return column.renamed(names, places)


def integers_in(column: CodedColumn, vocabulary: Vocabulary) -> CodedColumn:
    """A column of which all values are texts such as 5.0 as 5, where a vocabulary has texts."""
    values = pd.Series(plain_values(column.values), dtype=object)
    # Markers of missing values are still among them.
    values = values.where(np.isin(np.arange(len(values)), column.cells), None)
    if vocabulary.types != _TEXT or not cells.are_integers_as_floats(values):
        return column
    return _coded_again(column, integers_of_floats(values, vocabulary))


def inferred(column: pd.Series[Any], name: str) -> pd.Series[Any]:
    """Text as numbers, booleans or times if all of it is; a marker that alone is not is told."""
    typed = cells.infer(column)
    if typed is column and (markers := cells.numbers_but_for(column)):
        warnings.warn(
            f"{name} would be numbers but for {', '.join(map(repr, markers))}, an id like any "
            "other. If it stands for a missing value, say so: `na_values`, or on the command "
            f"line `--na-values {','.join(markers)}`.",
            stacklevel=3,
        )
    return typed
