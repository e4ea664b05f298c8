from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
from pyarrow import parquet
import pytest
import torch

from optuna_nis.data import Features, TableDataModule, read_table
from optuna_nis.data.files import TableFiles
from optuna_nis.data.reading import read_batches
from optuna_nis.data.store import ColumnStore

TRAIN = pd.DataFrame(
    {
        "user": [11, 12, 13, 11],
        "zip": ["007", "10115", "02134", "007"],
        "tags": ["a|b", "a", "b", None],
        "price": [1.5, -2.0, np.nan, 3.0],
    }
)
FEATURES = Features.fit(
    TRAIN, task="ranking", separators={"tags": "|"}, numeric=["price"], na_values=["-1", "?"]
)

PLAIN, ZONED = pyarrow.timestamp("us"), pyarrow.timestamp("us", "UTC")


def _write(frame: pd.DataFrame, folder: Path, name: str) -> TableFiles:
    path = folder / name
    frame.to_parquet(path) if name.endswith("parquet") else frame.to_csv(path, index=False)
    return TableFiles(path)


@pytest.mark.parametrize("name", ["new.csv", "new.csv.gz", "new.parquet"])
@pytest.mark.parametrize("rows", [1, 3, 100])
def test_batches_are_encoded_as_the_whole_table(name: str, rows: int, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "user": ["11", "12", "guest", None, "-1", "13"],
            "zip": ["007", "7", None, "02134", "?", "10115"],
            "tags": ["b", None, "a|c", "a", "?", "b|a"],
            "price": ["2", None, "-1", "0.5", "-1", "1e3"],
        }
    )
    files = _write(frame, tmp_path, name)
    whole = FEATURES.encode(read_table(files.files[0], like=FEATURES))
    parts = [
        batch
        for found, _ in read_batches(files, FEATURES, rows=rows)
        for batch in FEATURES.encode_batches(found, rows, check=False)
    ]
    for column in ("user", "zip", "numeric"):
        np.testing.assert_array_equal(np.concatenate([b[column] for b in parts]), whole[column])
    assert max(len(batch["user"]) for batch in parts) <= rows
    assert whole["user"].tolist() == [0, 1, 3, 3, 3, 2]


def test_further_columns_are_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    rows = TRAIN.assign(day="03", note=["1.0", None, "NA", " x"])
    rows.to_csv(path, index=False)
    ((_, others),) = read_batches(TableFiles(path), FEATURES, more=["note", "day", "user"])
    assert others.schema.names == ["note", "day", "user"]
    assert others.to_pydict() == {
        "note": ["1.0", None, "NA", " x"],
        "day": ["03"] * 4,
        "user": ["11", "12", "13", "11"],
    }


def test_a_column_of_another_kind_is_refused_before_the_first_batch(tmp_path: Path) -> None:
    files = _write(TRAIN.assign(user=["u1", "u2", "u3", "u4"]), tmp_path, "new.csv")
    with pytest.raises(ValueError, match=r"'user' must be of the type .*such as 'u1'\.$"):
        read_batches(files, FEATURES, rows=1)


@pytest.mark.parametrize("users", [["guest", "anon", "x", "11"], [None, None, "11", "guest"]])
def test_rows_that_fit_may_come_late(users: list[Any], tmp_path: Path) -> None:
    files = _write(TRAIN.assign(user=users), tmp_path, "new.csv")
    found = [frame["user"].iloc[0] for frame, _ in read_batches(files, FEATURES, rows=1)]
    assert [each for each in found if each == 11] == [11]


@pytest.mark.parametrize("name", ["new.csv", "new.parquet"])
@pytest.mark.parametrize("new", [[True, False], [1, 0], [1.0, None], [None, False]])
@pytest.mark.parametrize("seen", [[True, False, True], [1, 0, 1], [1.0, 0.0, 1.0]])
def test_booleans_are_0_and_1_in_each_format(
    seen: list[Any], new: list[Any], name: str, tmp_path: Path
) -> None:
    features = Features.fit(pd.DataFrame({"flag": seen}), task="ranking")
    files = _write(pd.DataFrame({"flag": new}), tmp_path, name)
    ((frame, _),) = read_batches(files, features)
    ids = [2 if cell is None else int(not cell) for cell in new]
    assert features.encode(frame)["flag"].tolist() == ids
    assert features.encode(read_table(files.files[0], like=features))["flag"].tolist() == ids


def test_booleans_are_no_ids_among_others(tmp_path: Path) -> None:
    files = _write(TRAIN.assign(user=["true"] * 4), tmp_path, "new.csv")
    with pytest.raises(ValueError, match=r"'user' must be .* numbers such as 11, got text"):
        read_batches(files, FEATURES)
    features = Features.fit(pd.DataFrame({"user": [True, False]}), task="ranking")
    files = _write(TRAIN.assign(user=["maybe"] * 4), tmp_path, "new.csv")
    with pytest.raises(ValueError, match=r"'user' must be .* booleans such as True, got text"):
        read_batches(files, features)


