"""What the tensors of a batch are called, and columns must not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

Task = Literal["ranking", "retrieval"]

LABEL: Final = "label"
"""Key of the labels in a batch."""

NUMERIC: Final = "numeric"
"""Key of the numbers in a batch, standardised, ``(batch, num_numeric)``."""

WEIGHT: Final = "weight"
"""Key of the sample weights in a batch, at least 0, ``(batch,)``."""

GROUP: Final = "group"
"""Key of the ids of the groups in a batch, users or queries, int64 ``(batch,)``, for metrics."""

NO_GROUP: Final = -1
"""Group of an example that belongs to none, which means over groups leave out."""

UNSEEN_TARGET: Final = -100
"""Label of a retrieval target that training has never seen.

It equals no class, so that every prediction for it is a miss, and it is the ``ignore_index`` of
:func:`torch.nn.functional.cross_entropy`.
"""


_KEYS: Final = {
    LABEL: "the labels",
    NUMERIC: "the numbers",
    WEIGHT: "the weights",
    GROUP: "the groups",
}


def check_task(task: str) -> None:
    """Check the name of a task.

    Raises:
        ValueError: If it is unknown.
    """
    if task not in ("ranking", "retrieval"):
        raise ValueError(f'`task` must be "ranking" or "retrieval", got {task!r}.')


def check_names(
    names: Sequence[str], numeric: Sequence[str] = (), keys: Sequence[str] = ()
) -> None:
    """Check the names of features and of numeric columns.

    Args:
        names: The features.
        numeric: The numeric columns.
        keys: Further keys of a batch of these data, such as ``WEIGHT``.

    Raises:
        ValueError: If there is no feature, a name comes twice, or is a key of a batch.
    """
    if not names:
        raise ValueError("`features` must name at least one column, got none.")
    taken = {LABEL, *keys, *([NUMERIC] if numeric else [])}
    for name in names:
        if name in taken:
            raise ValueError(
                f"`features` must not name a feature {name!r}, the key of {_KEYS[name]} in a "
                "batch; rename the column."
            )
        if names.count(name) > 1:
            raise ValueError(f"`features` names {name!r} twice.")
    for name in numeric:
        if name in names:
            raise ValueError(f"`numeric` must not name a feature too, got {name!r} in both.")
        if list(numeric).count(name) > 1:
            raise ValueError(f"`numeric` names {name!r} twice.")


def sharing(share: Mapping[str, str] | None) -> dict[str, str]:
    """Which features look into the tables of others, by default none.

    Raises:
        TypeError: If it is no mapping.
    """
    if not isinstance(share, Mapping | None):
        raise TypeError(f"`share` must be a mapping between features, got {share!r}.")
    return dict(share or {})


def check_share(share: Mapping[str, str], names: Sequence[str]) -> None:
    """Check which features look into the tables of others.

    Raises:
        ValueError: If one is no feature, looks into its own, or into one that has none.
    """
    for name, owner in share.items():
        if unknown := [each for each in (name, owner) if each not in names]:
            raise ValueError(
                f"`share` names {unknown[0]!r}, which is not a feature; there are "
                f"{', '.join(map(repr, names))}."
            )
        if owner in share:
            raise ValueError(
                "`share` must be from features without a table to features that have one, got "
                f"{name!r}: {owner!r} and {owner!r}: {share[owner]!r}."
            )
