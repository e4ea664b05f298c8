from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
import pandas as pd

from optuna_nis.data.history import add_history


def test_groups_are_kept_apart() -> None:
    rows = pd.DataFrame({"tailnum": list("aab"), "dest": ["X", "Y", "Z"]}, index=[5, 3, 9])

    added = add_history(rows, group="tailnum", value="dest", last="last_dest", length=10)

    assert added["history"].tolist() == [[], ["X"], []]
    assert added["last_dest"].tolist() == [None, "X", None]
    assert added.index.tolist() == [5, 3, 9]


@given(st.lists(st.integers(0, 8), min_size=1, max_size=5), st.integers(1, 4))
def test_history_is_what_came_before(sizes: list[int], length: int) -> None:
    rows = pd.DataFrame(
        [(user, 10 * user + place) for user, size in enumerate(sizes) for place in range(size)],
        columns=["user", "item"],
    )

    added = add_history(rows, group="user", value="item", last="last", length=length)

    for user, own in added.groupby("user"):
        seen: list[int] = []
        for row in own.itertuples():
            assert row.history == seen[::-1][:length]
            assert row.last == (seen[-1] if seen else None)
            assert all(item // 10 == user for item in row.history)
            seen.append(row.item)
