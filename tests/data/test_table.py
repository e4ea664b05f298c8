from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet
import pytest
import torch

from optuna_nis.data import (
    UNSEEN_TARGET,
    Features,
    TableDataModule,
    Vocabulary,
    column_names,
    read_table,
)

FEATURES = ["user", "city"]
BAGS = {"genres": "|"}


def clicks(num_rows: int = 100) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "user": np.arange(num_rows),
            "city": rng.choice(["Rome", "Oslo", None], num_rows),
            "genres": rng.choice(["War", "War|Drama", None, "Noir|War|Drama"], num_rows),
            "when": [f"2013-01-01 {row // 60:02}:{row % 60:02}" for row in range(num_rows)],
            "clicked": rng.permutation(np.arange(num_rows) % 2),
        }
    )


def write(frame: pd.DataFrame, folder: Path, name: str = "clicks.csv") -> Path:
    path = folder / name
    if path.suffix in (".parquet", ".pq"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
    return path


def table(path: Path, **options: Any) -> TableDataModule:
    options = {"label": "clicked", "features": FEATURES, "bags": BAGS, **options}
    return TableDataModule(path, **options)


NAMES = ["clicks.csv", "clicks.CSV.gz", "clicks.tsv", "clicks.tsv.gz", "clicks.parquet", "c.pq"]


@pytest.mark.parametrize("name", NAMES)
def test_every_file_type_gives_the_same_data(name: str, tmp_path: Path) -> None:
    if name.endswith("gz"):
        path = tmp_path / name
        sep = "\t" if "tsv" in name else ","
        clicks().to_csv(path, index=False, sep=sep, compression="gzip")
    else:
        path = write(clicks(), tmp_path, name)
    data, plain = table(path), table(write(clicks(), tmp_path, "plain.csv"))
    for each in (data, plain):
        each.setup("test")

    assert data.features == plain.features
    for one, other in zip(data.test_dataloader(), plain.test_dataloader()):
        assert all(torch.equal(one[key], other[key]) for key in other)


def test_batches(tmp_path: Path) -> None:
    data = table(write(clicks(), tmp_path), batch_size=16)
    data.setup("fit")

    batch = next(iter(data.train_dataloader()))

    assert {name: tuple(each.shape) for name, each in batch.items()} == {
        "user": (16,),
        "city": (16,),
        "genres": (16, 3),
        "label": (16,),
    }
    assert data.bags == {"genres"}
    assert data.vocabularies["genres"].values[0] == "War"
    assert data.vocabularies["city"].num_embeddings == 2


def test_vocabularies_come_from_training_alone(tmp_path: Path) -> None:
    data = table(write(clicks(), tmp_path))
    data.setup("test")

    unknown = data.vocabularies["user"].num_embeddings
    assert unknown == 80
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert next(iter(loader))["user"].tolist() == [unknown] * 10


def times() -> dict[str, Any]:
    shuffled = np.random.default_rng(1).permutation(100)
    return {
        "number": shuffled.astype(float),
        "text": [f"2013-01-01 {value // 60:02}:{value % 60:02}" for value in shuffled],
        "zoned": [f"2013-01-01 {value // 60:02}:{value % 60:02}+02:00" for value in shuffled],
        "date": [date.fromordinal(735000 + int(value)) for value in shuffled],
        "datetime": pd.Timestamp("2013-01-01") + pd.to_timedelta(shuffled, unit="h"),
    }


@pytest.mark.parametrize("kind", ["number", "text", "zoned", "date", "datetime"])
@pytest.mark.parametrize("name", ["clicks.csv", "clicks.parquet"])
def test_time_makes_the_split_chronological(kind: str, name: str, tmp_path: Path) -> None:
    rank = np.random.default_rng(1).permutation(100)
    frame = clicks().assign(user=rank, when=times()[kind])
    data = table(write(frame, tmp_path, name), time="when")

    data.setup("fit")

    assert data.split == "chronological"
    assert set(data.vocabularies["user"].values) == set(range(80))


def test_chronological_without_time_follows_the_file(tmp_path: Path) -> None:
    data = table(write(clicks(), tmp_path), split="chronological")

    data.setup("fit")

    assert set(data.vocabularies["user"].values) == set(range(80))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([f"day {row}" for row in range(100)], "'when' must hold numbers or dates"),
        ([True, False] * 50, "'when' must hold numbers or dates .* false and true"),
    ],
)
def test_other_times_are_refused(values: list[Any], message: str, tmp_path: Path) -> None:
    data = table(write(clicks().assign(when=values), tmp_path), time="when")

    with pytest.raises(ValueError, match=message):
        data.setup("fit")


GIVEN = [[0, 1, 2], ["train", "validation", "test"], [" TRAIN", "val", "Test"], [0.0, 1.0, 2.0]]


