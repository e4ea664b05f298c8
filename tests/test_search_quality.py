"""The benchmark that compares the search with its rivals."""

from __future__ import annotations

import pytest
import search_quality


def run(val: float, test: float) -> dict[str, float]:
    return {"val": val, "test": test}


def test_few_candidates_are_all_tried_at_equal_cost():
    runs = [run(0.8, 0.7), run(0.8, 0.72)]
    assert search_quality._of_few(runs, [run(0.8, 0.7), run(0.1, 0.9)]) == pytest.approx(0.71)


def test_of_many_candidates_every_pair_counts_alike():
    candidates = [run(0.8, 0.7), run(0.7, 0.6), run(0.6, 0.9)]
    # The first wins two pairs, the second the one that is left.
    assert search_quality._of_few([], candidates) == pytest.approx((0.7 + 0.7 + 0.6) / 3)
