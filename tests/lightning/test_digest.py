from __future__ import annotations

from collections.abc import Callable
import pickle
import threading
from typing import Any

from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
import numpy as np
import pytest
import torch

from optuna_nis.lightning._digest import digest

RATE = 1.0


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
        (lambda x: x, lambda *x: x),
        (lambda x: _within(x), lambda x: digest(x)),
        (lambda: [y + 1 for y in "a"], lambda: [y + 2 for y in "a"]),
        (torch.zeros(2), torch.zeros(1, 2)),
        (torch.zeros(2), torch.zeros(4, dtype=torch.float16)),
        (torch.zeros(()), torch.ones(())),
        ({1}, {2}),
    ],
)
def test_what_is_another_is_told_apart(one: Any, other: Any) -> None:
    assert digest(one) != digest(other)


def test_what_a_function_refers_to_tells_it_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def known() -> str:
        return digest(lambda: (lambda: RATE)())

    before = known()
    assert known() == before
    monkeypatch.setitem(globals(), "RATE", 2.0)
    assert known() != before
    marked = _within(1)
    before = digest(marked)
    marked.rate = 2
    assert digest(marked) != before


class _Numbers(set[int]):
    def __init__(self, kind: str) -> None:
        super().__init__({1})
        self.kind = kind


def _tried(one: Any, two: Any) -> list[Callable[[int], None]]:
    def both(x: int) -> None:
        try:
            one(x)
            two(x)
        except ValueError:
            pass

    first = both

    def both(x: int) -> None:  # type: ignore[no-redef]
        try:
            one(x)
        except ValueError:
            pass
        else:
            two(x)

    return [first, both]


def test_what_is_no_code_tells_functions_apart() -> None:
    one, other = _tried(print, print)
    assert digest(one) != digest(other)
    assert digest(lambda lr, wd: lr) != digest(lambda wd, lr: wd)
    assert digest(_Numbers("a")) == digest(_Numbers("a")) != digest(_Numbers("b"))


def test_names_of_attributes_are_no_names_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(lambda x: x.RATE)
    monkeypatch.setitem(globals(), "RATE", threading.Lock())
    assert digest(lambda x: x.RATE) == before


def test_functions_of_the_program_are_told_by_what_they_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def scaled(x: float) -> float:
        return x * RATE

    for function in (scaled, lambda x: scaled(x)):
        monkeypatch.setattr(scaled, "__module__", "__main__")
        monkeypatch.setattr(scaled, "__qualname__", "scaled")
        before = digest(function)
        with monkeypatch.context() as changed:
            changed.setitem(globals(), "RATE", 2.0)
            assert digest(function) != before
        assert digest(function) == before


def test_functions_may_refer_to_each_other() -> None:
    def ends(number: int) -> bool:
        return number < 1 or goes_on(number - 1)

    def goes_on(number: int) -> bool:
        return ends(number)

    together: Any = ends
    for _ in range(40):
        together = (lambda one, other: lambda: (one, other))(together, together)
    assert digest(together) == digest(together) != digest(ends)


def _local() -> Any:
    class Local:
        pass

    return Local()


@pytest.mark.parametrize(
    "make",
    [
        threading.Lock,
        _local,
        lambda: torch.ones(2).untyped_storage(),
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_cannot_be_told_is_refused(make: Callable[[], Any]) -> None:
    value = make()
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError), match=r"an't|annot"):
        digest({"value": value})