@pytest.mark.parametrize("values", GIVEN, ids=str)
@pytest.mark.parametrize("name", ["clicks.csv", "clicks.parquet"])
def test_a_split_of_ones_own(name: str, values: list[Any], tmp_path: Path) -> None:
    places = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [60, 30, 10]))
    frame = clicks().assign(part=[values[place] for place in places])
    data = table(write(frame, tmp_path, name), split_column="part")
    other = table(write(frame, tmp_path, name), split_column="part", seed=1)

    for each in (data, other):
        each.setup("test")

    assert data.split == "given"
    assert data.sizes == {"train": 60, "validation": 30, "test": 10}
    assert set(data.vocabularies["user"].values) == set(np.flatnonzero(places == 0))
    test = next(iter(data.test_dataloader()))
    assert test["label"].tolist() == frame["clicked"][places == 2].tolist()
    assert other.vocabularies == data.vocabularies


@pytest.mark.parametrize("name", ["clicks.csv", "clicks.parquet"])
def test_rows_without_a_part_are_dropped(name: str, tmp_path: Path) -> None:
    parts = pd.array([None, None, *range(3), *[0, 1, 2] * 31, 2, 2], dtype="Int64")
    frame = clicks().assign(part=parts)
    frame["clicked"] = frame["clicked"].astype("Int64").where(frame["user"] > 0)
    data = table(write(frame, tmp_path, name), split_column="part")

    with (
        pytest.warns(UserWarning, match="dropped 1 of 100 rows, .* the column 'clicked'"),
        pytest.warns(UserWarning, match="dropped 1 of 100 rows, .* the column 'part'"),
    ):
        data.setup("fit")

    assert data.sizes == {"train": 32, "validation": 32, "test": 34}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([0, 1, 2, 3], "'part' must hold 0, 1 and 2, or train, validation and test, .* got 3"),
        (["train", "dev"], "'part' must hold 0, 1 and 2, .* got 'dev'"),
        ([0, 1], "must give rows to every part, got none for test"),
    ],
)
def test_other_parts_are_refused(parts: list[Any], message: str, tmp_path: Path) -> None:
    frame = clicks().assign(part=(parts * 100)[:100])

    with pytest.raises(ValueError, match=message):
        table(write(frame, tmp_path), split_column="part").setup("fit")


@pytest.mark.parametrize("name", ["clicks.csv", "clicks.parquet"])
def test_rows_without_time_are_dropped(name: str, tmp_path: Path) -> None:
    frame = clicks().assign(when=pd.array([None, None, *range(98)], dtype="Int64"))
    data = table(write(frame, tmp_path, name), time="when")

    with pytest.warns(UserWarning, match="dropped 2 of 100 rows, .* the column 'when'"):
        data.setup("fit")

    assert sum(data.sizes.values()) == 98


def test_rows_without_label_are_dropped(tmp_path: Path) -> None:
    frame = clicks()
    frame["clicked"] = frame["clicked"].astype("Int64").where(frame["user"] % 10 > 0)
    data = table(write(frame, tmp_path))

    with pytest.warns(UserWarning, match="dropped 10 of 100 rows, .* the column 'clicked'"):
        data.setup("fit")

    assert sum(data.sizes.values()) == 90


@pytest.mark.filterwarnings("ignore:.*dropped 100 of 100 rows")
def test_no_label_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'clicks.csv' has no row left to use"):
        table(write(clicks().assign(clicked=None), tmp_path)).setup("fit")


@pytest.mark.parametrize(
    "labels",
    [[True, False], ["yes", "no"], ["True", "FALSE "], [1.0, 0.0], ["1", "0"]],
    ids=str,
)
@pytest.mark.parametrize("name", ["clicks.csv", "clicks.parquet"])
def test_labels_of_two_values(labels: list[Any], name: str, tmp_path: Path) -> None:
    frame = clicks()
    yes, no = labels
    data = table(
        write(frame.assign(clicked=[yes if each else no for each in frame["clicked"]]), tmp_path),
        batch_size=100,
    )
    data.setup("fit")

    batch = next(iter(data.train_dataloader()))

    users = data.vocabularies["user"].decode(batch["user"].tolist())
    assert batch["label"].tolist() == frame["clicked"][users].tolist()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3, 4, 5], "'clicked' must hold 0 and 1 only .*, got 1, 2, 3, 4, 5"),
        ([1, 2], "must hold 0 and 1 only"),
        (["good", "bad"], "must hold 0 and 1 only .*, got 'good', 'bad'"),
        ([1], "must hold two classes, got only 1"),
        ([False], "must hold two classes, got only False"),
    ],
)
def test_other_labels_are_refused(labels: list[Any], message: str, tmp_path: Path) -> None:
    frame = clicks().assign(clicked=(labels * 100)[:100])

    with pytest.raises(ValueError, match=message):
        table(write(frame, tmp_path)).setup("fit")


@pytest.mark.parametrize(("start", "part"), [(80, "validation"), (0, "training")])
def test_one_class_in_a_part_is_refused(start: int, part: str, tmp_path: Path) -> None:
    frame = clicks()
    frame.loc[start : start + (9 if start else 79), "clicked"] = 1
    data = table(write(frame, tmp_path), split="chronological")

    with pytest.raises(ValueError, match=f"got only 1 in the .* rows of the {part} part"):
        data.setup("fit")


