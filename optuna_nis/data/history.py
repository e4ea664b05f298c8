"""What came before: the earlier values of a user, an aircraft or the like as features."""

from __future__ import annotations

import pandas as pd


def add_history(
    rows: pd.DataFrame, *, group: str, value: str, last: str, length: int
) -> pd.DataFrame:
    """Add the previous value of a row's group and the bag of the last few, latest first.

    Args:
        rows: Rows, those of a group together and in order of time.
        group: Column that says whose a row is.
        value: Column whose earlier values are wanted.
        last: Name of the new column of the previous value, missing in the first row of a group.
            The new column of bags is named ``"history"``.
        length: Most values in a bag.

    Example:
        >>> rows = pd.DataFrame({"user": list("aaab"), "item": [5, 6, 7, 8]})
        >>> added = add_history(rows, group="user", value="item", last="last_item", length=2)
        >>> added["history"].tolist()
        [[], [5], [6, 5], []]
    """
    values = rows[value].tolist()
    earlier = rows.groupby(group, sort=False).cumcount().clip(upper=length)
    history = [values[row - many : row][::-1] for row, many in enumerate(earlier.tolist())]
    previous = [bag[0] if bag else None for bag in history]
    columns = {last: previous, "history": history}
    return rows.assign(
        **{name: pd.Series(each, rows.index, dtype=object) for name, each in columns.items()}
    )
