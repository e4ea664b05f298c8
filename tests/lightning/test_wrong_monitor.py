"""What choices are scored by is tried out at the start, and leaves no trace."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
import optuna
import pytest
from tiny import MIXED, TRAIN, Net, SideBySide, batches_of
import torch
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC

from optuna_nis import NISSampler
from optuna_nis.lightning import NISCallback
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.lightning.validation_scores import ValidationScores
from optuna_nis.nn import make_searchable
from optuna_nis.study.results import score_line
from optuna_nis.study.settings import metric_of, mode_of


class _Steps(Callback):
    def __init__(self) -> None:
        self.number = 0

    def on_before_backward(self, *_: Any) -> None:
        self.number += 1


class _Noisy(Net):
    """Draws random numbers in every step, and counts its validation steps."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) + nn.functional.dropout(torch.ones(len(ids)), 0.1)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.seen += 1
        return super().validation_step(batch, batch_idx, dataloader_idx)


class _ReturnsNothing(Net):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx, dataloader_idx)


def _fit(
    model: Net, *callbacks: Callback, val: Any = None, trainer: Any = None, **options: Any
) -> NISCallback:
    torch.manual_seed(0)
    space = make_searchable(model, budget=0.5)
    search = NISCallback(space, num_updates=2, group_size=2, warmup=0.5, **options)
    trainer = quiet_trainer(max_epochs=2, callbacks=[search, *callbacks], **(trainer or {}))
    trainer.fit(model, batches_of(TRAIN, 8), val or batches_of(MIXED))
    return search


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Net, {"monitor": "auc"}, r"logs \['auroc', 'batch_auroc', 'val_loss'\], not 'auc'"),
        (Net, {"monitor": "batch_auroc"}, "needs `mode`.*`search_sizes` this is `monitor_mode`"),
        (_ReturnsNothing, {"metric": BinaryAUROC()}, r"must return .*\['preds', 'target'\]"),
        (SideBySide, {"monitor": "auc"}, "not 'auc'"),
    ],
)
def test_what_is_missing_is_told_at_the_start(
    model: type[Net], options: dict[str, Any], message: str
) -> None:
    steps = _Steps()
    with pytest.raises(MisconfigurationException, match=message):
        _fit(model(), steps, **options)
    assert steps.number == 1


class _OfTheSecond(Net):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        super().validation_step(batch, batch_idx, dataloader_idx)
        if dataloader_idx == 1:
            self.log("second", self.auroc, add_dataloader_idx=False)


