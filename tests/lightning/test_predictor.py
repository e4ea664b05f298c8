from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from optuna_nis import Allocation, SearchSpace
from optuna_nis.datasets import TableDataModule
from optuna_nis.lightning import Predictor, reference_model


def _predictor(datamodule: TableDataModule, embedding_dim: int = 4) -> Predictor:
    full: Allocation = SearchSpace(datamodule.embedding_specs(embedding_dim)).full()
    return Predictor(reference_model(datamodule.features)(full), full, datamodule.features)


def test_a_folder_says_which_training_it_holds(
    datamodule: TableDataModule, tmp_path: Path
) -> None:
    assert Predictor.training_of(tmp_path) is None
    predictor = _predictor(datamodule)
    predictor.save(tmp_path)
    assert Predictor.training_of(tmp_path) is None
    predictor.save(tmp_path, training="one")
    assert Predictor.training_of(tmp_path) == "one"
    (tmp_path / "model.json").write_text("no JSON")
    assert Predictor.training_of(tmp_path) is None
    (tmp_path / "model.json").unlink()
    assert Predictor.training_of(tmp_path) is None


def test_who_is_killed_while_writing_leaves_the_earlier_model(
    datamodule: TableDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _predictor(datamodule)
    before.save(tmp_path)

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        _predictor(datamodule, 8).save(tmp_path)
    assert Predictor.load(tmp_path).allocation == before.allocation


@pytest.mark.parametrize("moved", range(4))
def test_who_is_killed_while_replacing_leaves_no_mixture(
    datamodule: TableDataModule, tmp_path: Path, moved: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _predictor(datamodule).save(tmp_path)
    replace, done = Path.replace, []

    def killed(path: Path, target: Path) -> Path:
        if len(done) == moved:
            raise KeyboardInterrupt
        done.append(target)
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            _predictor(datamodule, 8).save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.json"):
        Predictor.load(tmp_path)
    after = _predictor(datamodule, 8)
    after.save(tmp_path)
    assert Predictor.load(tmp_path).allocation == after.allocation
    assert len(list(tmp_path.iterdir())) == 4


def test_a_file_is_no_folder(datamodule: TableDataModule, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("x")
    with pytest.raises(ValueError, match="`folder` must be a folder to write, got the file"):
        _predictor(datamodule).save(tmp_path / "model")
