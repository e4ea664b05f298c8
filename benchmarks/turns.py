"""Steps that are compared take turns."""

from __future__ import annotations

from collections.abc import Callable
import time


def seconds_in_turns(rounds: int, *steps: Callable[[int], object]) -> list[list[float]]:
    """Seconds of each step, run in turns so that all see the same machine.

    Args:
        rounds: How often each is measured, after three times that do not count.
        *steps: Called with the number of the round.
    """
    seconds: list[list[float]] = [[] for _ in steps]
    for index in range(rounds + 3):
        for step, times in zip(steps, seconds):
            start = time.perf_counter()
            step(index)
            times.append(time.perf_counter() - start)
    return [times[3:] for times in seconds]
