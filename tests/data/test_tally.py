from __future__ import annotations

import warnings

import pandas as pd
import pytest

from optuna_nis.data import Features
from optuna_nis.data.tally import Tally


@pytest.mark.parametrize(
    ("values", "is_told"),
    [
        (["new"] * 50, False),
        ([f"new{n % 11}" for n in range(50)], True),
        # Known in training, but without a row in the model.
        (["l"] * 50, False),
    ],
)
def test_of_many_values_that_are_foreign_there_is_a_warning(
    values: list[str], is_told: bool
) -> None:
    rows = pd.DataFrame({"user": list("abcdefghijkl")})
    known = Features.fit(rows, task="ranking").vocabularies["user"]
    tally, column = Tally({"user": 3}), pd.Series(values)
    ids = known.encode(column)
    tally.add("user", column, ids, known.knows(ids))
    assert tally.unknown["user"] == 50
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        tally.without({"item"}).warn({"user": 1.0}, {"user": known})
    assert len(found) == is_told