def test_retrieval(tmp_path: Path) -> None:
    frame = clicks()
    frame["genres"] = frame["genres"].fillna("War")
    frame.loc[[85, 99], "city"] = "Lima"
    data = TableDataModule(
        write(frame.dropna(), tmp_path),
        label="city",
        features=["user", "clicked"],
        bags=BAGS,
        task="retrieval",
        split="chronological",
    )
    data.setup("test")

    assert data.num_classes == 2
    assert UNSEEN_TARGET in next(iter(data.test_dataloader()))["label"].tolist()


def test_list_cells_of_parquet(tmp_path: Path) -> None:
    frame = clicks().assign(genres=[[1, 2], [], None, [3, None]] * 25)
    data = table(write(frame, tmp_path, "clicks.parquet"), bags={"genres": None})

    data.setup("fit")

    assert set(data.vocabularies["genres"].values) == {1, 2, 3}
    assert next(iter(data.train_dataloader()))["genres"].shape == (64, 2)


def test_an_empty_text_is_no_item_of_a_bag(tmp_path: Path) -> None:
    lists = [["a", ""], ["", "b", "a"], [""], []] * 25
    frame = clicks().assign(genres=lists)
    texts = frame.assign(genres=["|".join(each) for each in lists])
    parts = []
    for data in (
        table(write(frame, tmp_path, "clicks.parquet"), bags={"genres": None}),
        table(write(texts, tmp_path, "clicks.csv")),
    ):
        data.setup("fit")
        assert data.vocabularies["genres"].values == ("a", "b")
        parts.append([batch["genres"] for batch in data.train_dataloader()])
    assert all(map(torch.equal, *parts))


@pytest.mark.parametrize("name", ["ids.csv", "ids.parquet"])
def test_large_ids_beside_missing_values_stay_exact(name: str, tmp_path: Path) -> None:
    ids = pd.array([2**60 + 1, None, 2**60 + 2], dtype="Int64")

    frame = read_table(write(pd.DataFrame({"id": ids}), tmp_path, name))

    assert frame["id"].dropna().tolist() == [2**60 + 1, 2**60 + 2]


def test_ids_of_mixed_kinds_are_one_kind(tmp_path: Path) -> None:
    path = write(pd.DataFrame({"id": [*range(500_000), "x"], "other": 1}), tmp_path)

    frame = read_table(path, ["id"])

    assert {type(value) for value in frame["id"]} == {str}


def test_an_index_is_a_column(tmp_path: Path) -> None:
    path = write(pd.DataFrame({"a": [1, 2]}, index=pd.Index([5, 6], name="b")), tmp_path, "a.pq")

    assert read_table(path)["b"].tolist() == [5, 6]


def test_features_are_enough_to_encode_new_rows(tmp_path: Path) -> None:
    data = table(write(clicks(), tmp_path), max_bag_length=2)
    data.setup("fit")
    data.path.unlink()
    new = pd.DataFrame({"user": [-1], "city": ["Oslo"], "genres": ["Drama|War|War"]})

    features = Features.from_json(data.features.to_json())

    batch = features.encode(new)
    assert batch["user"].tolist() == [80]
    assert batch["genres"].shape == (1, 2)
    assert all(torch.equal(batch[name], ids) for name, ids in data.encode(new).items())


def test_new_rows_are_read_as_the_training_rows_were(tmp_path: Path) -> None:
    frame = clicks().assign(city=lambda each: each["user"].astype(str) + "x")
    frame.loc[::2, "city"] = "12"
    data = table(write(frame, tmp_path))
    data.setup("fit")
    path = write(frame.iloc[:1], tmp_path, "new.csv")

    with pytest.raises(ValueError, match="'city' must be of the type seen in training, text"):
        data.encode(read_table(path, data.features.names))
    new = read_table(path, data.features.names, text=sorted(data.features.text))

    assert data.encode(new)["city"].tolist() == [0]


FILES = ["rows.csv", "rows.tsv", "rows.parquet"]
MARKERS = ["NA", "null", "None", "nan", "n/a"]


def write_and_read(frame: pd.DataFrame, folder: Path, **options: Any) -> dict[str, pd.DataFrame]:
    return {
        name: read_table(write(frame, folder, name), **options).reset_index(drop=True)
        for name in FILES
    }


def some_rows(*values: Any) -> pd.DataFrame:
    return pd.DataFrame({"x": [*values, None], "other": range(len(values) + 1)})


@pytest.mark.parametrize("name", FILES)
def test_only_the_empty_cell_is_missing(name: str, tmp_path: Path) -> None:
    path = write(some_rows(*MARKERS, "", " "), tmp_path, name)

    assert read_table(path)["x"].isna().tolist() == [False] * 5 + [True, False, True]
    marked = read_table(path, na_values=["NA", "null"])["x"]
    assert marked.dropna().tolist() == ["None", "nan", "n/a", " "]


