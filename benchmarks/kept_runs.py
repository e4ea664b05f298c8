"""Runs of a benchmark that are kept beside those of earlier times."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
import json
from pathlib import Path
from typing import Any

Run = dict[str, Any]


def add_runs(
    runs: Iterable[Run],
    output: Path,
    *,
    by: Sequence[str],
    name: str,
    summary: Callable[[list[Run]], Any],
) -> None:
    """Add runs to a file, in place of those that are the same by some of their values.

    Args:
        runs: The runs.
        output: The file, of a summary and of all runs.
        by: Names of the values by which a run is known, and by which they are sorted.
        name: What the summary is called.
        summary: Makes it of all runs.
    """
    before = json.loads(output.read_text())["runs"] if output.exists() else []
    places = {tuple(each[key] for key in by): each for each in [*before, *runs]}
    merged = [places[place] for place in sorted(places)]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({name: summary(merged), "runs": merged}, indent=1) + "\n")
