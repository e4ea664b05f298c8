from __future__ import annotations

import numpy as np
import pytest

from optuna_nis._checks import check_integer, check_number


@pytest.mark.parametrize("value", [2, True, 3.0, "3", None])
def test_check_integer(value: object) -> None:
    check_integer("count", 3, 3)
    with pytest.raises(ValueError, match="`count` must be an integer of at least 3, got "):
        check_integer("count", value, 3)


@pytest.mark.parametrize("value", [1.0, 1.5, -1e-9, float("nan"), float("inf"), True, "0.5", None])
def test_check_number(value: object) -> None:
    for fits in (0, 0.5, np.float32(0.5)):
        check_number("share", fits, 0, 1)
    with pytest.raises(ValueError, match=r"`share` must be a number in \[0, 1\), got "):
        check_number("share", value, 0, 1)


@pytest.mark.parametrize("value", [0, 0.0, float("nan"), float("inf")])
def test_check_number_open(value: object) -> None:
    check_number("rate", 1e-9, 0, or_least=False)
    with pytest.raises(ValueError, match=r"`rate` must be a number in \(0, inf\), got "):
        check_number("rate", value, 0, or_least=False)
