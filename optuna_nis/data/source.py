"""The rows of a data set before they are split, and what is wrong with them for a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
import warnings

from numpy.typing import NDArray
import pandas as pd

from optuna_nis.data.features import Features, Task
from optuna_nis.data.vocabulary import Vocabulary

# A column with nearly as many values as rows is a key or a measurement.
_MANY_IDS, _MIN_ROWS_OF_IDS = 0.9, 1000
_MIN_FRACTIONS = 100


@dataclass(frozen=True)
class Source:
    """The rows of a data set before they are split.

    Attributes:
        frame: One column for each feature, and perhaps others.
        target: Labels 0 and 1 for ranking, the values to find for retrieval; none missing.
        order: For every row a number that grows with time, or :obj:`None` if rows are in order.
        group: For every row whose it is, or :obj:`None` if there is no such thing.
        part: For every row 0 if it is for training, 1 for validation, 2 for the test, or
            :obj:`None` if the data do not say so.
    """

    frame: pd.DataFrame
    target: pd.Series[Any]
    order: NDArray[Any] | None = None
    group: NDArray[Any] | None = None
    part: NDArray[Any] | None = None


def warn_of_rare_ids(vocabulary: Vocabulary, name: str, unseen: float) -> None:
    """Warn of a feature of which an embedding can say little, with validation's unseen share."""
    values, rows = len(vocabulary), int(vocabulary.counts.sum())
    if rows >= _MIN_ROWS_OF_IDS and values >= _MANY_IDS * rows:
        found = f"has {values:,} different values in {rows:,} cells of the training part"
    elif values >= _MIN_FRACTIONS and vocabulary.num_fractions:
        found = f"holds {values:,} numbers with fractions, each of which becomes an id"
    else:
        return
    warnings.warn(
        f"The column {name!r} {found}; {unseen:.0%} of validation's are unseen in training. An "
        "embedding says little about an id that hardly comes again: leave the column out of the "
        f"features, or, if it holds numbers, bin them, as in `pandas.qcut(frame[{name!r}], 20, "
        'labels=False, duplicates="drop")`.',
        stacklevel=4,
    )


def check_fitted(
    fitted: Features, task: Task, names: list[str], separators: Mapping[str, str | None]
) -> None:
    """Check that features from before are those of the data.

    Raises:
        ValueError: If they are of another task or columns.
    """
    for what, asked, found in (
        ("task", task, fitted.task),
        ("features", names, list(fitted.names)),
        ("separators", dict(separators), dict(fitted.separators)),
    ):
        if asked != found:
            raise ValueError(f"`fitted` must be of the {what} {asked!r}, got {found!r}.")


def check_targets(features: Features, **parts: Source) -> None:
    """Check that there is something to learn from the labels of the parts.

    Raises:
        ValueError: If there is only one label, or no target comes again.
    """
    for name, part in parts.items():
        if features.targets is None and part.target.nunique() < 2:
            raise ValueError(
                f"The label must be 0 and 1 in every part, got only {part.target.iloc[0]:g} in "
                f"the {len(part.target)} rows of the {name} part."
            )
    if (targets := features.targets) is not None:
        if len(targets) < 2:
            raise ValueError(
                f"The label must have at least two values, got only {targets.values[0]!r} in the "
                "training part."
            )
        if (targets.encode(parts["validation"].target) == len(targets)).all():
            raise ValueError(
                "The label must have values that come again, got a validation part in which all "
                "are unseen in training."
            )
