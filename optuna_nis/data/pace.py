"""Lines that say how many rows of a long work are done, and how fast."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

#: Seconds between two lines.
EVERY = 5.0

#: What is called with a line of text.
Progress = Callable[[str], None]


def no_progress(text: str) -> None:
    """Say nothing."""


class Pace:
    """Says every few seconds how many rows are done; nothing of work that is done sooner.

    Args:
        what: What is done to them, the beginning of each line.
        progress: Called with each line.
        clock: Gives the time in seconds.

    Example:
        >>> seconds = iter([0, 2, 6, 7])
        >>> pace = Pace("Predicting", print, clock=lambda: next(seconds))
        >>> for rows in (1_000, 2_000, 500):
        ...     pace.add(rows)
        Predicting: 3,000 rows, 500 rows a second
    """

    def __init__(
        self,
        what: str,
        progress: Progress,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.what = what
        self._progress, self._clock = progress, clock
        self._start = self._told = clock()
        #: Rows so far.
        self.rows = 0

    def add(self, rows: int) -> None:
        """Some more rows are done."""
        self.rows += rows
        now = self._clock()
        if now - self._told >= EVERY:
            self._told = now
            speed = self.rows / (now - self._start)
            self._progress(f"{self.what}: {self.rows:,} rows, {speed:,.0f} rows a second")
