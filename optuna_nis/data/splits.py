"""The three parts of a data set: which rows are for training, validation and the test."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
import pandas as pd

Split = Literal["random", "chronological", "leave-one-out", "group", "given"]

MIN_ROWS = 10
# What a column that says which part a row belongs to may call the parts.
_NAMES: tuple[tuple[int | str, ...], ...] = (
    (0, "0", "train"),
    (1, "1", "validation", "valid", "val"),
    (2, "2", "test"),
)


class Parts(NamedTuple):
    """Positions of the rows of each part."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split_rows(
    num_rows: int,
    *,
    split: Split,
    seed: int,
    order: NDArray[Any] | None = None,
    group: NDArray[Any] | None = None,
    part: NDArray[Any] | None = None,
) -> Parts:
    """Divide rows into those for training, for validation and for the test.

    Args:
        num_rows: Number of rows.
        split: ``"random"`` and ``"chronological"`` give 80, 10 and 10 %, the latter with the last
            rows for the test and the ones before for validation, all rows of one time in one part
            and the parts as near to that as this allows; ``"leave-one-out"`` gives the
            last row of every group to the test, the one before it to validation and all others,
            among them groups of one row, to training; ``"group"`` draws whole groups, the
            parts as near to their shares as these allow; ``"given"`` does what ``part`` says.
        seed: Seed of the random split, and of the order of the validation rows, of which any run
            is a fair sample in all splits.
        order: For every row a number that grows with time; by default rows are in order of time.
        group: For every row whose it is, such as a user, for ``"leave-one-out"`` and ``"group"``.
        part: For every row 0 (training), 1 (validation) or 2 (test), for ``"given"``.

    Raises:
        ValueError: If there are fewer than 10 rows, the split is unknown, there are fewer than
            three times for the chronological one, or groups or parts are missing or leave a part
            empty.

    Example:
        >>> parts = split_rows(100, split="random", seed=0)
        >>> [len(part) for part in parts]
        [80, 10, 10]
        >>> users = np.repeat(["ann", "bob"], [4, 6])
        >>> parts = split_rows(10, split="leave-one-out", seed=0, group=users)
        >>> parts.train.tolist(), sorted(parts.validation.tolist()), parts.test.tolist()
        ([0, 1, 4, 5, 6, 7], [2, 8], [3, 9])
    """
    if num_rows < MIN_ROWS:
        raise ValueError(
            f"A data set must have at least {MIN_ROWS} rows for its three parts, got {num_rows}."
        )
    check_split(split)
    rng = np.random.default_rng(seed)
    if split == "given":
        train, validation, test = _as_given(part)
        return Parts(train, rng.permutation(validation), test)
    if split == "group":
        train, validation, test = _whole_groups(group, rng)
        return Parts(train, rng.permutation(validation), test)
    if split == "random":
        rows = rng.permutation(num_rows)
    else:
        rows = np.arange(num_rows) if order is None else np.argsort(order, kind="stable")
    if split == "leave-one-out":
        train, validation, test = _last_of_groups(rows, group)
    else:
        tenth = num_rows // 10
        cuts = (num_rows - 2 * tenth, num_rows - tenth)
        if split == "chronological" and order is not None:
            cuts = _between_times(order[rows], *cuts)
        train, validation, test = np.split(rows, cuts)
    return Parts(train, rng.permutation(validation), test)


def _between_times(times: NDArray[Any], first: int, second: int) -> tuple[int, int]:
    """The two places where a new time begins that are nearest to those given."""
    begins = _begins(times, "three different times for its three parts", 3)
    # To every first cut the second one behind it that is nearest to its place.
    nearest = int(np.abs(begins - second).argmin())
    later = np.maximum(nearest, np.arange(1, len(begins)))
    distance = np.abs(begins[:-1] - first) + np.abs(begins[later] - second)
    best = int(distance.argmin())
    return int(begins[best]), int(begins[later[best]])


def nearest_time(times: NDArray[Any], cut: int) -> int:
    """The place where a new time begins that is nearest to one given.

    Raises:
        ValueError: If all times are the same.
    """
    begins = _begins(times, "two different times for training and validation", 2)
    return int(begins[np.abs(begins - cut).argmin()])


