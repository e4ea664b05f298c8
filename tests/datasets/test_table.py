from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import numpy as np
import pandas as pd
import pytest
import torch

from optuna_nis.datasets import UNSEEN_TARGET, Features, TableDataModule, read_table

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
@pytest.mark.filterwarnings("ignore:Could not infer format")
def test_other_times_are_refused(values: list[Any], message: str, tmp_path: Path) -> None:
    data = table(write(clicks().assign(when=values), tmp_path), time="when")

    with pytest.raises(ValueError, match=message):
        data.setup("fit")


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
    assert next(iter(data.train_dataloader()))["genres"].shape == (80, 2)


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
        ({"time": "when", "split": "random"}, '`time` is for `split="chronological"`'),
        ({"task": "sorting"}, '`task` must be "ranking"'),
        ({"max_bag_length": 0}, "`max_bag_length` must be at least 1"),
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
        ({}, {"bags": {"tags": "|"}}, "no column 'tags'; it has"),
        ({}, {"bags": {"genres": ";"}}, r"`bags\['genres'\]` .* got ';', which no cell contains"),
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
