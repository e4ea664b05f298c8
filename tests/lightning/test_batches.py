"""How many batches a search plans with, and what becomes of a training that ends early."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
import logging
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, Timer
import pytest
from tiny import IDS, MIXED, TRAIN, Net, batches_of
import torch
from torch.utils.data import DataLoader, IterableDataset

from optuna_nis.lightning import NISCallback
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import make_searchable, supernet_layers


def _fit(
    *callbacks: Callback, train: Any = None, warmup: float = 0.5, **trainer: Any
) -> NISCallback:
    torch.manual_seed(0)
    model = Net()
    search = NISCallback(
        make_searchable(model, budget=0.5), num_updates=4, group_size=2, warmup=warmup
    )
    # Four batches in an epoch.
    train = batches_of(TRAIN, 16) if train is None else train
    options = {"callbacks": [search, *callbacks], **trainer}
    quiet_trainer(**options).fit(model, train, batches_of(MIXED))
    assert all(layer.num_choices == 1 for layer in supernet_layers(model).values())
    return search


def _steps(search: NISCallback) -> list[int]:
    """The training step of each update."""
    trials = [t for t in search.study.trials if t.user_attrs["fidelity"] == "supernet"]
    return [trial.user_attrs["step"] for trial in trials][::2]


def _never_better() -> EarlyStopping:
    return EarlyStopping("val_loss", patience=0, min_delta=10.0)


class Patient(EarlyStopping):
    """A callback of one's own."""


@pytest.mark.parametrize(
    ("trainer", "name"),
    [
        ({"callbacks": [_never_better()]}, "EarlyStopping"),
        ({"callbacks": [Patient("val_loss")]}, "Patient"),
        ({"callbacks": [Timer(timedelta(hours=1))]}, "Timer"),
        ({"max_time": {"hours": 1}}, "Timer"),
        ({"callbacks": [_never_better()], "max_epochs": -1, "max_steps": 100}, "EarlyStopping"),
    ],
)
def test_what_may_end_the_training_early_is_refused(trainer: dict[str, Any], name: str) -> None:
    options = {"max_epochs": 100} | trainer
    callbacks = options.pop("callbacks", [])
    message = rf"{name}.* may end the training before the search .* `min_epochs` or `min_steps`"
    with pytest.raises(MisconfigurationException, match=message):
        _fit(*callbacks, **options)


@pytest.mark.parametrize(
    ("least", "steps"),
    [({"min_epochs": 2}, [5, 6, 7, 8]), ({"min_steps": 12}, [7, 9, 10, 12])],
)
def test_or_planned_by_the_least_that_is_trained(least: dict[str, int], steps: list[int]) -> None:
    search = _fit(_never_better(), max_epochs=100, **least)
    assert _steps(search) == steps
    assert search.candidates
    # Nothing stops it, but the plan is the same.
    search = _fit(EarlyStopping("val_loss", patience=9), max_epochs=4, **least)
    assert _steps(search) == steps
    assert search.candidates


def test_what_cannot_stop_it_is_not_refused() -> None:
    assert _steps(_fit(Timer(), max_epochs=2)) == [5, 6, 7, 8]
    assert _steps(_fit(_never_better(), fast_dev_run=True)) == [1, 1, 1, 1]


def test_what_is_told_on_the_way(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="optuna"):
        search = _fit(max_epochs=2)
    lines = [r.message for r in caplog.records if "optuna_nis" in r.name]
    assert lines[:2] == [
        "The search warms up for 4 batches.",
        "The controller begins to learn: 4 updates, each from 2 choices.",
    ]
    means = [float(line.rstrip(".").split()[-1]) for line in lines[2:6]]
    trials = [t.value for t in search.study.trials if t.user_attrs["fidelity"] == "supernet"]
    assert means == pytest.approx([sum(trials[k : k + 2]) / 2 for k in (0, 2, 4, 6)], abs=1e-4)
    assert lines[2].startswith("1 of 4 updates")
    assert lines[6].startswith(f"The supernet is trained; candidates: {len(search.candidates)} of")
    assert "`search.train_candidates(build_model, data)`" in lines[7]
    assert len(lines) == 8


