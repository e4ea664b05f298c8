"""What a search asks for, one request after the other, and the answers to it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from optuna_nis.strategy.block_values import Gradients
from optuna_nis.strategy.pricing import Pricing
from optuna_nis.strategy.scoring import Scoring

Request: TypeAlias = Scoring | Pricing
Answer: TypeAlias = Sequence[float] | Sequence[Sequence[Gradients]] | None
Work: TypeAlias = Generator[Request, Any, None]


class Asking:
    """Goes through the work of a search: what it needs next, until it is told.

    Args:
        next_work: Gives the next piece of work; None if there is nothing to do for now.
    """

    def __init__(self, next_work: Callable[[], Work | None]) -> None:
        self._next_work = next_work
        self._work: Work | None = None
        self._request: Request | None = None

    def forget(self) -> None:
        """Leave what has been asked for."""
        self._work = self._request = None

    def ask(self) -> Request | None:
        """The next request, the same until it is answered; None if there is none for now."""
        if self._work is None and (work := self._next_work()) is not None:
            self._work = work
            self._request = next(work, None)
            if self._request is None:
                self._work = None
        return self._request

    def tell(self, answer: Answer) -> None:
        """Go on with an answer; others are to be asked for if it is none.

        Raises:
            RuntimeError: If nothing was asked for.
            ValueError: If it does not answer the request.
        """
        if self._work is None or self._request is None:
            raise RuntimeError("`tell` answers `ask`, which has asked for no scores.")
        checked = _checked(self._request, answer)
        work, self._work, self._request = self._work, None, None
        with suppress(StopIteration):
            self._request = work.send(checked)
            self._work = work


def _checked(request: Request, answer: Answer) -> Answer:
    if isinstance(request, Pricing):
        if answer is not None and not all(isinstance(each, Sequence) for each in answer):
            raise ValueError(
                "The answer to a `Pricing` must be what `mask_gradients` gives for each of its "
                f"batches, or None, got {answer!r}."
            )
        return answer
    values = [float(quality) for quality in answer or ()]  # type: ignore[arg-type]
    if len(values) != len(request.choices):
        raise ValueError(
            f"`qualities` must have one number for each of {len(request.choices)} "
            f"choices, got {len(values)}."
        )
    return values
