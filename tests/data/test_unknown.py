"""Values that a vocabulary does not know have the same ids wherever they are read."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch

from optuna_nis.data import Features, TableDataModule, Vocabulary, keeping
from optuna_nis.data.keeping import fingerprint, load_features, save_features
from optuna_nis.data.unknown import UnknownIds, content_hashes
from optuna_nis.data.values import ArrowValues

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
WHOLE = st.integers(-(2**63), 2**63 - 1)


@settings(max_examples=25)
@given(st.lists(TEXT), st.lists(WHOLE), st.lists(st.floats(allow_nan=False)))
def test_hashes_do_not_depend_on_how_values_are_held(
    texts: list[str], numbers: list[int], floats: list[float]
) -> None:
    for values, kinds in (
        (texts, [pyarrow.string(), pyarrow.large_string()]),
        ([text.encode() for text in texts], [pyarrow.binary(), pyarrow.large_binary()]),
        (numbers, [pyarrow.int64()]),
        (floats, [pyarrow.float64()]),
    ):
        expected = content_hashes(values)
        for kind in kinds:
            found = content_hashes(pyarrow.array(values, kind))
            assert found.tolist() == expected.tolist()


def test_equal_numbers_have_equal_hashes_and_others_do_not() -> None:
    equal = [7, 7.0, Decimal("7.00"), np.float32(7).item()]
    assert len(set(content_hashes(equal).tolist())) == 1
    others = [7, "7", 7.5, Decimal("7.1"), 2**70, -7, "x", pd.Timestamp("2024-01-01"), "\ud800"]
    assert len(set(content_hashes(others).tolist())) == len(others)
    large = [2**70 + 1, Decimal(2**70 + 1)]
    assert len(set(content_hashes(large).tolist())) == 1
    moment = pd.Timestamp("2024-01-01T01:00Z")
    times = [moment, moment.tz_convert("Asia/Tokyo")]
    assert len(set(content_hashes(times).tolist())) == 1
    small = pyarrow.array([7, None], pyarrow.uint8())
    assert content_hashes(small)[0] == content_hashes([7])[0]


@pytest.mark.parametrize("size", [50, 6000])
@pytest.mark.parametrize("number", [1, 16])
def test_every_way_of_reading_gives_the_same_ids(size: int, number: int) -> None:
    known = [f"u{rank}" for rank in range(size)]
    vocabulary = Vocabulary(known, range(2 * size, size, -1), UnknownIds(20, number, 9))
    assert isinstance(vocabulary._values, ArrowValues) == (size > 5000)
    rows = ["u19", "u20", None, *(f"new{rank}" for rank in range(40)), f"u{size - 1}"]
    array = pyarrow.array(rows)

    ids = vocabulary.encode(rows)

    for found in (
        vocabulary.encode(pd.Series(rows, dtype="string[pyarrow]")),
        vocabulary.encode_arrow(array),
        vocabulary.encode_arrow(pyarrow.chunked_array([array[:5], array[5:]])),
        vocabulary.encode_arrow(array.dictionary_encode()),
    ):
        assert found.tolist() == ids.tolist()
    assert ids[[0, 1, 2, -1]].tolist() == [19, 20 + number, size + number, size + number - 1]
    new = set(ids[3:-1].tolist())
    assert new <= set(range(20, 20 + number))
    assert len(new) > number // 2
    assert vocabulary.num_embeddings == size + number == len(vocabulary.id_counts)
    assert vocabulary.decode(ids)[:5] == ["u19", "u20", None, None, None]
    assert vocabulary.knows(ids).tolist() == [row in known for row in rows]


def test_numbers_read_as_floats_are_the_same_unknown_ids() -> None:
    vocabulary = Vocabulary(range(6000), [1] * 6000, UnknownIds(6000, 256, 0))
    new = list(range(10_000, 10_050))

    ids = vocabulary.encode(new).tolist()

    assert vocabulary.encode(pd.Series([*new, None])).tolist() == [*ids, 6256]
    assert vocabulary.encode_arrow(pyarrow.array(new, pyarrow.int32())).tolist() == ids
    assert len(set(ids)) > 30


@given(st.lists(st.integers(1, 40), min_size=2, max_size=300), st.integers(1, 8))
def test_ids_stay_ranks_by_frequency(counts: list[int], min_count: int) -> None:
    ordered = np.sort(np.array(counts))[::-1].astype(np.int64)
    whole = Vocabulary(range(len(counts)), ordered)
    kept = whole.at_least(min_count)
    for oov in ("shared", "hash"):
        unknown = UnknownIds.for_values(kept.counts, ordered[len(kept) :], oov)  # type: ignore[arg-type]
        if unknown is None:
            assert len(kept) == len(whole)
            continue
        found = kept.with_unknown(unknown).id_counts
        assert (np.diff(found) <= 0).all()
        assert found.sum() == ordered.sum()
        assert unknown.number == 1 or 16 <= unknown.number < len(whole) - len(kept)


def test_a_cut_leaves_predictions_as_they_are() -> None:
    vocabulary = Vocabulary("abcdef", [9, 8, 7, 6, 5, 4], UnknownIds(2, 2, 13))
    rows = ["a", "c", "f", "new", "newer", None]
    before = vocabulary.encode(rows)
    for size in range(1, 9):
        cut = vocabulary.cut(size)
        ids = cut.encode(rows)
        # What has a row keeps its id; nothing else gets one.
        assert ids[before < size].tolist() == before[before < size].tolist()
        assert (ids[before >= size] >= size).all()
        assert len(cut) == (size if size <= 2 else 6)
    assert Vocabulary("ab", [2, 1], UnknownIds(0, 1, 5)).cut(0).unknown is None


def test_unknown_ids_are_kept_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_LARGE", 50)
    frame = pd.DataFrame({"user": [7, 7, 8], "x": ["a", "b", "b"]})
    plain = Features.fit(frame, task="ranking")
    few = Features.fit(frame, task="ranking", min_count=2, oov="shared")
    assert few.vocabularies["user"].unknown == UnknownIds(1, 1, 1)
    large = Vocabulary(range(51), [1] * 51, UnknownIds(5, 16, 32))
    many = Features("ranking", {"user": large, "x": few.vocabularies["x"]})
    for features in (few, many):
        assert Features.from_json(features.to_json()) == features
        save_features(features, tmp_path)
        assert load_features(tmp_path) == features
        without = {name: v.with_unknown(None) for name, v in features.vocabularies.items()}
        assert fingerprint(Features("ranking", without)) != fingerprint(features)
    assert Features.fit(frame, task="ranking", oov="zero").to_json() == plain.to_json()
    with pytest.raises(ValueError, match="`unknown` must be three numbers of 0 or more"):
        Vocabulary.from_dict(large.cut(7).to_dict() | {"version": 3, "unknown": [1, -1, 0]})


def test_unknown_ids_that_could_not_be_trained_are_left_out() -> None:
    few = pd.DataFrame({"city": ["Rome", "Oslo"] * 4})
    found = Features.fit(few, task="ranking", oov="hash").vocabularies["city"]
    assert found.unknown is None
    many = pd.DataFrame({"user": [row // (1 + row % 7) for row in range(400)]})
    found = Features.fit(many, task="ranking", oov="hash").vocabularies["user"]
    assert found.unknown == UnknownIds(len(found), 1, 0)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_of_a_table_have_the_same_ids_everywhere(ending: str, tmp_path: Path) -> None:
    row = np.arange(900)
    frame = pd.DataFrame(
        {
            "user": np.where(row % 3, row % 7, row),
            "item": [f"i{number}" for number in row // (1 + row % 4)],
            "last": [f"i{number}" for number in row // (1 + row % 5)],
            "tags": [["x|y", "x|NA|rare" + str(number), "", "y"][number % 4] for number in row],
            "clicked": row % 2,
        }
    )
    frame.loc[5::50, "item"] = None
    write: Any = frame.to_csv if ending == "csv" else frame.to_parquet
    path = tmp_path / f"log.{ending}"
    write(path, index=False)

    def made(**options: Any) -> TableDataModule:
        return TableDataModule(
            path,
            label="clicked",
            features=["user", "item", "last"],
            bags={"tags": "|"},
            share={"last": "item"},
            na_values=["NA"],
            min_count=3,
            cache_dir=tmp_path / "cache",
            split="chronological",
            batch_size=64,
            num_workers=0,
            **options,
        )

    data, on_disk = made(oov="hash"), made(oov="hash", max_bytes=0)
    for each in (data, on_disk):
        each.setup("test")
    features = data.features
    unknown = {name: v.unknown for name, v in features.vocabularies.items()}
    assert all(found is not None and found.count > 0 for found in unknown.values())
    assert unknown["item"] == unknown["last"]
    assert on_disk.features == features
    for one, other in zip(data.test_dataloader(), on_disk.test_dataloader(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
        rows = frame.iloc[-len(one["label"]) :]
        ids = features.encode(rows.reset_index(drop=True))
        places = one["user"].sort().values
        assert torch.equal(ids["user"].sort().values, places)
    trained = torch.cat([batch["user"] for batch in data.train_dataloader()])
    first = unknown["user"]
    assert first is not None
    assert ((trained >= first.first) & (trained < first.first + first.number)).any()
    # New text beside numbers, markers in bags, and missing cells.
    new = pd.DataFrame(
        {"user": [3, "guest"], "item": [None, "new"], "last": ["i0", "new"], "tags": ["NA|x", "?"]}
    )
    ids = features.encode(new)
    known = features.vocabularies
    assert ids["item"][0] == known["item"].num_embeddings
    assert ids["item"][1] == ids["last"][1] != known["item"].num_embeddings
    assert known["tags"].decode(ids["tags"][0].tolist()) == ["x"]
    assert not known["tags"].knows(ids["tags"][1, :1].numpy()).any()
    assert ids["tags"][1, 0] < known["tags"].num_embeddings
    assert data.unseen_shares()["user"] > 0