def test_dataloaders_for_which_it_is_not_logged_do_not_count() -> None:
    seen: set[int] = set()

    class Noting(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            pl_module.note = lambda step: seen.add(step[0])

        def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
            pl_module.note = lambda step: None

    loaders = [batches_of(MIXED), batches_of(MIXED)]
    search = _fit(_OfTheSecond(), Noting(), val=loaders, monitor="second")
    assert seen == {1}
    search.train_candidates(_OfTheSecond, (batches_of(TRAIN, 8), loaders))
    assert search.study.best_trial.user_attrs["fidelity"] == "trained"


@pytest.mark.parametrize("monitor", ["second", "auroc/dataloader_idx_0"])
def test_what_is_logged_for_no_dataloader_is_told_at_the_start(monitor: str) -> None:
    class Others(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log(["a", "auroc"][dataloader_idx], 1.0, add_dataloader_idx=False)

    steps = _Steps()
    loaders = [batches_of(MIXED), batches_of(MIXED)]
    logged = r"\['a', 'auroc'\]" if monitor == "second" else r"\['a'\]"
    with pytest.raises(MisconfigurationException, match=rf"logs {logged}, not '{monitor}'"):
        _fit(Others(), steps, val=loaders, monitor=monitor, mode="max")
    assert steps.number == 1


def test_a_hook_that_needs_all_dataloaders() -> None:
    class Joined(Net):
        def on_validation_epoch_start(self) -> None:
            self.parts: list[list[Tensor]] = [[], []]

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.parts[dataloader_idx].append(self(batch[0]))

        def on_validation_epoch_end(self) -> None:
            self.log("least", min(torch.cat(each).mean() for each in self.parts))

    loaders = [batches_of(MIXED), batches_of(MIXED)]
    message = "failed: .*empty list.*on one of several dataloaders at a time, here on that of ind"
    with pytest.raises(MisconfigurationException, match=message):
        _fit(Joined(), val=loaders, monitor="least", mode="max")


@pytest.mark.parametrize("first", [True, False])
def test_averages_of_weights_are_made_before_choices_are_scored(
    first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = Net()
    search = NISCallback(make_searchable(model, budget=0.5), num_updates=2, monitor="auroc")
    averaging = EMAWeightAveraging(decay=0.9)
    callbacks = [averaging, search] if first else [search, averaging]
    trainer = quiet_trainer(max_epochs=1, callbacks=callbacks)
    trainer.fit(model, batches_of(TRAIN, 8), batches_of(MIXED))
    told = [each for each in caplog.messages if "comes after NISCallback" in each]
    assert len(told) == (0 if first else 1)
    assert all(each.startswith("WeightAveraging") for each in told)


def test_a_batch_that_cannot_tell_is_no_error() -> None:
    labels = torch.cat([torch.zeros(10), MIXED[:30]]).long()
    search = _fit(Net(), val=batches_of(labels), monitor="batch_auroc", mode="max")
    assert search.candidates


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("sanity", [0, 2])
def test_the_search_is_the_same_as_without(
    persistent: bool, sanity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found() -> Any:
        workers: dict[str, Any] = {"num_workers": 1} if persistent else {}
        val = batches_of(
            MIXED,
            shuffle=True,
            generator=torch.Generator().manual_seed(3),
            persistent_workers=persistent,
            **workers,
        )
        torch.manual_seed(0)
        model = _Noisy()
        search = _fit(model, val=val, trainer={"num_sanity_val_steps": sanity})
        trials = [(t.value, t.params, t.user_attrs["step"]) for t in search.study.trials]
        return trials, model.state_dict(), model.seen, torch.rand(1), search.candidates

    tried = []
    check = ValidationScores.check

    def counted(self: ValidationScores, trainer: Trainer, model: Any) -> None:
        tried.append(model)
        check(self, trainer, model)

    monkeypatch.setattr(ValidationScores, "check", counted)
    trials, weights, seen, number, candidates = found()
    assert len(tried) == 1
    monkeypatch.setattr(ValidationScores, "check", lambda *_: None)
    trials_without, weights_without, *others = found()
    assert trials == trials_without
    assert all(torch.equal(weights[name], weights_without[name]) for name in weights)
    assert [seen, number, candidates] == others


def test_the_study_of_a_callback_says_by_what_it_is_searched() -> None:
    study = optuna.create_study(direction="maximize", study_name="mine")
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_updates": 2, "group_size": 2}

    def fit(**goal: Any) -> None:
        model = Net()
        space = make_searchable(model, budget=0.5)
        study.sampler = NISSampler(budget=space, seed=0)
        search = NISCallback(space, study, **goal, **options)
        trainer = quiet_trainer(max_epochs=1, callbacks=[search])
        trainer.fit(model, batches_of(TRAIN, 8), batches_of(MIXED))

    fit(monitor="val_loss")
    assert (metric_of(study), mode_of(study)) == ("val_loss", "min")
    assert score_line(study).startswith("Validation val_loss 0.")
    before = len(study.trials)
    for goal, message in (
        ({"monitor": "auroc", "mode": "max"}, "'mine' is searched by 'val_loss', not by 'auroc'"),
        ({"monitor": "val_loss", "mode": "max"}, "its min, not by 'val_loss', the best being its"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(**goal)
    assert len(study.trials) == before
