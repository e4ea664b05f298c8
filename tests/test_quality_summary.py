"""What the cells of the quality benchmark say together."""

from __future__ import annotations

from typing import Any

import pytest
from quality_summary import summary


def cell(method: str, mean: float, **changes: Any) -> dict[str, Any]:
    return {
        "data": "flights",
        "half": "chosen",
        "budget": 0.25,
        "method": method,
        "mean": mean,
        "std": 0.003,
        "search_cost_ratio": 1.0,
        "steps_ratio": 1.2,
    } | changes


def counts(above: int = 0, within: int = 0, below: int = 0) -> dict[str, int]:
    return {"above": above, "within": within, "below": below}


def test_a_mean_is_held_against_the_pooled_standard_deviation() -> None:
    # The square root of the mean of .003 and .005, both squared, is .0041.
    def against(mean: float) -> dict[str, int]:
        cells = [cell("nis_me", mean), cell("uniform", 0.75, std=0.005)]
        return summary(cells)["all"]["against"]["nis_me"]["uniform"]

    assert against(0.7545) == counts(above=1)
    assert against(0.7538) == counts(within=1)
    assert against(0.7462) == counts(within=1)
    assert against(0.7455) == counts(below=1)


def test_cells_that_are_below_are_named() -> None:
    cells = [
        cell("nis_me", 0.75),
        cell("uniform", 0.74),
        cell("mde", 0.76),
        cell("nis_me", 0.75, budget=0.5),
        cell("mde", 0.75, budget=0.5),
    ]
    found = summary(cells)["all"]
    assert found["costs"]["nis_me"]["cells"] == 2
    assert found["against"]["nis_me"] == {
        "uniform": counts(above=1),
        "mde": counts(within=1, below=1),
    }
    (below,) = found["below"]
    assert below.pop("std") == pytest.approx(0.003)
    assert below == {
        "data": "flights",
        "budget": 0.25,
        "method": "nis_me",
        "rival": "mde",
        "mean": 0.75,
        "rival_mean": 0.76,
    }


def test_full_tables_are_no_rivals_of_small_budgets() -> None:
    cells = [
        cell(method, mean, budget=budget)
        for budget in (0.125, 0.25, 0.5)
        for method, mean in (("nis_me", 0.75), ("full", 0.76), ("uniform", 0.74))
    ]
    against = summary(cells)["all"]["against"]["nis_me"]
    assert against == {"uniform": counts(above=3), "full": counts(below=2)}


def test_bits_are_held_against_what_is_as_large() -> None:
    cells = [
        cell(method, mean, budget=budget)
        for budget in (0.05, 0.25)
        for method, mean in (("nis_bits", 0.77), ("nis_me", 0.75), ("full", 0.76), ("mpe", 0.78))
    ]
    found = summary(cells)["all"]
    assert found["against"]["nis_bits"] == {
        "full": counts(above=1),
        "nis_me": counts(above=2),
        "mpe": counts(below=2),
    }
    gain = pytest.approx(0.77 / 0.75 - 1)
    assert found["gains"] == {"flights": {"0.05": gain, "0.25": gain}}


def test_tuned_is_compared_with_tuned() -> None:
    cells = [
        cell("nis_me", 0.75),
        cell("nis_tuned", 0.77),
        cell("full_tuned", 0.76),
        cell("uniform_tuned", 0.77),
    ]
    found = summary(cells)["all"]
    assert found["against"] == {
        "nis_bits": {},
        "nis_me": {"full_tuned": counts(below=1), "uniform_tuned": counts(below=1)},
        "nis_retrained": {},
        "nis_tuned": {"full_tuned": counts(above=1), "uniform_tuned": counts(within=1)},
    }
    assert [each["method"] for each in found["below"]] == ["nis_me", "nis_me"]


def test_halves_are_told_apart() -> None:
    cells = [
        *(cell("nis_me", 0.75, search_cost_ratio=ratio, data=data) for data, ratio in COSTS),
        cell("nis_me", 0.7, half="judged", data="pets", search_cost_ratio=9.0, steps_ratio=2.0),
        cell("uniform", 0.8, half="judged", data="pets"),
    ]
    found = summary(cells)
    assert {name: part["costs"]["nis_me"]["cells"] for name, part in found.items()} == {
        "chosen": 3,
        "judged": 1,
        "all": 4,
    }
    assert found["chosen"]["costs"]["nis_me"]["search_cost_ratio"] == {"median": 2.0, "max": 4.0}
    assert found["all"]["costs"]["nis_me"]["search_cost_ratio"] == {"median": 3.0, "max": 9.0}
    assert found["judged"]["costs"]["nis_me"]["steps_ratio"] == {"median": 2.0, "max": 2.0}
    assert found["chosen"]["below"] == []
    assert [each["data"] for each in found["all"]["below"]] == ["pets"]


COSTS = (("flights", 1.0), ("movies", 2.0), ("games", 4.0))


def test_without_a_search_there_is_nothing_to_say() -> None:
    costs = summary([cell("uniform", 0.75)])["judged"]["costs"]["nis_bits"]
    assert costs == {"cells": 0, "search_cost_ratio": None, "steps_ratio": None}
