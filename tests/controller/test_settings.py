from __future__ import annotations

import pytest

from optuna_nis.controller.settings import PolicySettings


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", -1.0), ("optimism", float("nan")), ("ridge", 0.0), ("temperature", 0)],
)
def test_settings_refuse(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        PolicySettings(**{name: value})
