from __future__ import annotations

from collections.abc import Callable
import threading
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
import numpy as np
import pytest
import torch

from optuna_nis.lightning._digest import digest


def _within(number: int) -> Callable[[int], Any]:
    def add(other: int) -> Any:
        return sorted((number, other), key=lambda each: -each)

    return add


@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping("val_auc"),
        lambda: ModelCheckpoint("folder", monitor="val_auc", mode="max"),
        lambda: EMAWeightAveraging(decay=0.99),
        lambda: _within(2),
        lambda: {"numbers": np.arange(3), "tensor": torch.arange(3.0)},
        lambda: torch.tensor(1.0),
    ],
)
def test_what_is_made_again_is_the_same(make: Callable[[], Any]) -> None:
    assert digest(make()) == digest(make())


def test_sets_have_no_order() -> None:
    # One number after the other takes the place of its remainder.
    one, other = {0, 8}, {8, 0}
    assert list(one) != list(other)
    assert digest({"numbers": one}) == digest({"numbers": other})
    assert digest(one) != digest(frozenset(one))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (EMAWeightAveraging(decay=0.99), EMAWeightAveraging(decay=0.98)),
        (_within(2), _within(3)),
        (lambda x=1: x, lambda x=2: x),
        (lambda: [y + 1 for y in "a"], lambda: [y + 2 for y in "a"]),
        (torch.zeros(2), torch.zeros(1, 2)),
        (torch.zeros(2), torch.zeros(4, dtype=torch.float16)),
        (torch.zeros(()), torch.ones(())),
        ({1}, {2}),
    ],
)
def test_what_is_another_is_told_apart(one: Any, other: Any) -> None:
    assert digest(one) != digest(other)


def test_what_cannot_be_pickled_is_refused() -> None:
    with pytest.raises(TypeError, match="pickle"):
        digest({"lock": threading.Lock()})
