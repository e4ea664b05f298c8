"""How many values of new rows a model does not know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pandas as pd


class Tally:
    """Counts values of features that are unknown or missing, some rows at a time.

    Attributes:
        values: For every feature how many values there were, of bags those in all of them. An
            empty bag counts as one, a missing one.
        unknown: How many of them the vocabulary does not know.
        missing: How many of them were missing.

    Example:
        >>> tally = Tally()
        >>> tally.add("user", pd.Series(["ann", "new", None]), np.array([True, False, False]))
        >>> print(tally)
        unknown: user 1 of 3 values (33.3%)
        missing: user 1 of 3 values (33.3%)
    """

    def __init__(self) -> None:
        self.values: Counter[str] = Counter()
        self.unknown: Counter[str] = Counter()
        self.missing: Counter[str] = Counter()

    def add(
        self, name: str, values: pd.Series[Any], is_known: NDArray[np.bool_], empty: int = 0
    ) -> None:
        """Count some values of a feature.

        Args:
            name: The feature.
            values: The values.
            is_known: Whether each is known.
            empty: Number of bags without a value.
        """
        gaps = int(values.isna().sum())
        self.values[name] += len(values) + empty
        self.missing[name] += gaps + empty
        self.unknown[name] += len(values) - gaps - int(is_known.sum())

    def without(self, names: Set[str]) -> Tally:
        """The same without some features."""
        other = Tally()
        for counts, own in zip(other._counts(), self._counts()):
            counts.update({name: own[name] for name in own if name not in names})
        return other

    def _counts(self) -> Iterator[Counter[str]]:
        yield from (self.values, self.unknown, self.missing)

    def __str__(self) -> str:
        lines = []
        for what, counts in (("unknown", self.unknown), ("missing", self.missing)):
            found = [
                f"{name} {number:,} of {self.values[name]:,} values "
                f"({number / self.values[name]:.1%})"
                for name, number in counts.most_common()
                if number
            ]
            lines += [f"{what}: {', '.join(found)}"] if found else []
        return "\n".join(lines)
