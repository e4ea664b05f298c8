from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from optuna_nis.controller.settings import PolicySettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", -1.0),
        ("learning_rate", "1"),
        ("optimism", float("nan")),
        ("max_importance", float("inf")),
        ("max_importance", 10**400),
        ("ridge", 0.0),
        ("ridge", 1e-20),
        ("temperature", 0),
        ("temperature", True),
    ],
)
def test_settings_refuse(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        PolicySettings(**{name: value})


@pytest.mark.parametrize("value", [2, np.int64(2), np.float32(2.0), np.float64(2.0)])
def test_numbers_of_any_type_are_kept_as_floats(value: Any) -> None:
    settings = PolicySettings(learning_rate=value)
    assert type(settings.learning_rate) is float
    assert json.loads(json.dumps(settings.changed())) == {"learning_rate": 2.0}
