"""The search of ``benchmarks/large_table.py``, over small tables."""

from __future__ import annotations

from multiprocessing import Pipe
from threading import Semaphore

import large_table
import pytest


def test_two_searches_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_table, "TURN", 1)
    monkeypatch.setattr(large_table, "BATCH", 64)
    monkeypatch.setattr(large_table, "EXAMPLES", 32)
    mine, next_one = Semaphore(4), Semaphore(0)
    receive, send = Pipe(duplex=False)
    large_table.search(500, 8, 2, mine, next_one, send)
    run = receive.recv()
    # Four steps, each in a turn of its own; the turn is left at the end.
    assert not mine.acquire(blocking=False)
    assert [next_one.acquire(blocking=False) for _ in range(5)] == [True] * 4 + [False]
    assert 0 < run["quality"] < 1
    assert 0 < run["peak_gib"] < 100
    assert run["warmup_step"] > 0 < run["search_step"]


def test_ids_are_in_range_and_the_first_ones_frequent() -> None:
    (batch,) = large_table.Clicks(1000, 1, seed=0)
    items = batch["item"]
    assert 0 <= items.min() <= items.max() < 1000
    assert (items < 31).float().mean().item() == pytest.approx(0.5, abs=0.05)
