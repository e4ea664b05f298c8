from __future__ import annotations

import logging
import re

from lightning.pytorch import LightningModule
import pytest

from optuna_nis import SearchSpace
from optuna_nis.datasets import TableDataModule
from optuna_nis.lightning import DataConfig, evaluate, reference_model, train
from optuna_nis.lightning.training import quiet_lightning, quiet_trainer


@pytest.fixture
def model(datamodule: TableDataModule) -> LightningModule:
    space = SearchSpace(datamodule.embedding_specs(8))
    return reference_model(datamodule.features)(space.full())


def test_lightning_is_quiet_until_the_last_has_ended() -> None:
    logger = logging.getLogger("lightning.pytorch")
    logger.setLevel(logging.INFO)
    with quiet_lightning():
        with quiet_lightning():
            assert not logger.isEnabledFor(logging.INFO)
        assert not logger.isEnabledFor(logging.INFO)
        assert logger.isEnabledFor(logging.WARNING)
    assert logger.isEnabledFor(logging.INFO)


def test_a_training_says_nothing(
    datamodule: TableDataModule, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "propagate", True)
    space = SearchSpace(datamodule.embedding_specs(8))
    done = train(
        reference_model(datamodule.features), space.full(), datamodule, seed=0, max_epochs=1
    )
    assert done.epochs == 1
    assert not caplog.messages
    quiet_trainer()
    assert any("GPU available" in message for message in caplog.messages)


def test_the_metric_of_the_test_by_its_name(data: DataConfig, model: LightningModule) -> None:
    datamodule = data.datamodule(withhold_test=False)
    assert evaluate(model, datamodule) == evaluate(model, datamodule, monitor="test_metric")
    message = "`monitor` must be a value that `test_step` logs, one of ['test_metric'], got 'auc'"
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate(model, datamodule, monitor="auc")
