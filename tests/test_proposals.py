"""Whose proposals have won."""

from __future__ import annotations

import json
from pathlib import Path

from proposals import save, wins


def _run(winner: str, seed: int) -> dict[str, object]:
    return {"data": "flights-ranking", "budget": 0.25, "seed": seed, "winner": winner}


def test_prices_count_as_the_policy_s() -> None:
    runs = [_run(winner, 0) for winner in ("policy", "values", "formula", "uniform", "values")]
    assert wins(runs) == {"policy": 3, "formula": 1, "random": 0, "uniform": 1, "by_price": 2}


def test_searches_of_earlier_times_stay_unless_they_are_run_again(tmp_path: Path) -> None:
    output = tmp_path / "results" / "proposals.json"
    save([_run("policy", 0), _run("random", 1)], output)
    save([_run("formula", 1)], output)
    found = json.loads(output.read_text())
    assert [each["winner"] for each in found["runs"]] == ["policy", "formula"]
    assert found["wins"]["random"] == 0
