from __future__ import annotations

from datetime import date
from decimal import Decimal
import json
from typing import Any

import pandas as pd
import pytest

from optuna_nis.data.written import read, written

VALUES = [
    True,
    2**70,
    -0.0,
    float("inf"),
    "é",
    b"\x00\xff",
    Decimal("1.10"),
    date(2013, 1, 1),
    pd.Timestamp("2013-01-01 05:00:00.000000001"),
]


def test_every_type_comes_back_through_json() -> None:
    pairs = json.loads(json.dumps(list(written(VALUES)), allow_nan=False))

    found = list(read(pairs))

    assert list(map(repr, found)) == list(map(repr, VALUES))


@pytest.mark.parametrize(
    ("pair", "error"),
    [(("set", 1), KeyError), (("int", "x"), ValueError), (("bytes", 3), TypeError)],
)
def test_what_was_not_written_is_refused(pair: tuple[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        list(read([pair]))
