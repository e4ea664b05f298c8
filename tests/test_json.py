"""What is read as JSON is refused by name, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from optuna_nis import Allocation, SearchSpace
from optuna_nis._json import read_json
from optuna_nis.data import Features, Vocabulary
from optuna_nis.data.config import DataConfig

NESTED = "[" * 200_000 + "]" * 200_000


@pytest.mark.parametrize(
    "read",
    [
        read_json,
        Allocation.from_json,
        SearchSpace.from_json,
        DataConfig.from_json,
        Features.from_json,
        Vocabulary.from_json,
    ],
)
@pytest.mark.parametrize("text", ["{", NESTED], ids=["broken", "nested"])
def test_what_cannot_be_read(read: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"JSON|Expecting"):
        read(text)
