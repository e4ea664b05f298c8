"""Tables with known answers, and when a search has found them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import planted
from planted_tables import KINDS, PARTS, Planted, generate, memory_share, share_with_rows
import pytest

from optuna_nis import Allocation, TableAllocation, Tier

KEEPS = {
    "noise": {"user": 400, "item": 300},
    "decisive": {"decisive": 800, "shop": 20},
    "tails": {"deep": 1_000, "shallow": 50},
    "drift": {"item": 1_500, "shop": 50},
    "duplicates": {"user": 300, "item": 1_000},
    "rare": {"shop": 200},
    "two_stage": {"user": 400, "item": 300},
}


def sizes(frame: pd.DataFrame, **rows: int) -> Allocation:
    """Rows of width 4 for the most frequent ids, of the other features none."""
    counts = frame[frame["split"] == 0].drop(columns=["label", "split"]).nunique()
    return Allocation(
        TableAllocation(str(name), int(num), 32, (Tier(min(kept, int(num)), 4),) if kept else ())
        for name, num in counts.items()
        for kept in [rows.get(str(name), 0)]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_planted_is_found(kind: str) -> None:
    table = generate(kind, 0)

    assert table.frame["split"].value_counts().to_dict() == dict(enumerate(PARTS))
    assert set(table.frame.groupby("split")["label"].nunique()) == {2}
    assert table.found(sizes(table.frame, **KEEPS[kind]))
    everything = sizes(table.frame, **dict.fromkeys(table.features, 10_000))
    if kind in ("noise", "tails", "duplicates", "rare"):
        assert not table.found(everything)
    if kind in ("decisive", "tails", "drift", "duplicates", "rare"):
        assert not table.found(sizes(table.frame))


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_is_a_table(kind: str) -> None:
    one, same, other = (generate(kind, seed).frame for seed in (0, 0, 1))

    pd.testing.assert_frame_equal(one, same)
    assert not one.equals(other)


def test_what_is_half_right_is_not_found() -> None:
    for kind, kept in (
        ("tails", {"deep": 50, "shallow": 50}),
        ("tails", {"deep": 1_000, "shallow": 1_000}),
        ("drift", {"item": 700}),
        ("drift", {"item": 1_500, "week": 9}),
        ("duplicates", {"item": 500, "item_code": 500}),
        ("rare", {"shop": 200, "noise": 200}),
        ("rare", {"shop": 60}),
        ("decisive", {"decisive": 400, "shop": 1_500}),
    ):
        table = generate(kind, 0)
        assert not table.found(sizes(table.frame, **kept)), (kind, kept)


def test_a_copy_has_the_same_ids_under_other_numbers() -> None:
    frame = generate("duplicates", 0).frame
    assert (frame.groupby("item")["item_code"].nunique() == 1).all()
    assert (frame.groupby("item_code")["item"].nunique() == 1).all()
    assert (frame["item"] != frame["item_code"]).any()


def test_rare_positives_and_weeks_to_come() -> None:
    assert 0.01 < generate("rare", 0).frame["label"].mean() < 0.03
    frame = generate("drift", 0).frame
    weeks = [set(frame["week"][frame["split"] == part]) for part in range(3)]
    assert weeks == [set(range(9)), {9}, {10}]


def test_shares() -> None:
    frame = pd.DataFrame({"a": [5, 5, 5, 7, 7, 9, 9, 9, 7], "split": [0] * 6 + [2] * 3})
    found = Allocation([TableAllocation("a", 3, 8, (Tier(2, 8),))])

    assert share_with_rows(found, frame, "a") == pytest.approx(5 / 6)
    assert share_with_rows(found, frame, "a", after=1) == pytest.approx(2 / 3)
    assert share_with_rows(found, frame, "a", part=2) == pytest.approx(1 / 3)
    assert memory_share(found, "a") == 1.0


def test_trained_sizes_must_do_as_well_as_their_rivals() -> None:
    frame = pd.DataFrame({"a": np.arange(4), "label": [0, 1] * 2, "split": 0})
    table = Planted(frame, 0.25, lambda each: True, trained=True)
    found = Allocation([TableAllocation("a", 4, 8, (Tier(4, 2),))])

    assert planted.is_found(table, found, {"nis": 0.950, "uniform": 0.954})
    assert not planted.is_found(table, found, {"nis": 0.950, "uniform": 0.93, "full": 0.956})


def test_later_runs_are_added(tmp_path: Path) -> None:
    output = tmp_path / "planted.json"
    for kind, seed, found in (("noise", 0, False), ("noise", 1, True), ("noise", 0, True)):
        planted.save([{"kind": kind, "seed": seed, "found": found}], output)

    assert json.loads(output.read_text())["kinds"] == {"noise": {"found": 2, "seeds": 2}}
