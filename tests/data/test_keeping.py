from __future__ import annotations

from dataclasses import replace
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pytest

from optuna_nis.data import Features, Vocabulary, keeping
from optuna_nis.data.keeping import (
    FEATURES_FILE,
    drop_unused,
    fingerprint,
    load_features,
    pack_features,
    save_features,
    unpack_features,
)
from optuna_nis.data.vocabulary_file import read_packed, write_packed


@pytest.fixture(autouse=True)
def _large_from_four_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "_LARGE", 3)
    monkeypatch.setattr("optuna_nis.data.values._FEW", 3)


def _vocabulary(*values: Any) -> Vocabulary:
    return Vocabulary(values, range(len(values), 0, -1))


def _features(**changes: Any) -> Features:
    return replace(
        Features(
            task="retrieval",
            vocabularies={
                "user": _vocabulary("a", "", "b", "ü"),
                "targets": _vocabulary(1.5, -0.0, 2.0, float("inf")),
                "mixed": _vocabulary(1, "1", 2.5, b"x", "y"),
                "few": _vocabulary("x", "y"),
            },
            targets=_vocabulary(7, 8, 9, 2**62),
            separators={"user": "|"},
            na_values=("NA",),
        ),
        **changes,
    )


def _small() -> Features:
    return Features("ranking", {"user": _vocabulary("a", "b"), "item": _vocabulary(3)})


def test_large_vocabularies_go_into_a_file(tmp_path: Path) -> None:
    features = _features()

    save_features(features, tmp_path / "model")
    loaded = load_features(tmp_path / "model")

    assert loaded == features
    assert loaded.to_json() == features.to_json()
    json_file, file = sorted((tmp_path / "model").iterdir())
    assert json_file.name == FEATURES_FILE
    text = json_file.read_text()
    assert file.name in text
    assert '"x"' in text
    assert "\\u00fc" not in text


def test_small_ones_stay_what_they_were(tmp_path: Path) -> None:
    save_features(_small(), tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == [FEATURES_FILE]
    assert (tmp_path / FEATURES_FILE).read_text() == _small().to_json()
    assert load_features(tmp_path) == _small()


def test_json_of_large_ones_is_still_read(tmp_path: Path) -> None:
    (tmp_path / FEATURES_FILE).write_text(_features().to_json())

    assert load_features(tmp_path) == _features()


def test_earlier_features_are_replaced(tmp_path: Path) -> None:
    save_features(_features(), tmp_path)
    other = _features(targets=_vocabulary(5, 6, 7, 8))
    save_features(other, tmp_path)

    assert load_features(tmp_path) == other
    assert len(list(tmp_path.iterdir())) == 2
    save_features(_small(), tmp_path)
    assert load_features(tmp_path) == _small()
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("what", ["write_packed", "json", "replace"])
def test_who_is_stopped_leaves_the_earlier_features(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_features(_features(), tmp_path)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if what == "write_packed":
            patched.setattr(keeping, "write_packed", stop)
        elif what == "json":
            patched.setattr(Path, "write_text", stop)
        else:
            patched.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            save_features(_features(targets=_vocabulary(5, 6, 7, 8)), tmp_path)

    assert load_features(tmp_path) == _features()


def test_several_texts_share_a_folder(tmp_path: Path) -> None:
    first, second = _features(), _features(targets=_vocabulary(5, 6, 7, 8))
    texts = [pack_features(each, tmp_path) for each in (first, second, first)]

    assert texts[0] == texts[2]
    assert len(list(tmp_path.iterdir())) == 2
    assert unpack_features(texts[0], tmp_path) == first
    assert unpack_features(texts[1], tmp_path) == second


def test_only_files_of_vocabularies_are_dropped(tmp_path: Path) -> None:
    save_features(_small(), tmp_path)
    others = {"vocabularies-mine.parquet", "model.json"}
    for name in {*others, f"vocabularies-{'0' * 32}.parquet"}:
        (tmp_path / name).touch()

    drop_unused(tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == {FEATURES_FILE, *others}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"must hold features, but .*json' is not there"):
        load_features(tmp_path)
    save_features(_features(), tmp_path)
    next(tmp_path.glob("*.parquet")).unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold the vocabularies .*parquet' is not"):
        load_features(tmp_path)


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    save_features(_features(), tmp_path)
    file = next(tmp_path.glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-1])

    with pytest.raises(ValueError, match="is not as it was written"):
        load_features(tmp_path)


@pytest.mark.parametrize("name", ["../vocabularies-0.parquet", "/etc/passwd", None, 3])
def test_a_file_elsewhere_is_not_read(name: object, tmp_path: Path) -> None:
    data = json.loads(pack_features(_features(), tmp_path))
    for entry in (*data["vocabularies"].values(), data["targets"]):
        entry["file"] = name

    with pytest.raises(ValueError, match="is no file of vocabularies"):
        unpack_features(json.dumps(data), tmp_path)


def test_the_sizes_must_be_those_of_the_features(tmp_path: Path) -> None:
    data = json.loads(pack_features(_features(), tmp_path))
    data["vocabularies"]["user"]["size"] = 5

    with pytest.raises(ValueError, match="must hold as many values as the features say"):
        unpack_features(json.dumps(data), tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "3", '{"vocabularies": 3}', '{"vocabularies": {"user": {"version": 2}}}']
)
def test_malformed_features_are_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="features"):
        unpack_features(text, tmp_path)


