from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import torch

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.data import TableDataModule, load_dataset
from optuna_nis.data.config import DataConfig
from optuna_nis.data.of_study import read_data, save_data, searched_features
from optuna_nis.study.attributes import read_text
from optuna_nis.study.keys import VOCABULARY_ATTR
from optuna_nis.study.settings import save_space


def test_data_config() -> None:
    config = DataConfig(table="a.csv", label="y", features=("a", "b"), bags={"c": "|"})
    assert DataConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match=r"Either `dataset` or `table` must be given, got"):
        DataConfig()
    with pytest.raises(ValueError, match=r"`label` must name .* got None"):
        DataConfig(table="a.csv")
    with pytest.raises(
        ValueError, match=r"`data_dir` is for a data set by name, got '/data'.*--data-dir"
    ):
        DataConfig(table="a.csv", label="y", data_dir="/data")
    with pytest.raises(ValueError, match="malformed"):
        DataConfig.from_json("{}")


def test_data_config_of_an_earlier_version() -> None:
    text = (
        '{"dataset": "flights", "table": null, "task": "retrieval", "label": null, '
        '"features": [], "bags": {}, "time": null, "split": null, "seed": 3, "max_rows": 500}'
    )
    assert DataConfig.from_json(text) == DataConfig(
        dataset="flights", task="retrieval", seed=3, max_rows=500
    )


def test_how_a_table_is_read_is_kept() -> None:
    config = DataConfig(
        table="a.csv",
        label="y",
        time="t",
        time_format="%d/%m/%Y",
        bags={"c": None},
        na_values=("NA", "-1"),
        max_bag_length=9,
        bag_keep="first",
    )
    given = DataConfig(table="a.csv", label="y", split_column="part")
    assert DataConfig.from_json(given.to_json()) == given
    with pytest.raises(
        ValueError, match="`split_column` is for a table, got 'part' with the data"
    ):
        DataConfig(dataset="flights", split_column="part")
    assert DataConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match=r"`na_values` is for a table, got \['NA'\].*--na-values"):
        DataConfig(dataset="flights", na_values=("NA",))
    for name, value in (
        ("label", "y"),
        ("time", "t"),
        ("time_format", "%Y"),
        ("bags", {"c": "|"}),
    ):
        with pytest.raises(ValueError, match=f"`{name}` is for a table, got .* with the data set"):
            DataConfig(dataset="flights", **{name: value})


def test_a_study_of_other_features_is_told_so() -> None:
    study = optuna.create_study(study_name="own", direction="maximize")
    save_space(study, SearchSpace([EmbeddingSpec("shop", 100, 8)]))
    data = DataConfig(dataset="flights", max_rows=500)
    with pytest.raises(ValueError, match=r"'own' holds the .* other features than flights .*shop"):
        read_data(study, data, withhold_test=True, progress=lambda _: None)