@pytest.mark.parametrize("name", FILES)
def test_markers_may_be_numbers(name: str, tmp_path: Path) -> None:
    frame = some_rows().reindex(range(4))
    frame["x"] = pd.array([-1, 2, 2**60 + 1, None], dtype="Int64")

    found = read_table(write(frame, tmp_path, name), na_values=["-1"])["x"]

    assert found.isna().tolist() == [True, False, False, True]
    assert found.dropna().tolist() == [2, 2**60 + 1]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
def test_numbers_beside_a_usual_marker_are_told(name: str, tmp_path: Path) -> None:
    path = write(some_rows(1, 2, "NA"), tmp_path, name)

    with pytest.warns(UserWarning, match=r"'x' would be numbers but for 'NA', .*--na-values NA"):
        assert read_table(path)["x"].dropna().tolist() == ["1", "2", "NA"]


def test_a_marker_as_label_is_told(tmp_path: Path) -> None:
    frame = clicks().assign(clicked=lambda each: each["clicked"].astype(str))
    frame.loc[:9, "clicked"] = "NA"
    path = write(frame, tmp_path, "clicks.parquet")

    with pytest.raises(ValueError, match=r"'clicked' must hold 0 and 1 .*'NA'.*--na-values NA"):
        table(path).setup("fit")
    data = table(path, na_values=["NA"])
    with pytest.warns(UserWarning, match="dropped 10 of 100 rows"):
        data.setup("fit")
    assert data.features.na_values == ("NA",)


@pytest.mark.parametrize("name", FILES)
def test_new_rows_are_read_with_the_markers_of_the_model(name: str, tmp_path: Path) -> None:
    frame = clicks()[["city", "user", "clicked"]]
    frame["city"] = ["?", "NA", "Rome", "Oslo"] * 25
    data = table(write(frame, tmp_path), features=["city"], bags={}, na_values=["?"])
    data.setup("fit")
    assert set(data.vocabularies["city"].values) == {"NA", "Rome", "Oslo"}
    features = Features.from_json(data.features.to_json())

    new = read_table(write(frame.iloc[:4], tmp_path, name), like=features)

    assert new["city"].isna().tolist() == [True, False, False, False]
    assert data.vocabularies["city"].decode(features.encode(new)["city"].tolist()) == [
        *(None, "NA", "Rome", "Oslo")
    ]


@pytest.mark.parametrize("name", FILES)
def test_one_text_among_new_numbers(name: str, tmp_path: Path) -> None:
    train = pd.DataFrame({"user": [11, 12, 13] * 5, "item": range(15)})
    features = Features.fit(train, task="ranking")
    path = write(pd.DataFrame({"user": ["11", "12", "guest"], "item": [1, 2, 3]}), tmp_path, name)

    for new in (
        read_table(path, like=features),
        read_table(path, features.names, text=sorted(features.text)),
    ):
        assert features.encode(new)["user"].tolist() == [0, 1, 3]
    text = pd.DataFrame({"user": ["Ann", "Bob"], "item": [1, 2]})
    with pytest.raises(ValueError, match=r"'user' must be of the type .* got text such as 'A"):
        features.encode(read_table(write(text, tmp_path, name), like=features))


@pytest.mark.parametrize("name", FILES)
def test_text_among_training_numbers_makes_the_column_text(name: str, tmp_path: Path) -> None:
    train = pd.DataFrame({"user": ["11", "12", "guest"] * 5})
    features = Features.fit(read_table(write(train, tmp_path, name)), task="ranking")
    assert features.text == {"user"}

    new = read_table(write(pd.DataFrame({"user": [11, 12]}), tmp_path, name), like=features)

    assert features.encode(new)["user"].tolist() == [0, 1]


