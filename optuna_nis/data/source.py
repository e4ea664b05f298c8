"""The rows of a data set before they are split, and what is wrong with them for a search."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, TypeVar
import warnings

import numpy as np
from numpy.typing import NDArray
import pandas as pd

from optuna_nis.data.coded import CodedColumn, coded
from optuna_nis.data.features import Features
from optuna_nis.data.file_array import FileArray
from optuna_nis.data.keys import Task
from optuna_nis.data.scaling import Floats, numbers_of
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

    def coded(
        self, columns: Mapping[str, CodedColumn], task: Task, numeric: Sequence[str]
    ) -> CodedSource:
        """The same, column by column.

        Args:
            columns: The categorical features.
            task: What the target is for.
            numeric: Names of the numeric columns.
        """
        target = self.target
        return CodedSource(
            columns,
            target.to_numpy(np.float32, copy=True)
            if task == "ranking"
            else coded(target, "targets"),
            {name: numbers_of(self.frame[name], name) for name in numeric},
            order=self.order,
            group=self.group,
            part=self.part,
        )


_Value = TypeVar("_Value")


class _Taken(Mapping[str, _Value]):
    """Columns of which rows are taken each time that one is asked for."""

    def __init__(self, columns: Mapping[str, _Value], take: Callable[[_Value], _Value]) -> None:
        self._columns, self._take = columns, take

    def __getitem__(self, name: str) -> _Value:
        return self._take(self._columns[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


@dataclass(frozen=True, eq=False)
class CodedSource:
    """The same, column by column, with each distinct value held once; arrays may be on disk.

    Attributes:
        columns: The categorical features.
        target: Labels 0 and 1 for ranking, the values to find for retrieval.
        numbers: The numeric columns, NaN where a number is missing.
        weight: The weight of every row, or :obj:`None` if all count the same.
        groups: For every row an id of the group that metrics are averaged over, or :obj:`None`.
        order: As in :class:`Source`.
        group: As in :class:`Source`.
        part: As in :class:`Source`.
        rows: Positions of the rows to use, rising, or :obj:`None` for all.
        content: Of arrays on disk, a text that is another one as soon as their content is.
    """

    columns: Mapping[str, CodedColumn]
    target: Floats | CodedColumn
    numbers: Mapping[str, Floats | FileArray] = field(default_factory=dict)
    weight: Floats | None = None
    groups: NDArray[np.int64] | None = None
    order: NDArray[Any] | None = None
    group: NDArray[Any] | None = None
    part: NDArray[Any] | None = None
    rows: NDArray[np.int64] | None = None
    content: str = ""

    def __len__(self) -> int:
        return len(self.target if self.rows is None else self.rows)

    def take(self, rows: NDArray[np.int64] | slice) -> CodedSource:
        """Some rows, without what they are split by; a column is taken when it is asked for."""
        target = self.target
        return CodedSource(
            _Taken(self.columns, lambda column: column.take(rows)),
            target.take(rows) if isinstance(target, CodedColumn) else np.asarray(target[rows]),
            _Taken(self.numbers, lambda values: np.asarray(values[rows])),
            None if self.weight is None else np.asarray(self.weight[rows]),
            None if self.groups is None else np.asarray(self.groups[rows]),
        )

    def without_values(self) -> CodedSource:
        """The same without the distinct values, which batches do not need."""
        target = self.target
        return replace(
            self,
            columns={name: replace(each, values=()) for name, each in self.columns.items()},
            target=replace(target, values=()) if isinstance(target, CodedColumn) else target,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as tensors of a batch."""
        ids = 8 * sum(len(column.codes) for column in self.columns.values())
        return ids + (4 * len(self.numbers) + 16) * len(self)

    @property
    def is_on_disk(self) -> bool:
        """Whether columns are in files."""
        return any(isinstance(each.codes, FileArray) for each in self.columns.values())

    @property
    def digest(self) -> str:
        """A text that is another one as soon as there are other rows, or in another order."""
        digest = blake2b(f"{self.content} {len(self)} ".encode(), digest_size=16)
        target = self.target.cells if isinstance(self.target, CodedColumn) else self.target
        digest.update(np.ascontiguousarray(target).data)
        return digest.hexdigest()

    def split_by(self, name: str) -> NDArray[Any] | None:
        """``"order"``, ``"group"`` or ``"part"`` of the rows that are used."""
        values: NDArray[Any] | None = getattr(self, name)
        return values if values is None or self.rows is None else values[self.rows]


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
        f"features, or, if it holds numbers, name it as numeric: `numeric=[{name!r}]`, on the "
        f"command line `--numeric {name}`.",
        stacklevel=4,
    )


def warn_of_strangers(**unseen: Mapping[str, float]) -> None:
    """Warn of columns that share no value with training, as where files write ids otherwise.

    Args:
        **unseen: For each part the shares of the values of columns that are unseen in training.
    """
    for part, shares in unseen.items():
        for name in [name for name, share in shares.items() if share == 1]:
            warnings.warn(
                f"The column {name!r} has no value in the {part} part that training has seen. Are "
                "the files of one kind, and are their ids written in the same way?",
                stacklevel=4,
            )


def check_fitted(
    fitted: Features,
    task: Task,
    names: list[str],
    separators: Mapping[str, str | None],
    numeric: tuple[str, ...],
    share: Mapping[str, str],
) -> None:
    """Check that features from before are those of the data.

    Raises:
        ValueError: If they are of another task or columns.
    """
    for what, asked, found in (
        ("task", task, fitted.task),
        ("features", names, list(fitted.names)),
        ("separators", dict(separators), dict(fitted.separators)),
        ("numeric columns", list(numeric), list(fitted.numeric)),
        ("shared tables", dict(share), dict(fitted.share)),
    ):
        if asked != found:
            raise ValueError(f"`fitted` must be of the {what} {asked!r}, got {found!r}.")


def known_targets(fitted: Features, targets: CodedColumn) -> NDArray[np.int64]:
    """The training rows whose target the features know: of the others there is no class.

    Raises:
        ValueError: If there are none.
    """
    assert fitted.targets is not None
    is_known = fitted.targets.knows(targets.ids_of_values(fitted.targets))
    kept = np.flatnonzero(targets.known(is_known))
    if not len(kept):
        raise ValueError(
            "The label must have values known from before (`fitted`), got only others in the "
            f"training part, such as {targets.first()!r}. This is another table, or its targets "
            "were renamed: search it under another study name."
        )
    return kept
