from __future__ import annotations

import logging
import math
from pathlib import Path
import re
import threading
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from probing import Small, loader
import pytest
from tiny import IDS, MIXED, TRAIN, batches_of, rows
import torch

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace
from optuna_nis.data import TableDataModule
from optuna_nis.lightning import DataConfig, evaluate, reference_model, train
from optuna_nis.lightning.rewards import mode_by_name
from optuna_nis.lightning.training import Training, copies, quiet_lightning, quiet_trainer
from optuna_nis.lightning.training import data_of_test as part_of_test
from optuna_nis.nn import apply_allocation, make_searchable


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
    message = "that `test_step` logs, one of ['test_logloss', 'test_metric'], got 'auc'"
    with pytest.raises(ValueError, match=re.escape(message)):
        evaluate(model, datamodule, monitor="auc")


def _tiny(kind: Any = LightningModule, **logged: float) -> Any:
    """A model that logs some values in validation."""

    class Tiny(kind):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.ids = torch.nn.Embedding(IDS, 4)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.ids(batch[0]).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log_dict(logged)

        def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self.log("test_metric", 0.25 + dataloader_idx)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Tiny()


class _Data(LightningDataModule):
    def __init__(self, test: Any = None) -> None:
        super().__init__()
        self.test = test

    def train_dataloader(self) -> Any:
        return batches_of(TRAIN, 16)

    def val_dataloader(self) -> Any:
        return batches_of(MIXED)

    def test_dataloader(self) -> Any:
        return self.test


def _train(model: Any, data: Any = None, **options: Any) -> Training:
    full = make_searchable(_tiny(), budget=0.5).full()
    options = {"max_epochs": 2, "seed": 0} | options
    return train(lambda _: model, full, data or _Data(), **options)


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 2}, {"num_sanity_val_steps": 1}])
def test_a_monitor_that_is_not_logged_is_told_by_name(options: dict[str, Any]) -> None:
    message = "a value that the model logs in validation, one of ['accuracy'], got 'val_metric'"
    with pytest.raises(ValueError, match=re.escape(message)):
        _train(_tiny(accuracy=0.5), **options)


def test_trainings_without_a_number() -> None:
    with pytest.raises(FloatingPointError, match=r"'val_metric' must be a finite number .* was"):
        _train(_tiny(val_metric=math.nan))
    for options in ({"limit_val_batches": 0}, {"check_val_every_n_epoch": 3}):
        with pytest.raises(RuntimeError, match="ended before its first validation"):
            _train(_tiny(val_metric=0.5), **options)


def test_a_training_may_be_tried_out_with_one_batch() -> None:
    done = _train(_tiny(val_metric=0.5), fast_dev_run=True)
    assert (done.val_metric, done.epochs, done.best_epoch, done.steps) == (0.5, 1, 1, 1)
    assert not done.ended


def test_the_metrics_of_several_test_dataloaders() -> None:
    model, data = _tiny(), _Data([batches_of(MIXED), batches_of(MIXED)])
    assert evaluate(model, data, monitor="test_metric/dataloader_idx_1") == 1.25
    with pytest.raises(ValueError, match=r"one of .*dataloader_idx_0.*, got 'test_metric'"):
        evaluate(model, data)


def test_modules_of_the_other_package() -> None:
    other = pytest.importorskip("pytorch_lightning")
    model = _tiny(other.LightningModule, val_metric=0.5)
    data = other.LightningDataModule.from_datasets(rows(TRAIN), rows(MIXED), rows(MIXED))
    assert _train(model, data=data).val_metric == 0.5
    assert evaluate(model, data) == 0.25


def test_callbacks_of_the_model_do_not_replace_those_of_the_training(tmp_path: Path) -> None:
    model = _tiny(val_metric=0.5)
    stopping = EarlyStopping("val_metric", mode="max", patience=1)
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_metric")
    model.configure_callbacks = lambda: [checkpoint, stopping]
    done = _train(model, max_epochs=5, patience=3)
    assert done.val_metric == 0.5
    assert done.epochs == 2  # Its own stops it.
    assert checkpoint.best_model_path  # It is used beside ours.


