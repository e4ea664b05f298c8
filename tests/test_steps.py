"""Steps get what Lightning gives them."""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
import pytest

from optuna_nis._steps import step_arguments, takes_iterator


def _wrapped(step: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(step)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return step(self, *args, **kwargs)

    return call


class Module:
    def batch_only(self, batch: Any) -> Any:
        return (batch,)

    def named(self, batch: Any, batch_idx: int) -> Any:
        return batch, batch_idx

    def by_position(self, batch: Any, _: int) -> Any:
        return batch, _

    def any_number(self, *args: Any) -> Any:
        return args

    def with_default(self, batch: Any, index: int = 7) -> Any:
        return batch, index

    def three(self, batch: Any, index: int, loader: int = 0) -> Any:
        return batch, index

    @_wrapped
    def wrapped(self, batch: Any) -> Any:
        return (batch,)

    @_wrapped
    def wrapped_with_index(self, batch: Any, _: int) -> Any:
        return batch, _

    bound = functools.partialmethod(by_position)

    def iterator(self, dataloader_iter: Any) -> Any:
        return next(dataloader_iter)


NAMES = [name for name in vars(Module) if not name.startswith("_") and name != "iterator"]


@pytest.mark.parametrize("name", NAMES)
def test_a_step_gets_what_lightning_gives_it(name: str) -> None:
    step = getattr(Module(), name)
    arguments = step_arguments(step, "batch", 3)
    with_index = is_param_in_hook_signature(step, "batch_idx", min_args=2)
    assert arguments == (("batch", 3) if with_index else ("batch",))
    assert step(*arguments) == arguments
    assert not takes_iterator(step)


def test_the_index_of_the_dataloader_comes_last() -> None:
    assert step_arguments(Module().three, "batch", 3, 1) == ("batch", 3, 1)


def test_a_step_that_takes_the_iterator_is_known() -> None:
    assert takes_iterator(Module().iterator)
