"""Choices are scored by validations as Lightning runs them."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from probing import IDS, LABEL, Small, loader, scored, true_losses
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric, MeanSquaredError, MetricCollection
from torchmetrics.classification import BinaryAUROC

from optuna_nis.lightning._validation import num_examples
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import set_choices


def _assert_true_losses(model: Small, **options: Any) -> Any:
    probe = scored(model, monitor="val_loss", **options)
    assert probe.quality == pytest.approx([-loss for loss in true_losses(model, probe)], abs=1e-5)
    assert len(set(probe.quality)) == 3
    return probe


class Catalogue(Small):
    """Computes the numbers of all ids in a hook, and looks them up in validation steps."""

    def encode(self, *args: Any) -> None:
        self.eval()
        with torch.no_grad():
            self.numbers = self(torch.arange(60))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self.numbers[batch[0]]
        self.log("val_loss", functional.binary_cross_entropy_with_logits(logits, batch[1]))


@pytest.mark.parametrize(
    "hook",
    [
        "on_validation_model_eval",
        "on_validation_start",
        "on_validation_epoch_start",
        "on_validation_batch_start",
    ],
)
@pytest.mark.parametrize("limit_val_batches", [0, 1.0])
def test_what_hooks_compute_is_of_each_choice(hook: str, limit_val_batches: float) -> None:
    model = type("Encodes", (Catalogue,), {hook: Catalogue.encode})()
    probe = _assert_true_losses(model, trainer={"limit_val_batches": limit_val_batches})
    assert probe.quality
    if not limit_val_batches:
        assert not hasattr(model, "numbers")


class Gathers(Small):
    """Measures what has been gathered at the end of a validation."""

    def on_validation_epoch_start(self) -> None:
        self.preds: list[Tensor] = []

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0])

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.preds.append(outputs)
        self.log("val_hook", functional.binary_cross_entropy_with_logits(outputs, batch[1]))

    def on_validation_epoch_end(self) -> None:
        loss = functional.binary_cross_entropy_with_logits(torch.cat(self.preds), LABEL)
        self.log("val_loss", loss)
        self.preds.clear()


@pytest.mark.parametrize("monitor", ["val_loss", "val_hook"])
def test_values_that_hooks_log(monitor: str) -> None:
    model = Gathers()
    probe = scored(model, monitor=monitor, mode="min")
    assert probe.quality == pytest.approx([-loss for loss in true_losses(model, probe)], abs=1e-5)


class Notes(Small):
    """Notes which of its hooks are called, and with how many arguments."""

    def __init__(self, calls: list[tuple[str, int]]) -> None:
        super().__init__()
        vars(self)["note"] = lambda *call: calls.append(call)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.note("validation_step", 2)
        assert self.trainer.validating
        assert not self.trainer.sanity_checking
        assert not torch.is_grad_enabled()
        super().validation_step(batch, batch_idx)


for _hook in (
    "on_validation_model_eval",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
    "on_validation_model_train",
):
    setattr(Notes, _hook, lambda self, *args, _hook=_hook: self.note(_hook, len(args)))


class _Notices(Callback):
    """Keeps the calls of the validation after the training steps."""

    def __init__(self, calls: list[tuple[str, int]]) -> None:
        self.calls = calls

    def on_train_batch_end(self, *args: Any) -> None:
        self.calls.clear()


def test_hooks_are_called_in_the_order_of_lightning() -> None:
    calls: list[tuple[str, int]] = []
    epoch = {"limit_val_batches": 1.0, "max_steps": -1, "max_epochs": 1}
    scored(Notes(calls), trainer={**epoch, "callbacks": [_Notices(calls)]})
    of_lightning = list(calls)
    assert len(of_lightning) == 3 + 3 * 3 + 3
    calls.clear()
    scored(Notes(calls))
    assert calls == of_lightning * 3


class Reports(Small):
    reports = 0

    def on_validation_epoch_end(self) -> None:
        type(self).reports += 1


class ReportsWhatItOpens(Reports):
    def on_validation_start(self) -> None:
        with torch.no_grad():
            self.out.bias.add_(1.0)

    def on_validation_end(self) -> None:
        with torch.no_grad():
            self.out.bias.sub_(1.0)


def test_hooks_at_the_end_run_only_if_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reports, "reports", 0)
    scored(Reports())
    assert Reports.reports == 0
    monkeypatch.setattr(ReportsWhatItOpens, "reports", 0)
    model = ReportsWhatItOpens()
    probe = scored(model)
    assert ReportsWhatItOpens.reports == 3
    bias = model.out.bias.item()
    with torch.no_grad():
        model.out.bias.add_(1.0)
    assert probe.quality == pytest.approx([-loss for loss in true_losses(model, probe)], abs=1e-5)
    assert model.out.bias.item() == pytest.approx(bias + 1.0)


class Loud(Small):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.logger.experiment.log_metrics({"choice": 1.0})
        self.logger.log_metrics({"choice": 1.0})
        self.told = self.logger.save_dir, self.logger.name, self.logger.version

    def on_validation_epoch_end(self) -> None:
        assert self.trainer.callback_metrics["val_loss"] > 0
        self.trainer.should_stop = True
        self.log("val_end", self.trainer.callback_metrics["val_loss"])


def test_nothing_reaches_loggers_callbacks_and_the_loop(tmp_path: Any) -> None:
    logger = CSVLogger(tmp_path)
    probe = scored(
        Loud(), monitor="val_end", mode="min", trainer={"logger": logger, "max_steps": 2}
    )
    trainer = probe.trainer
    assert len(set(probe.quality)) == 3
    assert trainer.global_step == 2
    assert trainer.loggers == [logger]
    assert not {"val_loss", "val_end"} & set(trainer.callback_metrics)
    assert not logger.experiment.metrics


class Steps(Small):
    def _log(self, batch: Any) -> None:
        self.log("val_loss", self.loss(batch))


def _step_of_a_decorator(step: Any) -> Any:
    @functools.wraps(step)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return step(*args, **kwargs)

    return wrapped


STEPS: dict[str, Any] = {
    "batch": lambda self, batch: self._log(batch),
    "any name": lambda self, batch, _: self._log(batch),
    "idx": lambda self, b, idx: self._log(b if idx < 3 else None),
    "any number": lambda self, *args: self._log(args[0] if len(args) == 2 else None),
    "default": lambda self, batch, batch_idx=0, dataloader_idx=0: self._log(batch),
    "wrapped": _step_of_a_decorator(lambda self, batch, _: self._log(batch)),
    "wrapped, batch only": _step_of_a_decorator(lambda self, batch: self._log(batch)),
    "iterator": lambda self, dataloader_iter: self._log(next(dataloader_iter)[0]),
}


@pytest.mark.filterwarnings("ignore:.*dataloader_iter.* step flavor")
@pytest.mark.parametrize("step", STEPS)
def test_steps_of_any_signature(step: str) -> None:
    model = type("Model", (Steps,), {"validation_step": STEPS[step]})()
    _assert_true_losses(model)


class Logs(Small):
    """Logs something in its validation."""

    def __init__(self, log: Any, at_end: Any = lambda model: None) -> None:
        super().__init__()
        vars(self).update(log_some=log, at_end=at_end)
        self.inner = nn.Module()
        self.inner.mean = MeanMetric()
        self.auroc = BinaryAUROC()
        self.metrics = MetricCollection([BinaryAUROC(), MeanSquaredError()], prefix="val_")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log_some(self, self(batch[0]).sigmoid(), batch[1], batch_idx + 1.0)

    def on_validation_epoch_end(self) -> None:
        self.at_end(self)


def _mean_of_a_submodule(model: Any, preds: Tensor, target: Tensor, value: float) -> None:
    model.inner.mean.update(value, len(preds))
    model.log("x", model.inner.mean)


def _collection(model: Any, preds: Tensor, target: Tensor, value: float) -> None:
    model.metrics.update(preds, target)
    model.log_dict(model.metrics)


def _gathered(model: Any, preds: Tensor, target: Tensor, value: float) -> None:
    model.auroc.update(preds, target)


def _computed_at_the_end(model: Any) -> None:
    model.log("x", model.auroc.compute())
    model.auroc.reset()


def _reset_at_the_end(model: Any) -> None:
    model.log("other", 1.0)
    model.auroc.reset()


def _logged_and_gathered(model: Any, preds: Tensor, target: Tensor, value: float) -> None:
    model.auroc.update(preds, target)
    model.log("x", model.auroc)


LOGS: dict[str, Any] = {
    "mean": (lambda m, p, t, value: m.log("x", value),),
    "size": (lambda m, p, t, value: m.log("x", value, batch_size=1),),
    "sum": (lambda m, p, t, value: m.log("x", value, reduce_fx="sum"),),
    "max": (lambda m, p, t, value: m.log("x", torch.tensor(value), reduce_fx=torch.max),),
    "min": (lambda m, p, t, value: m.log("x", value, reduce_fx=min),),
    "epoch": (lambda m, p, t, value: m.log("x", value, on_step=True, on_epoch=True),),
    "mapping": (lambda m, p, t, value: m.log_dict({"x": value}, batch_size=1),),
    "metric of a submodule": (_mean_of_a_submodule,),
    "collection": (_collection,),
    "at the end": (_gathered, _computed_at_the_end),
    "metric that is reset": (_logged_and_gathered, _reset_at_the_end),
}
_NAMES = {"epoch": "x_epoch", "collection": "val_BinaryAUROC"}


@pytest.mark.parametrize("what", LOGS)
def test_values_are_those_of_lightning(what: str) -> None:
    name = _NAMES.get(what, "x")
    model = Logs(*LOGS[what])
    model.learning_rate = 0.0
    probe = scored(model, monitor=name, mode="max")
    of_lightning = []
    for choice in probe.choices:
        set_choices(model, probe.rewards.space, [choice])
        trainer = quiet_trainer()
        trainer.validate(model, loader(), verbose=False)
        of_lightning.append(float(trainer.callback_metrics[name]))
    assert probe.quality == pytest.approx(of_lightning, abs=1e-6)


class ForTwo(Small):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        self.log("val_loss", self.loss(batch) + dataloader_idx)

    def on_validation_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int
    ) -> None:
        self.log("val_idx", float(dataloader_idx), add_dataloader_idx=False)


def test_the_index_of_a_dataloader() -> None:
    model = ForTwo()
    probe = scored(model, monitor="val_loss", options={"dataloader_idx": 1})
    losses = [-loss - 1.0 for loss in true_losses(model, probe)]
    assert probe.quality == pytest.approx(losses, abs=1e-5)


def test_the_name_of_a_dataloader() -> None:
    model = ForTwo()
    for monitor in ("val_loss", "val_loss/dataloader_idx_1"):
        probe = scored(copy.deepcopy(model), monitor=monitor, options={"dataloader_idx": 1})
        assert len(set(probe.quality)) == 3
    with pytest.raises(
        MisconfigurationException,
        match=r"logs \['val_idx', 'val_loss', 'val_loss/dataloader_idx_1'\]",
    ):
        scored(model, monitor="val_loss/dataloader_idx_0", options={"dataloader_idx": 1})


def test_examples_of_one_class_cannot_tell_at_the_end() -> None:
    batch = [IDS[:4], torch.ones(4)]
    probe = scored(Logs(_gathered, _computed_at_the_end), [batch], monitor="x", mode="max")
    assert all(map(math.isnan, probe.quality))


def test_a_reduction_that_there_is_not() -> None:
    model = Logs(lambda m, p, t, value: m.log("x", value, reduce_fx="median"))
    with pytest.raises(MisconfigurationException, match=r"`reduce_fx` of .* got 'median'"):
        scored(model, monitor="x", mode="max")


class ChangesBatches(Small):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        batch[0].zero_()
        batch[1] = None


def test_steps_may_change_their_batch() -> None:
    model = ChangesBatches()
    probe = scored(model, [[IDS, LABEL]])
    torch.testing.assert_close(
        torch.tensor(probe.quality), -torch.tensor(true_losses(model, probe)), rtol=0, atol=1e-5
    )


def test_values_of_batches_without_a_length() -> None:
    assert num_examples([IDS, LABEL]) == 120
    with pytest.warns(UserWarning, match="an ambiguous collection"):
        assert num_examples([IDS, torch.arange(3)]) == 120
    assert num_examples("text") == num_examples({"a": None}) == 1