@pytest.mark.parametrize("rows", [1, 2, 100])
@pytest.mark.parametrize("oov", ["zero", "hash"])
@pytest.mark.parametrize("name", ["new.csv", "new.parquet"])
def test_integers_that_have_become_floats_are_the_texts_of_training(
    name: str, oov: Any, rows: int, tmp_path: Path
) -> None:
    train = pd.DataFrame(
        {
            "user": ["guest", "5", "7", "5", "-1", *map(str, range(90, 99))],
            "version": ["2", "2.0", "3", "2", "2.0", *map(str, range(90, 99))],
            "tags": ["5|7", "guest", "7", "7", "5", *map(str, range(90, 99))],
        }
    )
    features = Features.fit(
        train, task="ranking", separators={"tags": "|"}, na_values=["?"], oov=oov, min_count=2
    )
    new = pd.DataFrame({"user": [5, None, 7, -1, 1234], "version": [2, None, 3, 2, 2]})
    files = _write(new.assign(tags=[7, None, 5, 5, 1234]), tmp_path, name)
    as_text = pd.DataFrame({"user": ["5", None, "7", "-1", "1234"]})
    as_text["tags"] = ["7", None, "5", "5", "1234"]
    # Which of the two it is the cell says, where there are both.
    both = ["2.0", None, "3", "2.0", "2.0"] if name == "new.csv" else ["2", None, "3", "2", "2"]
    found = [frame for frame, _ in read_batches(files, features, rows=rows)]
    for read in (pd.concat(found), read_table(files.files[0], like=features)):
        ids = features.encode(read)
        expected = features.encode(as_text.assign(version=read["version"]))
        assert all(torch.equal(ids[name], expected[name]) for name in as_text.columns)
        assert [None if cell is None else cell for cell in read["version"]] == both


@pytest.mark.parametrize("last", ["guest", "5.5", "8"])
def test_text_that_is_not_all_integers_as_floats_stays(last: str, tmp_path: Path) -> None:
    features = Features.fit(pd.DataFrame({"user": ["guest", "5", "8"]}), task="ranking")
    files = _write(pd.DataFrame({"user": ["5.0", None, last]}), tmp_path, "new.csv")
    read = [frame["user"].iloc[0] for frame, _ in read_batches(files, features, rows=1)]
    assert read[0] == read_table(files.files[0], like=features)["user"].iloc[0] == "5.0"
    # In lists and between points it says nothing else than it is.
    features = Features.fit(
        pd.DataFrame({"user": ["5.8", "8"]}), task="ranking", separators={"user": "."}
    )
    files = _write(pd.DataFrame({"user": ["5.0", "8.0"]}), tmp_path, "new.csv")
    ((frame, _),) = read_batches(files, features)
    assert frame["user"].tolist() == ["5.0", "8.0"]


def test_a_column_that_is_all_missing_is_fine(tmp_path: Path) -> None:
    files = _write(TRAIN.assign(user=None), tmp_path, "new.csv")
    assert sum(len(frame) for frame, _ in read_batches(files, FEATURES, rows=2)) == 4


@pytest.mark.parametrize(
    ("frame", "more", "message"),
    [
        (TRAIN.drop(columns="zip"), (), "no column 'zip'; it has 'user', 'tags', 'price'"),
        (TRAIN, ("day",), "no column 'day'"),
    ],
)
def test_a_column_that_is_missing_is_told_first(
    frame: pd.DataFrame, more: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read_batches(_write(frame, tmp_path, "new.parquet"), FEATURES, more=more)


@pytest.mark.parametrize("name", ["new.csv", "new.parquet"])
def test_no_row(name: str, tmp_path: Path) -> None:
    batches = read_batches(_write(TRAIN[:0], tmp_path, name), FEATURES)
    with pytest.raises(ValueError, match=rf"'{name}' is empty: it has no row"):
        list(batches)


def test_lists_of_another_kind_are_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"hist": [[1, 2], [3], [2]]})
    features = Features.fit(frame, task="ranking", separators={"hist": None})
    path = tmp_path / "new.parquet"
    parquet.write_table(pyarrow.table({"hist": [["a"], ["b"]]}), path)
    with pytest.raises(ValueError, match="'hist' must be of the type seen in training"):
        read_batches(TableFiles(path), features)
    parquet.write_table(pyarrow.table({"hist": [["a"], ["3", "b"]]}), path)
    assert len(list(read_batches(TableFiles(path), features, rows=1))) == 2


