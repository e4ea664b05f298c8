"""Tables with numbers, weights, groups, rules for the label, and parts in files of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from optuna_nis import SearchSpace
from optuna_nis.data import Features, TableDataModule, read_table, split_rows, table
from optuna_nis.models import reference_model


def _clicks(rows: int = 200) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "C1": rng.integers(0, 9, rows),
            "C2": rng.choice(list("abc"), rows),
            "I1": rng.normal(size=rows).round(3),
            "I2": rng.integers(-5, 99, rows),
            "rating": rng.integers(1, 6, rows),
            "user": rng.choice(["ann", "bob", "cid", "dan", "eve", "flo", "gus", "hal"], rows),
            "trust": rng.choice([0.5, 1.0, 2.0], rows),
            "row": np.arange(rows),
        }
    )


def _write(frame: pd.DataFrame, path: Path) -> Path:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


def _data(path: Any, **options: Any) -> TableDataModule:
    given = {"label": "rating>=4", "features": ["C1", "C2"]}
    return TableDataModule(path, **{**given, **options})


@pytest.fixture(params=["t.csv", "t.parquet"])
def path(request: Any, tmp_path: Path) -> Path:
    return _write(_clicks(), tmp_path / request.param)


def test_all_kinds_of_columns(path: Path) -> None:
    data = _data(path, numeric=["I1", "I2"], weight="trust", group="user", features=["row"])
    data.setup("test")

    for batch in data.test_dataloader():
        ids = batch["row"].tolist()
        assert set(batch) == {"row", "numeric", "weight", "group", "label"}
        assert batch["numeric"].shape == (20, 2)
        assert ids == [data.vocabularies["row"].num_embeddings] * 20
    batch = next(iter(data.train_dataloader()))
    rows = _clicks().iloc[[data.vocabularies["row"].values[i] for i in batch["row"].tolist()]]
    assert batch["label"].tolist() == (rows["rating"] >= 4).astype(float).tolist()
    assert batch["weight"].tolist() == rows["trust"].tolist()
    pairs = set(zip(batch["group"].tolist(), rows["user"]))
    assert len(pairs) == rows["user"].nunique() == len(set(batch["group"].tolist()))
    encoded = data.encode(rows)
    assert torch.equal(encoded["numeric"], batch["numeric"])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_parts_in_files_of_their_own(kind: str, tmp_path: Path) -> None:
    frame = _clicks()
    paths = [
        _write(frame.iloc[rows], tmp_path / f"{name}.{kind}")
        for name, rows in (
            ("train", slice(0, 120)),
            ("valid", slice(120, 150)),
            ("test", slice(150, 200)),
        )
    ]
    data = _data(paths[0], valid_path=paths[1], test_path=paths[2], features=["row", "C1"])

    assert data.sizes == {"train": 120, "validation": 30, "test": 50}
    assert set(data.vocabularies["row"].values) == set(range(120))
    data = _data(paths[0], test_path=paths[2], features=["row", "C1"], seed=1)
    assert data.sizes == {"train": 107, "validation": 13, "test": 50}
    assert set(data.vocabularies["row"].values) < set(range(120))
    data = _data(paths[0], test_path=paths[2], features=["row", "C1"], time="row")
    assert set(data.vocabularies["row"].values) == set(range(107))


def test_a_ninth_is_of_the_rows_that_are_used(tmp_path: Path) -> None:
    frame = _clicks()
    frame["rating"] = frame["rating"].astype(float).mask(frame["row"] < 110)
    train = _write(frame.iloc[:150], tmp_path / "train.csv")
    test = _write(frame.iloc[150:], tmp_path / "test.csv")

    data = _data(train, test_path=test, features=["row", "C1"])
    with pytest.warns(UserWarning, match="dropped 110 of 200 rows, which have no value in the"):
        data.setup("fit")
    assert data.sizes == {"train": 36, "validation": 4, "test": 50}


@pytest.mark.parametrize("split", ["group", "leave-one-out"])
def test_splits_by_user(split: Any, path: Path) -> None:
    data = _data(path, split=split, group="user", features=["user", "row"])
    data.setup("test")
    unknown = data.vocabularies["user"].num_embeddings
    parts = [
        [user for batch in loader for user in batch["user"].tolist()]
        for loader in (data.val_dataloader(), data.test_dataloader())
    ]

    if split == "group":
        assert all(set(users) == {unknown} for users in parts)
        assert min(map(len, parts)) > 9
    else:
        assert [len(set(users)) for users in parts] == [8, 8]


@pytest.mark.filterwarnings("ignore:.*100 of 200 rows have no value in the column 'user'")
@pytest.mark.parametrize("split", ["group", "leave-one-out", "random"])
def test_rows_without_a_group_are_split_one_by_one(split: Any, tmp_path: Path) -> None:
    frame = _clicks().assign(user=lambda rows: rows["user"].where(rows["row"] % 2 == 0))
    data = _data(_write(frame, tmp_path / "t.csv"), split=split, group="user", features=["row"])
    data.setup("test")
    groups = torch.cat([batch["group"] for batch in data.test_dataloader()])
    if split == "leave-one-out":
        # A row that is alone is for training.
        assert (groups >= 0).all()
    else:
        assert 0 < int((groups == -1).sum()) < 50
        assert (groups >= -1).all()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_dates_in_the_names_of_folders_are_times(kind: str, tmp_path: Path) -> None:
    days = ["2024-01-10", "2024-01-09", "2023-12-31", "2024-02-01", "2024-01-02"]
    frame = _clicks(100)
    for place, day in enumerate(days):
        folder = tmp_path / "logs" / f"day={day}"
        folder.mkdir(parents=True)
        _write(frame[place * 20 : place * 20 + 20], folder / f"part.{kind}")
    data = _data(tmp_path / "logs", features=["row", "day"], time="day")
    data.setup("test")

    assert data.split == "chronological"
    assert data.sizes == {"train": 60, "validation": 20, "test": 20}
    trained = {int(row) // 20 for row in data.vocabularies["row"].values}
    assert {days[place] for place in trained} == {"2023-12-31", "2024-01-02", "2024-01-09"}
    known = data.vocabularies["day"]
    assert list(known.values) == [pd.Timestamp(day) for day in sorted(days)[:3]]
    # One folder alone, as new rows come, and one of a day that training has not seen.
    for day, expected in (("2023-12-31", 0), ("2024-02-01", known.num_embeddings)):
        new = read_table(tmp_path / "logs" / f"day={day}", like=data.features)
        assert data.encode(new)["day"].tolist() == [expected] * 20


def _baskets() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    items = rng.choice(list("abcdefgh"), 200)
    return pd.DataFrame(
        {
            "item": items,
            "history": ["|".join(rng.choice(list("fghij"), row % 4 + 1)) for row in range(200)],
            "bought": rng.integers(0, 2, 200),
        }
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_features_share_a_table(kind: str, tmp_path: Path) -> None:
    frame = _baskets()
    path = _write(frame, tmp_path / f"t.{kind}")
    options: dict[str, Any] = {"label": "bought", "bags": {"history": "|"}}
    data = _data(path, features=["item", "history"], share={"history": "item"}, **options)

    shared = data.vocabularies["item"]
    assert data.vocabularies["history"] == shared
    assert set(shared.values) == set("abcdefghij")
    train = frame.iloc[split_rows(200, split="random", seed=0).train]
    cells = [*train["item"], *"|".join(train["history"]).split("|")]
    assert shared.counts.tolist() == sorted(Counter(cells).values(), reverse=True)
    assert [spec.name for spec in data.embedding_specs(4)] == ["item"]
    assert "history: 10 ids in bags, with item in one table" in data.summary()
    features = Features.from_json(data.features.to_json())
    assert features == data.features
    assert features.share == {"history": "item"}
    build = reference_model(data.features)
    model = build(SearchSpace(build.specs(4)).full())
    assert len(model.embeddings.layers) == 1
    batch = next(iter(data.train_dataloader()))
    assert model(batch).shape == batch["label"].shape
    again = _data(path, features=["item", "history"], share={"history": "item"},
                  fitted=data.features, **options)  # fmt: skip
    assert again.fingerprint() == data.fingerprint()


@pytest.mark.parametrize("kind", ["pieces", "lists of text", "text", "numbers", "lists"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_numbers_are_the_same_ids_in_all_features_of_a_table(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    items = rng.integers(0, 30, 400)
    histories = [rng.integers(0, 30, rng.integers(1, 5)).tolist() for _ in range(400)]
    other: dict[str, list[Any]] = {
        "pieces": ["|".join(map(str, each)) for each in histories],
        "lists of text": [list(map(str, each)) for each in histories],
        "lists": histories,
        "numbers": [each[0] for each in histories],
        # Not all of them look like numbers.
        "text": [str(each[0]) if each[0] else "none" for each in histories],
    }
    if kind.startswith("lists") and suffix == "csv":
        pytest.skip("Text files have no lists.")
    table = pd.DataFrame({"item": items, "other": other[kind], "y": rng.integers(0, 2, 400)})
    path = tmp_path / f"rows.{suffix}"
    table.to_csv(path, index=False) if suffix == "csv" else table.to_parquet(path)
    options: dict[str, Any] = {"label": "y", "share": {"other": "item"}}
    if kind in ("pieces", "lists", "lists of text"):
        options |= {"features": ["item"], "bags": {"other": "|" if kind == "pieces" else None}}
    else:
        options |= {"features": ["item", "other"]}

    data = TableDataModule(path, **options)
    assert data.vocabularies["item"].num_embeddings == 30 + (kind == "text")
    assert not data.unseen_shares()["item"]
    batch = data.encode(read_table(path, like=data.features))
    known = data.vocabularies["item"].values
    assert [str(known[place]) for place in batch["item"]] == [str(item) for item in items]
    again = TableDataModule(path, **options, fitted=data.features)
    again.setup("fit")
    assert again.num_unknown == {"item": 0, "other": 0}


@pytest.mark.parametrize(
    ("share", "message"),
    [
        ({"history": "user"}, "`share` names 'user', which is not a feature"),
        ({"history": "item", "item": "history"}, "`share` must be from features without a table"),
    ],
)
def test_tables_that_cannot_be_shared(share: Any, message: str, tmp_path: Path) -> None:
    path = _write(_baskets(), tmp_path / "t.csv")
    data = _data(path, label="bought", features=["item"], bags={"history": "|"}, share=share)
    with pytest.raises(ValueError, match=message):
        data.setup("fit")


def test_rare_ids_are_out_of_vocabulary(path: Path) -> None:
    few = _data(path, min_count=17).vocabularies["C1"]

    assert 1 < len(few) < len(_data(path).vocabularies["C1"])
    assert few.counts.min() >= 17


def test_a_second_reading_is_from_the_cache(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "_CACHED", 0)
    options: dict[str, Any] = {"numeric": ["I1"], "cache_dir": tmp_path / "cache"}
    plain = _data(path, numeric=["I1"]).fingerprint()

    assert _data(path, **options).fingerprint() == plain
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.codes")}
    assert len(kept) == 3
    assert _data(path, **options).fingerprint() == plain
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_small_tables_are_held_in_memory(path: Path, tmp_path: Path) -> None:
    _data(path, cache_dir=tmp_path / "cache").setup("fit")

    assert not (tmp_path / "cache").exists()


def test_rows_of_one_time_are_in_one_part_beside_a_test_of_their_own(tmp_path: Path) -> None:
    frame = _clicks(400)
    days = np.repeat(np.arange(5), 80)
    train = _write(frame.assign(day=days), tmp_path / "train.csv")
    test = _write(frame[:50].assign(day=9), tmp_path / "test.csv")

    data = _data(train, test_path=test, features=["row", "C1"], time="day")
    data.setup("test")

    # A ninth of 400 rows is nearer to one day than to none.
    assert data.sizes == {"train": 320, "validation": 80, "test": 50}
    alike = _write(frame.assign(day=1), tmp_path / "alike.csv")
    with pytest.raises(ValueError, match="at least two different times for training and valid"):
        _data(alike, test_path=test, features=["row", "C1"], time="day").setup("fit")


def test_rows_of_parts_in_files_of_their_own_need_no_time(tmp_path: Path) -> None:
    frame = _clicks(300)
    frame["day"] = frame["row"].mask(frame["row"] % 10 == 0)
    train, test = _write(frame[:100], tmp_path / "0.csv"), _write(frame[200:], tmp_path / "1.csv")

    data = _data(train, test_path=test, features=["C1"], time="day")
    with pytest.warns(UserWarning, match="dropped 10 of 200 rows, which have no value in the"):
        data.setup("test")
    assert data.sizes == {"train": 80, "validation": 10, "test": 100}


def _refused(message: str, path: Path, columns: Sequence[Any] = (), **options: Any) -> None:
    frame = _clicks()
    for name, values in columns:
        frame[name] = values
    with pytest.raises(ValueError, match=message):
        _data(_write(frame, path), **options).setup("fit")


def test_bad_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    _refused("'trust' must hold weights of at least 0, got -1", path, [("trust", -1)],
             weight="trust")  # fmt: skip
    _refused("'trust' must hold a weight above 0, got only 0", path, [("trust", 0)],
             weight="trust")  # fmt: skip
    message = r"'C2' must hold numbers to be weights, got '[abc]', .*`na_values` of the search\.$"
    _refused(message, path, weight="C2")
    times = ("trust", pd.Timestamp("2024-01-31"))
    message = "'trust' must hold numbers to be weights, got times such as 2024-01-31"
    _refused(message, tmp_path / "t.parquet", [times], weight="trust")
    frame = _clicks()
    frame.loc[3, "trust"] = np.nan
    data = _data(_write(frame, path), weight="trust")
    with pytest.warns(UserWarning, match="dropped 1 of 200 rows, which have no value in the colu"):
        data.setup("fit")


def test_each_part_has_both_labels_with_a_weight(tmp_path: Path) -> None:
    frame = _clicks()
    trust = (frame["row"] < 160) | (frame["rating"] < 4)
    _refused("0 and 1 in every part, got only 0 in the .* rows with a weight of the validation",
             tmp_path / "t.csv", [("trust", trust * 1.0)], weight="trust",
             split="chronological")  # fmt: skip


def test_features_have_no_name_of_a_key_of_a_batch(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for name in ("weight", "group"):
        column = {"weight": "trust", "group": "user"}[name]
        _refused(f"`features` must not name a feature '{name}', the key of the {name}s", path,
                 [(name, [0, 1] * 100)], features=["C1", name], **{name: column})  # fmt: skip
        frame = _clicks().assign(**{name: [0, 1] * 100})
        assert name in _data(_write(frame, path), features=["C1", name]).vocabularies


def test_arguments_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    _refused('`group` must name a column for `split="group"`, got None', path, split="group")
    _refused("`test_path` must be given with `valid_path`", path, valid_path="v.csv")
    _refused("`test_path` says which rows are for the test", path, test_path="x.csv",
             split="random")  # fmt: skip
    _refused("`numeric` must not name a feature too, got 'C1'", path, numeric=["C1"])
    _refused("has no column 'price'", path, numeric=["price"])
    _refused("has no column 'stars'; it has", path, label="stars>3")
    _refused("at least three groups for its three parts, got 1", path, [("user", "ann")],
             split="group", group="user")  # fmt: skip
    _refused("`min_count` must be", path, min_count=0)


def test_parts_that_write_ids_otherwise_are_warned_of(tmp_path: Path) -> None:
    rows = pd.DataFrame({"user": [n % 5 for n in range(100)], "city": [n % 3 for n in range(100)]})
    rows["label"] = [n % 2 for n in range(100)]
    for name in ("train", "valid", "test"):
        written = rows if name == "train" else rows[::-1]
        if name == "test":
            written = rows.assign(user="u" + rows["user"].astype(str))
        written.to_csv(tmp_path / f"{name}.csv", index=False)
    files: Any = {"valid_path": tmp_path / "valid.csv", "test_path": tmp_path / "test.csv"}
    data = TableDataModule(
        tmp_path / "train.csv", label="label", features=["user", "city"], **files
    )
    with pytest.warns(UserWarning, match="'user' has no value in the test part that") as found:
        data.setup("fit")
    assert len(found) == 1


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (["!label", "!time"], ["user", "city", "tags"]),
        (["!tags", "!time"], ["user", "city", "tags"]),
        (["tags", "*", "!time"], ["tags", "user", "city"]),
        (["!city", "!time"], ["user", "tags"]),
        ([], ["tags"]),
    ],
)
def test_bags_beside_patterns(features: list[str], expected: list[str], tmp_path: Path) -> None:
    rows = pd.DataFrame({name: [n % 5 for n in range(100)] for name in ("user", "city", "time")})
    rows["tags"] = ["a|b" if n % 3 else "b" for n in range(100)]
    rows["label"] = [n % 2 for n in range(100)]
    rows.to_csv(tmp_path / "rows.csv", index=False)
    data = TableDataModule(
        tmp_path / "rows.csv", label="label", features=features, bags={"tags": "|"}
    )
    assert list(data.vocabularies) == expected


def test_a_header_that_looks_like_values_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    frame = _clicks().assign(C1=lambda rows: [f"{value:08x}" for value in rows["C1"]])
    frame[["rating", "C1", "row"]].to_csv(path, sep="\t", index=False, header=False)
    label, one, other = path.read_text().splitlines()[0].split("\t")
    data = _data(path, label=f"{label}>=4", features=[one, other])
    with pytest.warns(UserWarning, match=r"t\.tsv: The first row, .* looks like values: .*--col"):
        data.setup("fit")


@pytest.mark.parametrize("name", ["hist", "hist:token_seq"])
def test_a_sequence_of_an_atomic_file_is_a_bag_by_either_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "ml.inter"
    rows = "".join(f"u{i % 9}\t{i % 4} {i % 5}\t{i % 2}\n" for i in range(80))
    path.write_text(f"user_id:token\thist:token_seq\ty:float\n{rows}")
    data = TableDataModule(path, label="y", features=["user_id", name])
    assert data.vocabularies[name].num_embeddings == 5
    assert data.bags == {name}


def test_patterns_of_names_that_are_values(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("".join(f"{i % 2},{i % 7},{i % 5}\n" for i in range(80)))
    with pytest.raises(ValueError, match=r"which fits none\. The first row, .*--columns"):
        TableDataModule(path, label="label", features=["C*"]).setup("fit")