TRICKY = st.one_of(
    st.sampled_from([*MARKERS, "", "007", "7", "7.0", "True", "true", " x", "2024-01-31", "1e3"]),
    st.text(st.characters(codec="ascii", exclude_characters="\r\0"), max_size=3),
)
WHEN = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)).map(
    lambda time: time.replace(microsecond=0)
)
COLUMNS = {
    # One cell that is no number, or Parquet has text and CSV numbers; the ids are the same.
    "text": st.lists(TRICKY, min_size=11, max_size=11).map(lambda each: ["text", *each]),
    "whole": st.lists(st.integers(-(2**63), 2**63 - 1), min_size=12, max_size=12),
    "gaps": st.lists(st.one_of(st.none(), st.integers(0, 5)), min_size=12, max_size=12).map(
        lambda each: pd.array([3, *each[1:]], dtype="Int64")
    ),
    "floats": st.lists(st.floats(allow_nan=False), min_size=12, max_size=12),
    "singles": st.lists(st.floats(allow_nan=False, width=32), min_size=12, max_size=12).map(
        lambda each: pd.array(each, dtype="float32")
    ),
    "yes": st.lists(st.booleans(), min_size=12, max_size=12),
    "when": st.lists(WHEN, min_size=12, max_size=12).map(pd.to_datetime),
    "zoned": st.lists(WHEN, min_size=12, max_size=12).map(lambda e: pd.to_datetime(e, utc=True)),
    "day": st.lists(st.dates(date(1970, 1, 1), date(2100, 1, 1)), min_size=12, max_size=12),
    "clock": st.lists(st.times(), min_size=12, max_size=12),
    "money": st.lists(
        st.decimals(-1000, 1000, places=2, allow_nan=False), min_size=12, max_size=12
    ),
    "kind": st.lists(st.sampled_from("ab"), min_size=12, max_size=12).map(pd.Categorical),
    "id": st.lists(st.uuids(), min_size=12, max_size=12).map(lambda each: list(map(str, each))),
}


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8, deadline=None
)
@given(columns=st.fixed_dictionaries(COLUMNS))
@pytest.mark.filterwarnings("ignore:.*above 2\\*\\*53", "ignore:.*looks like values")
def test_the_same_rows_give_the_same_ids(columns: dict[str, Any], tmp_path: Path) -> None:
    read = write_and_read(pd.DataFrame(columns), tmp_path)

    fitted = {
        name: {column: Vocabulary.from_values(frame[column]) for column in frame}
        for name, frame in read.items()
    }
    assert fitted["rows.csv"] == fitted["rows.tsv"] == fitted["rows.parquet"]
    features = Features("ranking", fitted["rows.parquet"])
    first = features.encode(read["rows.parquet"])
    for name in FILES:
        for frame in (read[name], read_table(tmp_path / name, like=features)):
            for column, ids in features.encode(frame).items():
                assert torch.equal(ids, first[column]), (name, column)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12, deadline=None
)
@given(
    texts=st.lists(
        st.sampled_from(["7", "8", "007", "1.10", "1.1", "true", "True", "2024-01-31", ""]),
        min_size=5,
        max_size=5,
    )
)
@pytest.mark.filterwarnings("ignore:.*looks like values")
def test_text_that_looks_like_numbers_gives_the_same_ids(texts: list[str], tmp_path: Path) -> None:
    read = write_and_read(pd.DataFrame({"x": ["7", *texts], "y": "a"}), tmp_path)

    ids = [
        Vocabulary.from_values(frame["x"]).encode(frame["x"]).tolist() for frame in read.values()
    ]

    assert ids[0] == ids[1] == ids[2]
    features = Features("ranking", {"x": Vocabulary.from_values(read["rows.csv"]["x"])})
    for name in FILES:
        encoded = features.encode(read_table(tmp_path / name, like=features))["x"]
        assert encoded.tolist() == ids[0]


