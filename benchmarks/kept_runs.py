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
    name: str | None = None,
    summary: Callable[[list[Run]], Any] | None = None,
    under: str = "runs",
) -> dict[str, Any]:
    """Add runs to a file, in place of those that are the same by some of their values.

    Args:
        runs: The runs.
        output: The file, of a summary and of all runs.
        by: Names of the values by which a run is known, and by which they are sorted.
        name: What the summary is called, if there is one.
        summary: Makes it of all runs.
        under: What the runs are called.

    Returns:
        What is in the file now.
    """
    before = json.loads(output.read_text())[under] if output.exists() else []
    places = {tuple(each[key] for key in by): each for each in [*before, *runs]}
    merged = [places[place] for place in sorted(places)]
    output.parent.mkdir(parents=True, exist_ok=True)
    kept = {} if name is None or summary is None else {name: summary(merged)}
    kept[under] = merged
    output.write_text(json.dumps(kept, indent=1) + "\n")
    return kept