def test_texts_in_place_of_lists_are_refused_with_what_helps(tmp_path: Path) -> None:
    frame = pd.DataFrame({"hist": [[1, 2], [3], [2]]})
    features = Features.fit(frame, task="ranking", separators={"hist": None})
    files = _write(pd.DataFrame({"hist": ["1|2", "3"]}), tmp_path, "new.csv")
    with pytest.raises(ValueError, match=r"'hist' must be lists, as in training, got '1\|2'\."):
        read_batches(files, features)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_guessed_in_the_error(separator: str, tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    TRAIN.drop(columns="tags").to_csv(path, index=False, sep=separator)
    with pytest.raises(ValueError, match=r"has no column.*stands between its cells") as error:
        read_table(path, ["user"])
    assert f"If {separator!r} stands between" in str(error.value)
    assert read_table(path, ["user"], separator=separator)["user"].tolist() == [11, 12, 13, 11]


@pytest.mark.parametrize("cell", ["nan", "NaN", "-nan"])
def test_nan_as_text_is_a_missing_number_wherever_it_is_read(cell: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"price\n1.5\n{cell}\n2\n")
    for na_values in ([], ["?"]):
        store = ColumnStore([TableFiles(path)], None, ["price"])
        np.testing.assert_array_equal(store.numbers("price", na_values), [1.5, np.nan, 2])
    frame = TRAIN[:3].assign(price=["1.5", cell, "2"])
    numbers = FEATURES.encode(frame)["numeric"]
    assert torch.equal(numbers, FEATURES.encode(frame.assign(price=[1.5, None, 2]))["numeric"])


def test_the_row_of_what_is_no_number_is_that_of_the_table(tmp_path: Path) -> None:
    files = _write(TRAIN.assign(price=["1", "2", "3", "dear"]), tmp_path, "new.csv")
    with pytest.raises(ValueError, match=r"'price' must hold numbers.*'dear', .* of index 3\."):
        [FEATURES.encode(frame) for frame, _ in read_batches(files, FEATURES, rows=2)]


def test_libsvm(tmp_path: Path) -> None:
    (tmp_path / "rows.libsvm").write_text("1 3:1 5:1\n-1 5:1\n")
    found = read_table(tmp_path / "rows.libsvm")
    assert found["label"].tolist() == [1, -1]
    assert [list(each) for each in found["features"]] == [[3, 5], [5]]
    features = Features.fit(found[["features"]], task="ranking", separators={"features": None})
    ((frame, others),) = read_batches(
        TableFiles(tmp_path / "rows.libsvm"), features, more=["label"]
    )
    assert torch.equal(
        features.encode(frame)["features"], features.encode(found[["features"]])["features"]
    )
    assert others.to_pydict() == {"label": ["1", "-1"]}


def test_columns_by_the_names_that_a_format_gives_them(tmp_path: Path) -> None:
    path = tmp_path / "ml.inter"
    path.write_text("user_id:token\thist:token_seq\na\tb c\n")
    frame = pd.DataFrame({"user_id:token": ["a", "b"], "hist:token_seq": ["b c", "d"]})
    features = Features.fit(frame, task="ranking", separators={"hist:token_seq": " "})
    ((found, _),) = read_batches(TableFiles(path), features)
    assert found.to_dict("list") == {"user_id:token": ["a"], "hist:token_seq": ["b c"]}


def test_numbers_in_lists_beside_texts_are_texts_in_new_rows_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "item": [str(item) for item in rng.integers(0, 9, 60)],
            "history": [rng.integers(0, 9, 3).tolist() for _ in range(60)],
            "y": [0, 1] * 30,
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    data = TableDataModule(
        tmp_path / "t.parquet",
        label="y",
        features=["item"],
        bags={"history": None},
        share={"history": "item"},
    )
    data.setup("fit")
    features = data.features
    found = features.encode(read_table(tmp_path / "t.parquet", like=features))
    expected = [
        features.vocabularies["item"].encode(pd.Series([str(item) for item in bag], dtype=object))
        for bag in frame["history"]
    ]
    assert found["history"].tolist() == [ids.tolist() for ids in expected]
    assert bool((found["history"] < len(features.vocabularies["item"])).all())


@pytest.mark.parametrize("kind", [pyarrow.int64(), pyarrow.float32(), pyarrow.string()], ids=str)
@pytest.mark.parametrize("separator", ["|", None])
def test_items_of_text_are_found_in_lists_of_any_type(
    separator: str | None, kind: Any, tmp_path: Path
) -> None:
    bags = [["1", "2"], ["30"], ["2", "1", "2"]]
    cells = bags if separator is None else list(map(separator.join, bags))
    features = Features.fit(
        pd.DataFrame({"seen": cells}), task="ranking", separators={"seen": separator}
    )
    items = bags if kind == pyarrow.string() else [list(map(int, bag)) for bag in bags]
    path = tmp_path / "new.parquet"
    parquet.write_table(pyarrow.table({"seen": pyarrow.array(items, pyarrow.list_(kind))}), path)
    ((frame, _),) = read_batches(TableFiles(path), features)
    (batch,) = features.encode_batches(frame, 10, check=False)
    for same in (pd.DataFrame({"seen": cells}), read_table(path, like=features)):
        assert torch.equal(batch["seen"], features.encode(same)["seen"])


@pytest.mark.parametrize(
    "kind", [pyarrow.list_(ZONED), pyarrow.large_list(ZONED), pyarrow.list_(ZONED, 2)], ids=str
)
def test_lists_of_times_with_a_zone_are_those_of_training(kind: Any, tmp_path: Path) -> None:
    lists: list[Any] = [[10**15, 10**15], [2 * 10**15] * 2, None, [10**15, 2 * 10**15]] * 15
    if not pyarrow.types.is_fixed_size_list(kind):
        lists[:2] = [[10**15], []]
    times = pyarrow.array(lists, kind)
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"visits": times, "y": [0, 1, 0, 1] * 15}), path)
    data = TableDataModule(str(path), label="y", features=["visits"], bags={"visits": None})
    data.setup("fit")
    features = Features.fit(
        read_table(path, ["visits"]), task="ranking", separators={"visits": None}
    )
    for known in (data.features, features):
        (frame, _), *_ = read_batches(TableFiles(path), known)
        ids = known.encode(frame)["visits"]
        assert ids.tolist() == known.encode(read_table(path, like=known))["visits"].tolist()
        assert (ids[0, 0] < known.vocabularies["visits"].num_embeddings).item()