def test_data_without_a_test_part_are_refused_before_anything_is_trained() -> None:
    without = LightningDataModule.from_datasets(rows(TRAIN), rows(MIXED))
    for data in (without, (batches_of(TRAIN, 16), batches_of(MIXED), None)):
        with pytest.raises(ValueError, match="`data` must have "):
            part_of_test(data)
    assert part_of_test(LightningDataModule.from_datasets(test_dataset=rows(MIXED)))


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("val_loss", "min"),
        ("val_Loss", "min"),
        ("valid/LogLoss", "min"),
        ("mean_loss", "min"),
        ("val_auroc", "max"),
        ("val_metric", "max"),
        ("validAUC", "max"),
        ("HR@10", "max"),
        ("val/acc", "max"),
        ("recall_at_10", "max"),
        ("test_f1", "max"),
        ("map", "max"),
        ("val_acc1", "max"),
        ("mAP50", "max"),
        ("HitRate@10", "max"),
        ("valAcc", "max"),
    ],
)
def test_the_direction_of_a_monitor_by_its_name(monitor: str, mode: str) -> None:
    assert mode_by_name(monitor) == mode
    assert mode_by_name(monitor, "min") == "min"
    assert mode_by_name(monitor, "max") == "max"


def test_a_loss_is_to_be_small_and_an_error_must_be_said() -> None:
    model = _tiny()
    losses = [0.5, 0.2, 0.4]
    model.validation_step = lambda *_: model.log("val_loss", losses[model.current_epoch])
    assert _train(model, monitor="val_loss", max_epochs=3).val_metric == pytest.approx(0.2)
    with pytest.raises(ValueError, match="`mode` must be given for the monitor 'val_rmse'"):
        _train(_tiny(val_rmse=0.5), monitor="val_rmse")


@pytest.mark.parametrize(
    "monitor",
    ["val_msle", "brier_score", "ece", "wer", "val_ce", "mean_rank", "crps", "mape", "distance"]
    + ["auc_error", "val_kl", "hinge", "deviance", "told", "symmetric_kl", "inaccuracy", "white"],
)
def test_a_name_that_does_not_say_what_is_best(monitor: str) -> None:
    with pytest.raises(ValueError, match=f"`mode` must be given for the monitor '{monitor}'"):
        mode_by_name(monitor)
    assert mode_by_name(monitor, "max") == "max"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_epochs": 0}, "`max_epochs` must be an integer of at least 1, got 0"),
        ({"patience": 0}, "`patience` must be an integer of at least 1, got 0"),
        ({"seed": -1}, "`seed` must be an integer between 0 and "),
        ({"mode": "best"}, """`mode` must be "max" or "min", got 'best'"""),
    ],
)
def test_what_a_training_cannot_go_by(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _train(_tiny(val_metric=0.5), **option)


class Schedules(Small):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=2)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize(
    ("kind", "callbacks", "message"),
    [
        (Small, [ModelCheckpoint()], r'default here: give .*"enable_checkpointing": True'),
        (Small, [LearningRateMonitor()], r'none by default: give `trainer_options=\{"logger"'),
        (Schedules, [], "Tried to step .* is made for fewer steps .* `max_epochs` of other"),
    ],
)
def test_errors_of_others_name_the_option(
    kind: type[Small], callbacks: list[Callback], message: str
) -> None:
    def build(allocation: Allocation) -> LightningModule:
        return apply_allocation(kind(), allocation)

    full = SearchSpace([EmbeddingSpec("user", 60, 8)]).full()
    with pytest.raises((ValueError, MisconfigurationException), match=message):
        train(build, full, (loader(), loader()), seed=0, callbacks=callbacks, monitor="val_loss")


def test_callbacks_of_several_trainings_are_copies() -> None:
    given = EarlyStopping("val_metric", mode="max")
    (copied,) = copies(given)
    assert copied is not given
    assert copied.state_key == given.state_key

    class Locked(EarlyStopping):
        def __init__(self) -> None:
            super().__init__("val_metric", mode="max")
            self.lock = threading.Lock()

    with pytest.raises(ValueError, match=r"`callbacks` must be ones that can be copied .* Locked"):
        copies([given, Locked()])
