from __future__ import annotations

import pytest

from optuna_nis._checks import check_integer


@pytest.mark.parametrize("value", [2, True, 3.0, "3", None])
def test_check_integer(value: object) -> None:
    check_integer("count", 3, 3)
    with pytest.raises(ValueError, match="`count` must be an integer of at least 3, got "):
        check_integer("count", value, 3)