def test_times_with_a_zone_are_not_those_without(tmp_path: Path) -> None:
    path = tmp_path / "new.parquet"
    for seen, other in ((PLAIN, ZONED), (ZONED, PLAIN)):
        times = {kind: pyarrow.array([10**15, 2 * 10**15], kind) for kind in (seen, other)}
        features = Features.fit(times[seen].to_pandas().to_frame("day"), task="ranking")
        parquet.write_table(pyarrow.table({"day": times[other]}), path)
        how = "without" if seen is PLAIN else "with"
        with pytest.raises(ValueError, match=f"'day' must hold times {how} a zone as in training"):
            read_batches(TableFiles(path), features)


def test_rows_are_there_where_a_model_looks_at_no_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"user": [7, 8], "city": ["a", "b"]})
    features = replace(Features.fit(frame, task="ranking"), optional=frozenset(["user", "city"]))
    files = _write(frame, tmp_path, "new.csv")
    ((found, others),) = read_batches(files, features)
    assert len(found) == len(others) == 2
    assert features.encode(found)["user"].tolist() == [2, 2]
    assert len(read_table(tmp_path / "new.csv", like=features)) == 2
    _write(frame[:0], tmp_path, "new.csv")
    with pytest.raises(ValueError, match="is empty: it has no row"):
        read_table(tmp_path / "new.csv", like=features)


@pytest.mark.skipif(not hasattr(pyarrow, "list_view"), reason="list views came with pyarrow 16")
@pytest.mark.parametrize("large", [False, True])
def test_views_of_lists_are_lists(large: bool, tmp_path: Path) -> None:
    make = pyarrow.large_list_view if large else pyarrow.list_view
    rows = [[1, 2], [], None, [3], [2]] * 9
    path = tmp_path / "rows.parquet"
    table = {"hist": pyarrow.array(rows, make(pyarrow.int64())), "y": [0, 1, 0, 1, 1] * 9}
    parquet.write_table(pyarrow.table(table), path, row_group_size=7)
    data = TableDataModule(str(path), label="y", features=["hist"], bags={"hist": None})
    data.setup("fit")
    assert sorted(data.features.vocabularies["hist"].values) == [1, 2, 3]
    found = read_table(path, ["hist"])["hist"].tolist()
    assert [None if bag is None else list(bag) for bag in found] == rows


@pytest.mark.parametrize("views", [False, True])
def test_lists_of_lists_are_named(views: bool, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    if views and not hasattr(pyarrow, "list_view"):
        pytest.skip("list views came with pyarrow 16")
    item = pyarrow.list_view(pyarrow.int64()) if views else pyarrow.list_(pyarrow.int64())
    x = pyarrow.array([[[1], [2]]] * 9, pyarrow.list_(item))
    parquet.write_table(pyarrow.table({"x": x, "y": [0, 1, 1] * 3}), path)
    data = TableDataModule(str(path), label="y", features=["x"], bags={"x": None})
    with pytest.raises(ValueError, match=r"bag 'x' must be lists of values, got lists of lists"):
        data.setup("fit")