def test_rare_ids_were_there_at_the_search(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = pd.DataFrame({"user": [*range(40), *[7] * 80, *[8] * 80], "label": [0, 1] * 100})
    rows.to_csv(tmp_path / "rows.csv", index=False)
    table = str(tmp_path / "rows.csv")
    data = DataConfig(table=table, label="label", features=("user",), min_count=3)
    study = optuna.create_study(direction="maximize")
    found = data.datamodule(withhold_test=False)
    save_data(study, data, found)
    save_space(study, SearchSpace(found.embedding_specs(4)))
    read: Any = {"withhold_test": False, "progress": lambda text: None}
    read_data(study, data, **read)
    assert "not there at the search" not in caplog.text
    rows.replace({"user": {7: 99}}).to_csv(table, index=False)
    read_data(study, data, **read)
    known = found.vocabularies["user"]
    new = dict(zip(known.values, known.counts))[7]
    assert f"not there at the search. They count as unknown: 'user' in {new}" in caplog.text


@pytest.mark.parametrize(("bags", "told"), [({"tags": "|"}, False), ({}, True)])
def test_what_is_of_bags_is_told_where_there_are_none(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    bags: dict[str, str | None],
    told: bool,
) -> None:
    table = tmp_path / "rows.csv"
    pd.DataFrame({"tags": ["a|b", "b"] * 30, "label": [0, 0, 1] * 20}).to_csv(table, index=False)
    data = DataConfig(
        table=str(table),
        label="label",
        features=("tags",),
        bags=bags,
        max_bag_length=1,
        bag_keep="first",
    )
    data.datamodule(withhold_test=False)
    for name in ("max_bag_length", "bag_keep"):
        assert (f"`{name}` has no effect: no feature is a bag." in caplog.text) == told


def test_bags_of_an_earlier_study_keep_the_first_values() -> None:
    for bags, keep in (({"b": "|"}, "first"), ({}, None)):
        config = DataConfig(table="a.csv", label="y", features=("a",), bags=bags)
        old = json.loads(config.to_json())
        del old["bag_keep"], old["max_bag_length"], old["na_values"], old["time_format"]
        assert DataConfig.from_json(json.dumps(old)).bag_keep == keep


def test_batch_size() -> None:
    chosen, default = (
        DataConfig(dataset="flights", max_rows=2_000, batch_size=size).datamodule(
            withhold_test=True
        )
        for size in (500, None)
    )
    assert chosen.batch_size == 500
    assert default.batch_size == 64
    with pytest.raises(ValueError, match="`batch_size` must be an integer of at least 1, got 0"):
        DataConfig(dataset="flights", batch_size=0)


@pytest.mark.parametrize("task", ["ranking", "retrieval"])
def test_a_data_set_by_name_has_the_batches_of_the_command(task: Any) -> None:
    study = optuna.create_study(direction="maximize")
    config = DataConfig(dataset="movielens-small", task=task, max_rows=20_000)

    found = load_dataset("movielens-small", task, max_rows=20_000)
    of_command = read_data(study, config, withhold_test=True, progress=lambda _: None)

    loaders = found.train_dataloader(), of_command.train_dataloader()
    for _ in range(2):
        batches, others = map(list, loaders)
        assert len(batches) == len(others) == found.sizes["train"] // 256
        for batch, other in zip(batches, others):
            assert batch.keys() == other.keys()
            assert all(torch.equal(ids, other[name]) for name, ids in batch.items())


def test_all_that_is_of_tables_is_kept() -> None:
    config = DataConfig(
        table=("a.csv", "b.csv"), valid="v.csv", test=("t.csv", "u.csv"), label="stars>=4",
        features=("C*",), numeric=("I*",), weight="w", group="user", columns=("stars", "C1"),
        separator=";", min_count=3, share={"history": "item"},
    )  # fmt: skip
    assert DataConfig.from_json(config.to_json()) == config
    assert config.name == "a.csv and 1 more"
    for name, value in (("numeric", ("I1",)), ("weight", "w"), ("columns", ("a",)), ("test", "t")):
        option = name.replace("_", "-")
        with pytest.raises(ValueError, match=f"`{name}` is for a table, got .*`--{option}` goes"):
            DataConfig(dataset="flights", **{name: value})  # type: ignore[arg-type]


@pytest.fixture
def searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[optuna.Study, DataConfig, Path]:
    """A study on a table with more values than a database should hold."""
    monkeypatch.setattr("optuna_nis.data.keeping._LARGE", 5)
    frame = pd.DataFrame({"user": [f"u{row % 19}" for row in range(100)], "y": [0, 1] * 50})
    frame.to_csv(tmp_path / "t.csv", index=False)
    config = DataConfig(table=str(tmp_path / "t.csv"), label="y", features=("user",))
    study = optuna.create_study(direction="maximize")
    data = config.datamodule(withhold_test=True)
    save_data(study, config, data, tmp_path / "cache")
    return study, config, tmp_path / "cache"


def _read(study: optuna.Study, config: DataConfig, cache: Path) -> Any:
    return read_data(study, config, withhold_test=True, progress=lambda _: None, cache_dir=cache)


def test_many_values_are_kept_beside_the_study(
    searched: tuple[optuna.Study, DataConfig, Path],
) -> None:
    study, config, cache = searched
    features = config.datamodule(withhold_test=True).features

    assert searched_features(study, cache) == features
    assert "u7" not in read_text(study, VOCABULARY_ATTR)
    (file,) = cache.glob("vocabularies-*.parquet")
    file.unlink()
    # The same data have the same values.
    assert _read(study, config, cache).features == features


def test_values_that_are_lost_and_others_are_told(
    searched: tuple[optuna.Study, DataConfig, Path],
) -> None:
    study, config, cache = searched
    for file in cache.iterdir():
        file.unlink()
    path = Path(str(config.table))
    path.write_text(path.read_text().replace("u3", "v3"))

    with pytest.raises(ValueError, match="was searched with are gone, and those of the data"):
        _read(study, config, cache)


def test_a_table_that_is_gone_is_told_as_that_of_the_study(
    searched: tuple[optuna.Study, DataConfig, Path],
) -> None:
    study, config, cache = searched
    Path(str(config.table)).unlink()
    message = f"`study` {study.study_name!r} was searched on is not where it was: .*t.csv"
    with pytest.raises(FileNotFoundError, match=message):
        _read(study, config, cache)
    with pytest.raises(FileNotFoundError, match=r"^(?!The table that)"):
        _read(optuna.create_study(), config, cache)


def test_data_config_of_a_named_data_set() -> None:
    config = DataConfig(dataset="flights", features=("dest", "hour"), max_rows=500)
    assert set(config.datamodule(withhold_test=True).vocabularies) == {"dest", "hour"}
    config = DataConfig(dataset="movielens-1m", data_dir="/nowhere")
    assert DataConfig.from_json(config.to_json()) == config
    with pytest.raises(FileNotFoundError, match=r"movielens_1m_ratings\.parquet' is not there"):
        config.datamodule(withhold_test=True)


@pytest.mark.parametrize("bags", [{"history"}, ["history"], "history:|"])
def test_bags_say_how_their_values_are_written(bags: Any) -> None:
    message = "`bags` must map each column to the text between two values"
    with pytest.raises(ValueError, match=message):
        DataConfig(table="clicks.csv", label="clicked", bags=bags)
    with pytest.raises(ValueError, match=message):
        TableDataModule("clicks.csv", label="clicked", bags=bags)