def test_bags_that_are_lists_or_not_say_so(tmp_path: Path) -> None:
    frame = clicks().assign(genres=[[1, 2], [3]] * 50)
    path = write(frame, tmp_path, "clicks.parquet")
    text = write(clicks(), tmp_path)
    for where, options, message in (
        (path, {"features": ["genres"], "bags": {}}, r"bags={'genres': None}`.* `--bags genres`"),
        (path, {"bags": {"genres": ","}}, r"must be None, .* are lists, .*`--bags genres`"),
        (text, {"bags": {"genres": None}}, r"got None for .*`--bags genres:'\|'`"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            table(where, **options).setup("fit")


@pytest.mark.parametrize(
    "header",
    [
        ["1", "5", "68fd1e64", ""],
        ["1", "5", "80e26c9b", "80e26c9b"],
        ["0", "ann", "7b4723c4", "Rome"],
        ["17", "user", "item", "city"],
    ],
    ids=",".join,
)
def test_a_first_row_of_values_is_told(header: list[str], tmp_path: Path) -> None:
    lines = [header, *([["0", "ann", "7b4723c4", "Rome"], ["17", "bob", "80e26c9b", "Oslo"]] * 3)]
    path = tmp_path / "train.tsv"
    path.write_text("".join("\t".join(line) + "\n" for line in lines))

    with pytest.warns(
        UserWarning, match=r"train.tsv: The first row, .* looks like values: '.*nam"
    ):
        read_table(path)
    if header[0] != "17":
        with pytest.raises(
            ValueError, match=r"no column 'label'; .* The first row, .*--columns label"
        ):
            read_table(path, ["label"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "names",
    [["label", "C1", "C2"], ["0", "1", "2"], ["", "user", "user"], ["2013", "user", "city"]],
    ids=",".join,
)
def test_a_header_is_no_row_of_values(names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_text(",".join(names) + "\n0,1,7\n1,1,2\n")

    assert len(read_table(path)) == 2


def test_a_folder_without_files(tmp_path: Path) -> None:
    folder = tmp_path / "parts.parquet"
    folder.mkdir()

    with pytest.raises(FileNotFoundError, match=r"got the folder .*parts.parquet', in which"):
        read_table(folder)


def test_names_of_columns(tmp_path: Path) -> None:
    for name in ("clicks.csv", "clicks.parquet"):
        assert column_names(write(clicks(), tmp_path, name)) == list(clicks().columns)


def test_a_fraction_of_a_second_now_and_then(tmp_path: Path) -> None:
    rank = np.random.default_rng(1).permutation(100)
    when = [f"2024-01-31 10:00:{each // 2:02}{'.500' * (each % 2)}" for each in rank]
    data = table(write(clicks().assign(user=rank, when=when), tmp_path), time="when")

    data.setup("fit")

    assert set(data.vocabularies["user"].values) == set(range(80))


@pytest.mark.parametrize("name", ["clicks.csv", "clicks.parquet"])
def test_times_in_a_format_of_their_own(name: str, tmp_path: Path) -> None:
    rank = np.random.default_rng(1).permutation(100)
    days = [date.fromordinal(735000 + 3 * int(each)) for each in rank]
    frame = clicks().assign(user=rank)
    for written in ("%d/%m/%Y", "%Y%m%d"):
        path = write(frame.assign(when=[f"{day:{written}}" for day in days]), tmp_path, name)
        data = table(path, time="when", time_format=written)
        data.setup("fit")
        assert set(data.vocabularies["user"].values) == set(range(80))
    with pytest.raises(ValueError, match=r"'when' must hold dates written as `time_format` '%H'"):
        table(path, time="when", time_format="%H").setup("fit")
    with pytest.raises(ValueError, match=r"`time_format` must be such as '%d/%m/%Y', got '%Q'"):
        table(path, time="when", time_format="%Q").setup("fit")


@pytest.mark.parametrize(
    ("days", "message"),
    [
        (["03/04/2024"], r"got '03/04/2024'. .*'%d/%m/%Y'` \(or is it %m/%d/%Y\?\)"),
        (["03/04/2024", "31/01/2024"], r"`--time-format '%d/%m/%Y'`\."),
        (["03/31/2024 10:00"], r"`--time-format '%m/%d/%Y %H:%M'`\."),
        (["10:30", "11:45"], r"written if they are dates: `time_format`, such as '%d/%m/%Y' for"),
        (["2024-01-31", "NA"], r"got 'NA'\. .*`na_values` if 'NA' means none"),
        (["2024-01-31 10:00", "2024-01-31 10:00Z"], r"all with an offset from UTC or all without"),
        (["10:30:00"], r"must hold numbers or dates .* got '10:30:00'"),
    ],
)
def test_dates_are_never_guessed(days: list[str], message: str, tmp_path: Path) -> None:
    frame = clicks().assign(when=(days * 100)[:100])

    for name in ("clicks.csv", "clicks.parquet"):
        with pytest.raises(ValueError, match=message) as caught:
            table(write(frame, tmp_path, name), time="when").setup("fit")
        assert "passing `format`" not in str(caught.value)


def test_a_day_is_in_one_part(tmp_path: Path) -> None:
    frame = clicks().assign(when=[date(2024, 1, 1 + row // 15) for row in range(100)])
    data = table(write(frame, tmp_path), time="when")

    data.setup("fit")

    assert data.sizes == {"train": 75, "validation": 15, "test": 10}
    with pytest.raises(
        ValueError, match="at least three different times for its three parts, got"
    ):
        table(write(frame.assign(when="2024-01-01"), tmp_path), time="when").setup("fit")


def write_arrow(columns: dict[str, pa.Array], folder: Path) -> Path:
    path = folder / "arrow.parquet"
    parquet.write_table(pa.table(columns), path)
    return path


UUIDS = [UUID(int=1), UUID(int=2)]


@pytest.mark.parametrize(
    ("array", "values"),
    [
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array([b"a", "ü".encode()], pa.binary()), ["a", "ü"]),
        (pa.array([b"a", b"\xff"], pa.binary()), [b"a", b"\xff"]),
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array([5, None]).dictionary_encode(), [5, None]),
        (pa.array([date(2024, 1, 31), None]), [pd.Timestamp("2024-01-31"), None]),
        (pa.array([1, 2], pa.date64()), [pd.Timestamp("1970-01-01")] * 2),
        (pa.array([time(9, 30), None]), ["09:30:00", None]),
        (pa.array([timedelta(hours=1)] * 2), ["0 days 01:00:00"] * 2),
        (pa.array([Decimal(5), Decimal(2**70)]), [5, 2**70]),
        (pa.array([Decimal("1.50"), Decimal("2.25")]), [1.5, 2.25]),
        (pa.array([2**64 - 1, None], pa.uint64()), [2**64 - 1, None]),
        (pa.array([True, None]), [True, None]),
        (pa.array([[time(9, 30)], None]), [["09:30:00"], None]),
        (pa.array([[b"a", b"b"], []]), [["a", "b"], []]),
    ],
    ids=lambda each: str(each.type) if isinstance(each, pa.Array) else "",
)
def test_types_of_parquet(array: pa.Array, values: list[Any], tmp_path: Path) -> None:
    found = read_table(write_arrow({"x": array}, tmp_path))["x"]

    for one, other in zip(found.tolist(), values, strict=True):
        if other is None:
            assert pd.isna(one)
        else:
            assert (list(one) if isinstance(other, list) else one) == other


@pytest.mark.skipif(not hasattr(pa, "uuid"), reason="pyarrow.uuid came with pyarrow 18")
def test_uuids_are_text(tmp_path: Path) -> None:
    storage = pa.array([each.bytes for each in UUIDS], pa.binary(16))
    flat = pa.ExtensionArray.from_storage(pa.uuid(), storage)
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 2], pa.int32()), flat)

    found = read_table(write_arrow({"x": flat, "bag": lists}, tmp_path))

    assert found["x"].tolist() == list(map(str, UUIDS))
    assert [list(bag) for bag in found["bag"]] == [list(map(str, UUIDS)), []]


def test_large_ids_as_floats_are_told(tmp_path: Path) -> None:
    columns = {"big": pa.array([2.0**60, None, 1.0]), "small": pa.array([1.0, 2.5, None])}

    with pytest.warns(
        UserWarning, match=r"'big' holds whole numbers above 2\*\*53 as floats"
    ) as w:
        read_table(
            write_arrow({**columns, "none": pa.array([None, None, None], pa.float64())}, tmp_path)
        )

    assert len(w) == 1


def test_ids_that_are_too_large_for_floats_of_less_precision_are_told(tmp_path: Path) -> None:
    users = pa.array([2.0**24, None, 1.0], pa.float32())
    columns = {"user": users, "item": pa.array([1.5, 2.5, 2.0**24])}

    with pytest.warns(UserWarning, match=r"'user' holds whole numbers above 2\*\*24 as floats"):
        read_table(write_arrow(columns, tmp_path))


def test_structs_are_no_ids(tmp_path: Path) -> None:
    structs = pa.array([{"a": 1}, {"a": 2}])
    lists = pa.array([[{"a": 1}], []])
    path = write_arrow({"x": structs, "y": lists, "label": pa.array([0, 1])}, tmp_path)
    frame = read_table(path)

    for bags in ({}, {"x": None}, {"x": "|"}, {"y": None}):
        names = [*bags] or ["x"]
        message = rf"'{names[0]}' holds structs, such as \{{'a': 1\}}: make columns of the fields"
        with pytest.raises(TypeError, match=message):
            Features.fit(frame[names], task="ranking", separators=bags)
        with pytest.raises(TypeError, match=message):
            TableDataModule(path, features=names, label="label", bags=bags).setup("fit")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(num_rows=st.integers(20, 60), seed=st.integers(0, 3), timed=st.booleans())
def test_parts_are_disjoint(num_rows: int, seed: int, timed: bool, tmp_path: Path) -> None:
    frame = pd.DataFrame({"row": range(num_rows), "target": 0, "when": range(num_rows, 0, -1)})
    frame.loc[::2, "target"] = 1
    data = TableDataModule(
        write(frame, tmp_path),
        label="target",
        features=["row"],
        time="when" if timed else None,
        task="retrieval",
        seed=seed,
    )
    data.setup("test")

    known = len(data.vocabularies["row"])
    assert known == data.sizes["train"]
    assert sum(data.sizes.values()) == num_rows
    for loader in (data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            assert (batch["row"] == known).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": "user,city"}, "`features` must be a list of columns, got the text"),
        ({"features": [], "bags": {}}, "`features` must name at least one column"),
        ({"features": ["user", "user"]}, "`features` names 'user' twice"),
        ({"features": ["user", "clicked"]}, "`label` must not be a feature too, got 'clicked'"),
        ({"bags": {"clicked": "|"}}, "`label` must not be a feature too"),
        ({"features": ["label"]}, "must not name a feature 'label'"),
        ({"bags": {"genres": ""}}, r"`bags\['genres'\]` must be the text between two values"),
        ({"time": "clicked"}, "`time` must not be the label too"),
        ({"weight": "clicked"}, "`weight` must not be the label too"),
        ({"group": "clicked"}, "`group` must not be the label too"),
        ({"time_format": "%d/%m/%Y"}, "`time_format` says how `time` is written, got '%d/%m"),
        ({"na_values": "NA"}, "`na_values` must be a list of texts, got 'NA'"),
        ({"bag_keep": "all"}, '`bag_keep` must be "last" or "first"'),
        ({"split_column": "city"}, "`split_column` must not be a feature or the label too, got"),
        ({"split_column": "part", "time": "when"}, "got 'when' and 'part'"),
        (
            {"split_column": "part", "split": "random"},
            "`split_column` is for `split=\"given\"`, got 'part' with 'random'",
        ),
        ({"time": "when", "split": "random"}, '`time` is for `split="chronological"`'),
        ({"time": "when", "split": "group", "group": "user"}, "'when' with \"group\""),
        (
            {"time": "when", "valid_path": "valid.csv", "test_path": "test.csv"},
            "got both 'when' and 'valid.csv'",
        ),
        ({"task": "sorting"}, '`task` must be "ranking"'),
        ({"max_bag_length": 0}, "`max_bag_length` must be an integer of at least 1"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        table(tmp_path / "clicks.csv", **options)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"features": ["user", "item"]}, "no column 'item'; it has 'user', 'city', "),
        ({}, {"label": "bought"}, "no column 'bought'; it has"),
        ({}, {"time": "ts"}, "no column 'ts'; it has"),
        ({}, {"split_column": "part"}, "no column 'part'; it has"),
        ({}, {"split": "given"}, r"takes what the data say of every row, .*\(`split_column`\)"),
        ({}, {"bags": {"tags": "|"}}, "no column 'tags'; it has"),
        (
            {},
            {"bags": {"genres": ";"}},
            r"`bags\['genres'\]` .* got ';', which stands between",
        ),
        ({"city": None}, {}, "'city' is empty: all 80 values are missing. Leave it out"),
        ({"genres": None}, {}, "'genres' is empty: all 80 bags are empty. Leave it out"),
        ({"city": "Rome"}, {}, "'city' is constant: .* are 'Rome'. Leave it out"),
    ],
)
def test_useless_columns_are_refused(
    change: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        table(write(clicks().assign(**change), tmp_path), **options).setup("fit")


def test_too_few_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 10 rows for its three parts, got 9"):
        table(write(clicks(9), tmp_path)).setup("fit")


@pytest.mark.parametrize("name", ["clicks.csv", "clicks.parquet"])
def test_no_rows(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name!r} is empty: it has no row"):
        table(write(clicks().iloc[:0], tmp_path, name)).setup("fit")


@pytest.mark.parametrize("name", ["clicks.csv", "clicks.parquet"])
def test_missing_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="`path` must be a file, got"):
        table(tmp_path / name).setup("fit")