class _StopAt(Callback):
    def __init__(self, step: int, error: BaseException | None = None) -> None:
        self.step = step
        self.error = error

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            if self.error is not None:
                raise self.error
            trainer.should_stop = True


@pytest.mark.parametrize(("step", "updates"), [(3, 0), (6, 2)])
def test_a_training_that_is_stopped_leaves_no_candidates(
    step: int, updates: int, caplog: pytest.LogCaptureFixture
) -> None:
    search = _fit(_StopAt(step), max_epochs=2)
    assert len(_steps(search)) == updates
    assert {trial.user_attrs["fidelity"] for trial in search.study.trials} <= {"supernet"}
    message = f"the training was stopped after {updates} of 4 updates"
    assert [r.levelno for r in caplog.records if message in r.message] == [logging.WARNING]
    with pytest.raises(RuntimeError, match=f"has no candidates: {message}"):
        _ = search.candidates


def test_a_search_that_has_not_begun_has_no_candidates_to_train() -> None:
    search = NISCallback(make_searchable(Net(), budget=0.5))
    with pytest.raises(RuntimeError, match="has no candidates"):
        search.train_candidates(Net, [TRAIN, TRAIN])


class _AnyLength(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ((k % IDS, k % 2) for k in range(64))


@pytest.mark.parametrize(
    ("callbacks", "options", "step"),
    [
        ([_never_better()], {"max_epochs": 100}, 8),
        ([_StopAt(3)], {"max_epochs": 2}, 3),
        ([_StopAt(6)], {"max_epochs": -1}, 6),
        ([], {"max_epochs": 2, "train": DataLoader(_AnyLength(), batch_size=16)}, 8),
        ([], {"max_epochs": 1, "max_time": {"hours": 1}}, 4),
    ],
)
def test_it_may_end_at_any_time_where_all_updates_come_after_it(
    callbacks: list[Callback], options: dict[str, Any], step: int
) -> None:
    search = _fit(*callbacks, warmup=1.0, **options)
    assert _steps(search) == [step] * 4
    assert search.candidates


def test_a_training_that_breaks_leaves_no_candidates() -> None:
    searches = []

    class Kept(Callback):
        def on_train_start(self, trainer: Trainer, *args: Any) -> None:
            searches.extend(c for c in trainer.callbacks if isinstance(c, NISCallback))

    with pytest.raises(RuntimeError, match="no memory"):
        _fit(Kept(), _StopAt(6, RuntimeError("no memory")), max_epochs=2)
    with pytest.raises(RuntimeError, match=r"when the supernet has been trained to its end"):
        _ = searches[0].candidates
    fresh = NISCallback(make_searchable(Net(), budget=0.5))
    with pytest.raises(RuntimeError, match=r"when the supernet has been trained to its end"):
        _ = fresh.candidates


class _Fewer(IterableDataset[Any]):
    """Says that it has more examples than it gives."""

    def __len__(self) -> int:
        return 64

    def __iter__(self) -> Iterator[Any]:
        yield from ((k, k % 2) for k in range(32))


@pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined")
def test_where_the_data_end_early_all_updates_are_made() -> None:
    search = _fit(train=DataLoader(_Fewer(), batch_size=16), max_epochs=3)
    assert _steps(search) == [6, 6, 6, 6]
    assert search.candidates


@pytest.mark.parametrize("strategy", ["ddp_fork", "ddp_spawn", "ddp_notebook"])
def test_strategies_that_train_elsewhere_are_refused(strategy: str) -> None:
    trainer = quiet_trainer(
        accelerator="cpu", devices=1, strategy=strategy, max_epochs=1, callbacks=[]
    )
    model = Net()
    search = NISCallback(make_searchable(model, budget=0.5))
    with pytest.raises(MisconfigurationException, match=r"processes of its own .*devices=1"):
        search.on_fit_start(trainer, model)


def test_what_they_are_told_reaches_the_caller() -> None:
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="Use `Trainer"):
        _fit(accelerator="cpu", devices=1, strategy="ddp_fork", max_epochs=1)
