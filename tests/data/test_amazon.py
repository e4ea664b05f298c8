from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from optuna_nis.data import AmazonVideoGamesRetrieval

#: Items of each user, oldest first; users 4 and 5 have too few to leave any out.
SEQUENCES = {
    1: [10, 11, 12, 13, 14, 15],
    2: [12, 11, 10, 16],
    3: [11, 10, 12],
    4: [17, 10],
    5: [18],
    6: list(range(10, 16)) * 6,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [(u, i, p) for u, items in SEQUENCES.items() for p, i in enumerate(items)]
    frame = pd.DataFrame(rows, columns=["user", "item", "position"])
    frame = frame.sample(frac=1, random_state=0)  # The order of the file does not matter.
    frame.to_parquet(tmp_path / "amazon_video_games_sequences.parquet")
    return tmp_path


def rows_of(data: AmazonVideoGamesRetrieval, part: str) -> list[tuple[list[int], int, int | None]]:
    """Histories, last items and targets of a part, decoded."""
    batches = {
        "train": data.train_dataloader,
        "validation": data.val_dataloader,
        "test": data.test_dataloader,
    }[part]()
    vocabulary = data.vocabularies
    targets = data.features.targets
    assert targets is not None
    found = []
    for batch in batches:
        for bag, last, label in zip(batch["history"], batch["last_item"], batch["label"]):
            items = [i for i in vocabulary["history"].decode(bag.tolist()) if i is not None]
            (before,) = vocabulary["last_item"].decode([int(last)])
            target = None if label < 0 else targets.values[int(label)]
            found.append((items, before, target))
    return found  # type: ignore[return-value]


def test_the_last_item_is_for_the_test(folder: Path) -> None:
    data = AmazonVideoGamesRetrieval(data_dir=folder)
    data.setup("test")

    expected: dict[str, list[tuple[list[int], int, int]]] = {
        "train": [],
        "validation": [],
        "test": [],
    }
    for items in SEQUENCES.values():
        for place in range(1, len(items)):
            left = len(items) - place
            part = "train" if left > 2 or len(items) < 3 else {2: "validation", 1: "test"}[left]
            bag = items[:place][::-1][:20]
            expected[part].append((bag, bag[0], items[place]))

    # Unknown items are those that training never had as a target or an input.
    targets = {target for *_, target in expected["train"]}
    inputs = {item for bag, *_ in expected["train"] for item in bag}
    lasts = {last for _, last, _ in expected["train"]}
    for part, rows in expected.items():
        known = [
            (
                [item for item in bag if item in inputs],
                last if last in lasts else None,
                target if target in targets else None,
            )
            for bag, last, target in rows
        ]
        assert sorted(rows_of(data, part), key=str) == sorted(known, key=str)  # type: ignore[arg-type]


def test_training_has_seen_no_item_of_the_other_parts(folder: Path) -> None:
    data = AmazonVideoGamesRetrieval(data_dir=folder)
    data.setup("fit")

    trained = {
        item for items in SEQUENCES.values() for item in (items if len(items) < 3 else items[:-2])
    }

    assert 16 not in trained
    for name in ("history", "last_item"):
        assert set(data.vocabularies[name].values) <= trained
    assert data.features.targets is not None
    assert set(data.features.targets.values) <= trained


def test_fewer_rows_keep_their_histories(folder: Path) -> None:
    whole, thin = (
        AmazonVideoGamesRetrieval(data_dir=folder, max_rows=rows) for rows in (None, 24)
    )
    for data in (whole, thin):
        data.setup("fit")

    assert sum(thin.sizes.values()) == pytest.approx(24, abs=2)
    for row in rows_of(thin, "train"):
        assert row in rows_of(whole, "train")


def test_validation_is_in_random_order(tmp_path: Path) -> None:
    users = np.repeat(np.arange(200), 4)
    frame = pd.DataFrame({"user": users, "item": users % 40, "position": np.tile(range(4), 200)})
    frame.to_parquet(tmp_path / "amazon_video_games_sequences.parquet")
    data = AmazonVideoGamesRetrieval(data_dir=tmp_path)
    data.setup("fit")

    label = torch.cat([batch["label"] for batch in data.val_dataloader()])

    assert len(label) == 200
    assert not torch.equal(label, label.view(5, 40)[0].repeat(5))
