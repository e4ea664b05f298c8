"""Small tables in place of those of the quality benchmark."""

from __future__ import annotations

from pathlib import Path

import data_sets
import numpy as np
import pandas as pd


def write_table(name: str, folder: Path) -> pd.DataFrame:
    """Write rows with the columns of a table, of which the last parts have ids of their own."""
    about = data_sets.DATA[name]
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"label": [0, 1] * 50, "split": np.repeat([2, 0, 1], [20, 70, 10])})
    for feature in about["features"]:
        frame[feature] = rng.integers(5, size=100) + 10 * frame["split"]
    for bag in about.get("bags", {}):
        frame[bag] = [[10 * part, 10 * part + row % 3] for row, part in enumerate(frame["split"])]
    frame.to_parquet(folder / about["table"])
    return frame