@pytest.mark.parametrize("name", ["clicks.xlsx", "clicks", "clicks.gz"])
def test_unknown_file_type(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"`path` must end in one of \.csv, \.csv\.gz"):
        table(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.csv", b""),
        ("latin.csv", b"user,city\n1,\xff\xfe\n"),
        ("ragged.csv", b'user,city\n1,"a\n'),
        ("plain.csv.gz", b"user,city\n1,a\n"),
        ("text.parquet", b"user,city\n1,a\n"),
    ],
)
def test_unreadable_files(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)

    with pytest.raises(ValueError, match=f"{name}' cannot be read"):
        read_table(path)


def test_a_parquet_file_broken_in_the_middle(tmp_path: Path) -> None:
    path = write(clicks(), tmp_path, "clicks.parquet")
    content = bytearray(path.read_bytes())
    content[4:300] = b"\xff" * 296
    path.write_bytes(content)

    with pytest.raises(ValueError, match=r"clicks.parquet' cannot be read"):
        read_table(path)


@pytest.mark.parametrize("name", ["clicks.csv", "clicks.parquet"])
def test_a_marker_among_groups_is_the_number_that_it_spells(name: str, tmp_path: Path) -> None:
    frame = clicks().assign(group=[-1.0, 7.0] * (len(clicks()) // 2))
    with pytest.warns(UserWarning, match=f"{len(frame) // 2} of .* in the column 'group'"):
        table(write(frame, tmp_path, name), group="group", na_values=["-1"]).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"numeric": ["clicked"]}, "got 'clicked' with 'clicked' in `numeric`"),
        ({"label": "clicked==1", "numeric": ["clicked"]}, "with 'clicked' in `numeric`"),
        ({"label": "user>=3"}, "got 'user>=3' with 'user' in `features`"),
        ({"label": "genres==a"}, "got 'genres==a' with 'genres' in `features`"),
        ({"label": "clicked==1", "task": "retrieval"}, "be the column of the targets"),
    ],
)
def test_what_is_predicted_is_no_input(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write(clicks(), tmp_path)
    with pytest.raises(ValueError, match=f"`label` must .*{message}"):
        table(path, **options).setup("fit")


def test_a_file_is_of_one_part(tmp_path: Path) -> None:
    path, other = write(clicks(), tmp_path), write(clicks(), tmp_path, "other.csv")
    for valid, test in ((path, other), (other, path), (other, tmp_path / "." / "other.csv")):
        with pytest.raises(ValueError, match=r"Each file must be of one part, got '.*\.csv' in"):
            table(path, valid_path=valid, test_path=test).setup("fit")


@pytest.mark.parametrize("separator", [",", ", "])
@pytest.mark.parametrize("items", [[7, 14], ["a", "b"]])
def test_lists_as_python_prints_them_are_no_bags(
    separator: str, items: list[Any], tmp_path: Path
) -> None:
    frame = clicks()
    frame["genres"] = [str(items[: index % 3]) for index in range(len(frame))]
    with pytest.raises(
        ValueError, match=r"bag 'genres' must be values with a separator .* lists such as .\["
    ):
        table(write(frame, tmp_path), bags={"genres": separator}).setup("fit")
    # Tags may be in brackets.
    frame["genres"] = "[a]|[b]"
    data = table(write(frame, tmp_path), bags={"genres": "|"})
    data.setup("fit")
    assert set(data.vocabularies["genres"].values) == {"[a]", "[b]"}
