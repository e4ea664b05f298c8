"""Lines that say how many rows of a long work are done, and how fast."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from optuna_nis._format import duration

#: Seconds between two lines.
EVERY = 5.0

#: What is called with a line of text.
Progress = Callable[[str], None]


def no_progress(text: str) -> None:
    """Say nothing."""


class Pace:
    """Says every few seconds how many rows are done; nothing of work that is done sooner.

    Args:
        progress: Called with each line.
        clock: Gives the time in seconds.

    Attributes:
        rows: Rows of the work at hand that are done.

    Example:
        >>> seconds = iter([0, 2, 6, 7, 12])
        >>> pace = Pace(print, clock=lambda: next(seconds))
        >>> for column, rows in ((1, 1_000), (1, 2_000), (2, 500), (2, 500)):
        ...     pace.add(rows, f"Reading column {column}")
        Reading column 1: 3,000 rows, 500 rows a second
        Reading column 2: 1,000 rows, 167 rows a second
    """

    def __init__(self, progress: Progress, *, clock: Callable[[], float] = monotonic) -> None:
        self._progress, self._clock = progress, clock
        self._begun = self._told = self._last = clock()
        self._what = ""
        # The time and the share that were done when a share was first known.
        self._since: tuple[float, float] | None = None
        self.rows = 0

    def add(self, rows: int, what: str, share: float | None = None) -> None:
        """Some more rows are done.

        Args:
            rows: How many.
            what: What is done to them; another text than before begins another work.
            share: How much of all works is done by now, if that is known.
        """
        if what != self._what:
            self._what, self._begun, self.rows = what, self._last, 0
        self.rows += rows
        self._last = now = self._clock()
        if now - self._told >= EVERY:
            self._told = now
            speed = self.rows / max(now - self._begun, 1e-9)
            left = self._left(now, share)
            self._progress(f"{what}: {self.rows:,} rows, {speed:,.0f} rows a second{left}")
        if share is not None and self._since is None:
            self._since = now, share

    def _left(self, now: float, share: float | None) -> str:
        """How long it still takes, if that can be said."""
        if share is None or self._since is None:
            return ""
        start, before = self._since
        # What was kept is read in no time, and columns may be read twice.
        if not before < share < 1:
            return ""
        return f"; about {duration((1 - share) * (now - start) / (share - before))} left"