def _begins(times: NDArray[Any], needed: str, least: int) -> NDArray[np.intp]:
    """The places where a new time begins, of so many times at least."""
    begins = np.flatnonzero(times[1:] != times[:-1]) + 1
    if len(begins) + 1 < least:
        raise ValueError(
            "The chronological split puts all rows of one time into one part and must have at "
            f"least {needed}, got {len(begins) + 1}."
        )
    return begins


def _last_of_groups(rows: NDArray[np.int64], group: NDArray[Any] | None) -> Parts:
    if group is None:
        raise ValueError(
            '`split="leave-one-out"` takes the last rows of groups such as users, and these data '
            "have none."
        )
    ordered = pd.Series(group[rows])
    groups = ordered.groupby(ordered, sort=False)
    # A row that is alone counts as one with two after it.
    left = np.where(groups.transform("size") == 1, 2, groups.cumcount(ascending=False))
    parts = Parts(rows[left >= 2], rows[left == 1], rows[left == 0])
    if not all(len(part) for part in parts):
        raise ValueError(
            '`split="leave-one-out"` would leave a part empty: no group has three rows.'
        )
    return parts


def _whole_groups(group: NDArray[Any] | None, rng: np.random.Generator) -> Parts:
    if group is None:
        raise ValueError(
            '`split="group"` takes whole groups such as users, and these data have none.'
        )
    codes, found = pd.factorize(group)
    if len(found) < 3:
        raise ValueError(
            '`split="group"` must have at least three groups for its three parts, got '
            f"{len(found)}."
        )
    drawn = rng.permutation(len(found))
    # The share of the rows in the first group, the first two and so on; each part has a group.
    shares = np.cumsum(np.bincount(codes)[drawn]) / len(codes)
    first = 1 + int(np.abs(shares[:-2] - 0.8).argmin())
    second = first + 1 + int(np.abs(shares[first:-1] - 0.9).argmin())
    part = np.empty(len(found), dtype=np.int64)
    part[drawn] = np.repeat([0, 1, 2], [first, second - first, len(found) - second])
    return Parts(*(np.flatnonzero(part[codes] == index) for index in range(3)))


def _as_given(part: NDArray[Any] | None) -> Parts:
    if part is None:
        raise ValueError(
            '`split="given"` takes what the data say of every row, such as a column of a table '
            "(`split_column`), and these data say nothing."
        )
    parts = Parts(*(np.flatnonzero(part == index) for index in range(3)))
    if empty := [name for name, rows in parts._asdict().items() if not len(rows)]:
        raise ValueError(f'`split="given"` must give rows to every part, got none for {empty[0]}.')
    return parts


def parts_of(column: pd.Series[Any], name: str) -> NDArray[np.int64]:
    """The part of every row as a column of a table says it, -1 where it says nothing.

    Args:
        column: 0, 1 and 2, or ``train``, ``validation`` (also ``val``, ``valid``) and ``test``.
        name: Name of the column in errors.

    Raises:
        ValueError: If it holds something else.

    Example:
        >>> parts_of(pd.Series(["train", "val", "test", None]), "part").tolist()
        [0, 1, 2, -1]
    """
    places = {known: place for place, names in enumerate(_NAMES) for known in names}
    codes, index = pd.factorize(column)
    found = index.tolist()
    texts = [each.strip().lower() if isinstance(each, str) else each for each in found]
    if unknown := [each for each, text in zip(found, texts) if text not in places]:
        raise ValueError(
            f"The column {name!r} must hold 0, 1 and 2, or train, validation and test, to say "
            f"which part a row belongs to, got {unknown[0]!r}."
        )
    # The code of a missing value is -1, which reads the last entry.
    return np.array([*(places[text] for text in texts), -1], dtype=np.int64)[codes]


def check_split(split: str) -> None:
    """Check the name of a split.

    Raises:
        ValueError: If it is unknown.
    """
    if split not in get_args(Split):
        known = ", ".join(f'"{each}"' for each in get_args(Split))
        raise ValueError(f"`split` must be one of {known}, got {split!r}.")


def thin(parts: Parts, max_rows: int | None, seed: int) -> Parts:
    """Keep about so many rows, the same random share of each part, in their order; None is all."""
    num_rows = sum(map(len, parts))
    if max_rows is None or max_rows >= num_rows:
        return parts
    rng, share = np.random.default_rng(seed), max_rows / num_rows
    return Parts(
        *(
            rows[np.sort(rng.choice(len(rows), max(1, round(share * len(rows))), replace=False))]
            for rows in parts
        )
    )
