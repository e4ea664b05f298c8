"""The data of the quality benchmark."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import data_sets
import pytest
from small_tables import write_table

NAMES = [name for name, about in data_sets.DATA.items() if "table" in about]


@pytest.mark.parametrize("name", NAMES)
def test_tables_are_split_as_they_say(name: str, tmp_path: Path) -> None:
    frame = write_table(name, tmp_path)
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


def test_data_are_looked_for_in_every_folder(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    write_table("insteval", second)
    for name in data_sets.FILES["movielens-1m"]:
        (first / name).touch()
    config = {"data_dir": [str(first), str(second)]}

    table = data_sets.data_config("insteval", config).table
    assert table == str(second / "insteval.parquet")
    assert data_sets.data_config("movielens-1m-user-item", config).data_dir == str(first)
    assert data_sets.data_config("flights-ranking", config).data_dir is None


@pytest.mark.parametrize("name", ["complete_journey", "movielens-1m", "amazon-video-games-items"])
def test_data_that_are_in_no_folder(name: str, tmp_path: Path) -> None:
    # All files must be in the same one.
    (tmp_path / data_sets.FILES["movielens-1m"][0]).touch()
    with pytest.raises(FileNotFoundError, match=rf"`--data-dir` must name .* for '{name}'"):
        data_sets.data_config(name, {"data_dir": ["elsewhere", str(tmp_path)]})


def test_a_benchmark_says_at_once_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    data_sets.add_data_arguments(parser, ["flights-ranking"])
    args = parser.parse_args(["--data", "flights-ranking", "insteval", "--data-dir", "a", "b"])
    with pytest.raises(SystemExit):
        data_sets.check_data(parser, args.data, {"data_dir": args.data_dir})
    assert "insteval.parquet for 'insteval', there are none such in 'a', 'b'" in (
        capsys.readouterr().err
    )