def test_releases_that_know_no_files_refuse_the_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="A vocabulary must be of version 1 or 3, got 2"):
        Features.from_json(pack_features(_features(), tmp_path))


def test_the_fingerprint_is_of_all_that_features_say() -> None:
    base = _features()
    others = [
        _features(max_bag_length=3),
        _features(targets=_vocabulary(7, 8, 9, 2**61)),
        _features(targets=None, task="ranking"),
        _features(vocabularies=dict(base.vocabularies) | {"few": _vocabulary("x", "z")}),
        _features(vocabularies=dict(base.vocabularies) | {"user": _vocabulary("a", "b", "", "ü")}),
        _features(
            vocabularies=dict(base.vocabularies) | {"user": _vocabulary(b"a", b"", b"b", b"c")}
        ),
        _features(
            vocabularies=dict(base.vocabularies)
            | {"user": Vocabulary(["a", "", "b", "ü"], [4, 3, 2, 2])}
        ),
    ]

    found = [fingerprint(each) for each in (base, *others)]

    assert fingerprint(_features()) == found[0]
    assert len(set(found)) == len(found)
    assert fingerprint(_small()) == _small().to_json().encode()


def test_a_file_takes_few_bytes_for_a_value(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).permutation(2**20)[:20_000]
    vocabulary = Vocabulary([f"{number:08x}" for number in numbers], [1] * len(numbers))

    write_packed({"": vocabulary.to_table()}, tmp_path / "file")

    assert (tmp_path / "file").stat().st_size < 5 * len(numbers)


@pytest.mark.parametrize(
    "table",
    [
        pyarrow.table({"str": ["x", "x"], "count": [1, 1]}),
        pyarrow.table({"str": ["x", None], "count": [1, 1]}),
        pyarrow.table({"str": ["x"], "count": pyarrow.array([None], pyarrow.int64())}),
        pyarrow.table({"int": [1, 2, 3, 4], "count": [1, 2, 3, 4]}),
        pyarrow.table({"json": ["nonsense"], "count": [1]}),
        pyarrow.table({"json": ["[1]"], "count": [1]}),
        pyarrow.table({"json": ['["set", 1]'], "count": [1]}),
        pyarrow.table({"json": [None], "count": [1]}),
        *(
            pyarrow.table({"int": [1], "count": [1]}).replace_schema_metadata({"unknown": text})
            for text in ("[1]", "[2, 1, 0]")
        ),
    ],
)
def test_malformed_vocabularies_are_refused(table: pyarrow.Table, tmp_path: Path) -> None:
    write_packed({"": table}, tmp_path / "file")

    with pytest.raises(ValueError, match="This vocabulary is malformed"):
        Vocabulary.from_table(read_packed(tmp_path / "file")[""])


def test_rows_are_encoded_alike_after_a_round_trip(tmp_path: Path) -> None:
    features = _features()
    rows = pd.DataFrame(
        {"user": ["a|b", "ü"], "targets": [2, 0], "mixed": ["1", 3], "few": ["y", "z"]}
    )
    save_features(features, tmp_path)

    loaded = load_features(tmp_path).encode(rows)

    for name, ids in features.encode(rows).items():
        assert loaded[name].tolist() == ids.tolist()
