"""How many values of new rows a model does not know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from typing import Any
import warnings

import numpy as np
from numpy.typing import NDArray
import pandas as pd

from optuna_nis.data.vocabulary import Vocabulary

# Known values that must be expected, and different ones that training has not seen, before
# something is said; and of which share of those that are expected it is.
_FEWEST, _FEW = 10, 0.05


class Tally:
    """Counts values of features that are unknown or missing, some rows at a time.

    Args:
        kept: For features of whose ids some have no row in a model, how many have: the first ones.

    Attributes:
        rows: For every feature how many rows there were.
        missing: In how many of them its value was missing, or each of a bag.
        values: How many values there were, of bags those in all of them.
        unknown: How many of them the vocabulary does not know, or the model has no row for.

    Example:
        >>> tally = Tally()
        >>> ids = np.array([0, 9, 9])
        >>> tally.add("user", pd.Series(["ann", "new", None]), ids, ids < 9)
        >>> print(tally)
        unknown: user 1 of 2 values (50.0%)
        missing: user 1 of 3 rows (33.3%)
    """

    def __init__(self, kept: Mapping[str, int] | None = None) -> None:
        self.rows: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()
        self.values: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        # Some that training has not seen, at most so many as it takes.
        self._foreign: dict[str, set[Any]] = {}
        self._kept = dict(kept or {})

    def add(
        self,
        name: str,
        values: pd.Series[Any],
        ids: NDArray[np.int64],
        is_known: NDArray[np.bool_],
        lengths: NDArray[np.int64] | None = None,
    ) -> None:
        """Count some values of a feature.

        Args:
            name: The feature.
            values: The values, of bags one after the other.
            ids: The id of each.
            is_known: Whether each is known.
            lengths: Of bags how many values each has.
        """
        there = _are_there(values)
        foreign = self._foreign.setdefault(name, set())
        if len(foreign) < _FEWEST:
            foreign.update(values[there & ~is_known].unique()[:_FEWEST])
        if name in self._kept:
            is_known = is_known & (ids < self._kept[name])
        number = int(there.sum())
        rows, filled = len(values), number
        if lengths is not None:
            rows = len(lengths)
            filled = len(np.unique(np.arange(rows).repeat(lengths)[there]))
        self.rows[name] += rows
        self.missing[name] += rows - filled
        self.values[name] += number
        self.unknown[name] += number - int(is_known.sum())

    def without(self, names: Set[str]) -> Tally:
        """The same without some features."""
        other = Tally()
        other._foreign = {n: own for n, own in self._foreign.items() if n not in names}
        for counts, own in zip(other._counts(), self._counts()):
            counts.update({name: own[name] for name in own if name not in names})
        return other

    def to_dict(self) -> dict[str, dict[str, int]]:
        """For each feature the four numbers by their names, in types that JSON knows.

        Example:
            >>> tally = Tally()
            >>> ids = np.array([0, 9])
            >>> tally.add("user", pd.Series(["ann", None]), ids, ids < 9)
            >>> tally.to_dict()
            {'user': {'rows': 2, 'missing': 1, 'values': 1, 'unknown': 0}}
        """
        kinds = ("rows", "missing", "values", "unknown")
        return {
            name: {kind: each[name] for kind, each in zip(kinds, self._counts())}
            for name in self.rows
        }

    def warn(self, expected: Mapping[str, float], known: Mapping[str, Vocabulary]) -> None:
        """Warn of features of which hardly a value is known, as where ids are written otherwise.

        Args:
            expected: For features which share of the values is known in rows as in training.
            known: For these what training has seen.
        """
        for name, share in expected.items():
            values, unknown = self.values[name], self.unknown[name]
            wanted = share * values
            # Fewer may be new ones that have come together, or what a model keeps no row for.
            is_foreign = len(self._foreign.get(name, ())) >= min(_FEWEST, len(known[name]))
            if is_foreign and wanted >= _FEWEST and values - unknown <= _FEW * wanted:
                warnings.warn(
                    f"{unknown:,} of {values:,} values of the column {name!r} are unknown to the "
                    "model. Are its ids those of training, and written as there, such as "
                    f"{known[name].cut(1).values[0]!r}?",
                    stacklevel=3,
                )

    def _counts(self) -> Iterator[Counter[str]]:
        yield from (self.rows, self.missing, self.values, self.unknown)

    def __str__(self) -> str:
        lines = []
        for what, counts, of, all_of in (
            ("unknown", self.unknown, "values", self.values),
            ("missing", self.missing, "rows", self.rows),
        ):
            found = [
                f"{name} {number:,} of {all_of[name]:,} {of} ({number / all_of[name]:.1%})"
                for name, number in counts.most_common()
                if number
            ]
            lines += [f"{what}: {', '.join(found)}"] if found else []
        return "\n".join(lines)


def _are_there(values: pd.Series[Any]) -> NDArray[np.bool_]:
    if isinstance(values.dtype, pd.ArrowDtype) and values.dtype.kind == "f":
        # Arrow tells what is no number from what is missing.
        numbers: NDArray[np.float64] = values.to_numpy(dtype=np.float64, na_value=np.nan)
        return ~np.isnan(numbers)
    return values.notna().to_numpy(dtype=np.bool_)
