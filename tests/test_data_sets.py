"""The data of the quality benchmark."""

from __future__ import annotations

from pathlib import Path

import data_sets
import numpy as np
import pandas as pd
import pytest

NAMES = [name for name, about in data_sets.DATA.items() if "table" in about]


def write(name: str, folder: Path) -> pd.DataFrame:
    """Rows with the columns of a table, of which the last parts have ids of their own."""
    about = data_sets.DATA[name]
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"label": [0, 1] * 50, "split": np.repeat([2, 0, 1], [20, 70, 10])})
    for feature in about["features"]:
        frame[feature] = rng.integers(5, size=100) + 10 * frame["split"]
    for bag in about.get("bags", {}):
        frame[bag] = [[10 * part, 10 * part + row % 3] for row, part in enumerate(frame["split"])]
    frame.to_parquet(folder / about["table"])
    return frame


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_split_as_they_say(name: str, tmp_path: Path) -> None:
    frame = write(name, tmp_path)
    config = data_sets.data_config(name, {"data_dir": str(tmp_path)})

    data = config.datamodule(withhold_test=False)
    data.setup("test")

    assert data.sizes == {"train": 70, "validation": 10, "test": 20}
    assert data.bags == set(data_sets.DATA[name].get("bags", {}))
    for feature, vocabulary in data.vocabularies.items():
        seen = frame[feature][frame["split"] == 0]
        assert set(vocabulary.values) == set(seen.explode())


def test_half() -> None:
    judged = {name for name in data_sets.DATA if data_sets.half(name) == "judged"}
    assert judged == {"citeulike_a", "seattle_pets"}
    assert data_sets.half("amazon-video-games-items") == "chosen"
