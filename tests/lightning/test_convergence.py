"""When a training has ended, by the values that its validations are told to log."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
import math
from pathlib import Path
from typing import Any
from unittest.mock import ANY

from killing import KilledError
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
import pytest
from tiny import IDS, MIXED, TRAIN, Net, batches_of
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, TensorDataset

from optuna_nis import SearchSpace
from optuna_nis.data import TableDataModule
from optuna_nis.lightning import (
    RankingModule,
    checkpoints,
    convergence,
    reference_model,
    train,
)
from optuna_nis.lightning.checkpoints import PeriodicCheckpoint, without_copies
from optuna_nis.lightning.convergence import Convergence, error_on_validation
from optuna_nis.lightning.rewards import Monitored, MonitorMode
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import make_searchable


def _loader(steps: int) -> Any:
    return DataLoader(TensorDataset(torch.arange(steps) % IDS), batch_size=1)


class Told(LightningModule):
    """Logs what it is told, and notes its learning rate after each validation."""

    def __init__(self, value: Callable[[Told], float], *, scheduled: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.ids = nn.Embedding(IDS, 2)
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros(1))
        self.value, self.scheduled = value, scheduled
        self.validations = 0
        self.rates: list[float] = []
        self.begins: list[float] = []

    @property
    def rate(self) -> float:
        rate: float = self.trainer.optimizers[0].param_groups[0]["lr"]
        return rate

    def on_train_epoch_start(self) -> None:
        self.rates.append(self.rate)
        self.begins.append(float(self.steps))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        return self.ids(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def on_validation_epoch_end(self) -> None:
        self.validations += 1
        self.log("told", float(self.value(self)))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        if self.scheduled:
            return [optimizer], [ExponentialLR(optimizer, 0.5)]
        return optimizer


def _fit(
    model: LightningModule,
    *,
    steps: int = 10,
    mode: MonitorMode = "max",
    error: float = 0.01,
    max_epochs: int | None = None,
    callbacks: list[Callback] | None = None,
    ckpt_path: str | None = None,
    num_decays: int = 1,
    min_delta: float = 0.0,
    **options: Any,
) -> tuple[Convergence, Trainer]:
    done = Convergence(
        Monitored("told", mode),
        max_epochs=max_epochs,
        error=lambda _: error,
        num_decays=num_decays,
        min_delta=min_delta,
    )
    trainer = quiet_trainer(
        max_epochs=Convergence.most_epochs(max_epochs),
        callbacks=[done, *(callbacks or [])],
        **options,
    )
    trainer.fit(model, _loader(steps), _loader(1), ckpt_path=ckpt_path)
    return done, trainer


def _in_turn(*values: float) -> Callable[[Told], float]:
    """The values of the validations in their order, the last for all that follow."""
    return lambda model: values[min(model.validations, len(values)) - 1]


def test_it_goes_back_to_the_best_weights_with_a_lower_rate() -> None:
    model = Told(_in_turn(0.5, 0.6, 0.1, 0.1, 0.3))
    done, trainer = _fit(model)
    # Two validations far below the best, then two that are no better with the lowered rate.
    assert model.rates == pytest.approx([0.1] * 4 + [0.02] * 2)
    assert model.begins == [0, 10, 20, 30, 20, 30]
    assert done.ended
    assert done.decays == 1
    assert done.best == pytest.approx(0.6)
    assert (done.best_epoch, done.best_step) == (2, 20)
    assert float(model.steps) == 20
    assert trainer.global_step == 60


@pytest.mark.parametrize(
    ("num_decays", "rates"),
    [(0, [0.1] * 4), (1, [0.1] * 4 + [0.02] * 2), (2, [0.1] * 4 + [0.02] * 2 + [0.004] * 2)],
)
def test_the_rate_is_lowered_as_often_as_is_said(num_decays: int, rates: list[float]) -> None:
    model = Told(_in_turn(0.5, 0.6, 0.1, 0.1, 0.3))
    done, _ = _fit(model, num_decays=num_decays)
    assert model.rates == pytest.approx(rates)
    assert (done.decays, done.ended) == (num_decays, True)
    # At its best weights, whatever it takes to say so.
    assert (done.best, done.best_epoch) == (pytest.approx(0.6), 2)
    assert float(model.steps) == 20


def test_what_is_better_with_the_lower_rate_is_kept() -> None:
    model = Told(_in_turn(0.5, 0.1, 0.1, 0.6, 0.7, 0.7))
    done, _ = _fit(model)
    assert (done.best, done.best_epoch) == (pytest.approx(0.7), 5)
    assert model.rates == pytest.approx([0.1] * 3 + [0.02] * 4)
    assert float(model.steps) == 30  # Ten until the best of the first stage, and two epochs.


def test_a_loss_is_to_be_small() -> None:
    model = Told(_in_turn(0.5, 0.4, 0.9, 0.9, 0.45))
    done, _ = _fit(model, mode="min")
    assert (done.best, done.best_epoch) == (pytest.approx(0.4), 2)
    assert model.validations == 6


def test_a_plateau_is_waited_for() -> None:
    # A little below the best: nothing says that it is overfitting.
    model = Told(_in_turn(0.5, 0.495))
    done, trainer = _fit(model, steps=20)
    # 300 steps after the best, with the lowered rate two validations.
    assert model.rates == pytest.approx([0.1] * 16 + [0.02] * 2)
    assert trainer.global_step == 18 * 20
    assert done.ended


def test_half_as_long_as_the_best_took_is_waited_for() -> None:
    model = Told(_in_turn(*(0.5 + 0.01 * k for k in range(10)), 0.585))
    _, trainer = _fit(model, steps=80)
    # The best came after 800 steps, 300 more are four epochs.
    assert model.rates == pytest.approx([0.1] * 15 + [0.02] * 2)
    assert trainer.global_step == 17 * 80


@pytest.mark.parametrize("mode", ["max", "min"])
def test_what_is_a_little_better_is_kept_but_not_waited_for(mode: MonitorMode) -> None:
    sign = 1 if mode == "max" else -1
    values = [0.5, 0.53, *(0.53 + 0.001 * k for k in range(1, 100))]
    model = Told(_in_turn(*(sign * value for value in values)))
    done, trainer = _fit(model, steps=20, mode=mode, min_delta=2, num_decays=0)
    # Better than the second by two errors of .01 only after more than 300 steps.
    assert trainer.global_step == 2 * 20 + 300
    assert (done.best, done.best_epoch) == (pytest.approx(sign * values[16]), 17)
    assert float(model.steps) == 17 * 20


def test_what_is_better_bit_by_bit_is_waited_for() -> None:
    model = Told(_in_turn(*(0.5 + 0.002 * min(k, 30) for k in range(100))))
    _, trainer = _fit(model, steps=20, min_delta=2, num_decays=0)
    # Each eleventh validation is better by more than two errors, the last one of these at 0.544.
    assert trainer.global_step == 23 * 20 + 300


@pytest.mark.parametrize("error", [math.inf, 0.0])
def test_where_the_error_is_unknown_whatever_is_better_is_waited_for(error: float) -> None:
    model = Told(_in_turn(*(0.5 + 0.001 * min(k, 30) for k in range(100))))
    _, trainer = _fit(model, steps=20, min_delta=2, num_decays=0, error=error)
    assert trainer.global_step == 31 * 20 + 320


def test_what_comes_after_a_plateau_counts() -> None:
    values = [0.5] + 10 * [0.495] + [0.7, 0.7]
    model = Told(_in_turn(*values))
    done, _ = _fit(model, steps=20)
    assert (done.best, done.best_epoch) == (pytest.approx(0.7), 12)


def test_a_rate_that_is_too_large_begins_anew_with_a_lower_one() -> None:
    model = Told(lambda told: math.nan if told.rate > 0.05 else 0.5 + 0.1 * (told.steps >= 20))
    initial = model.ids.weight.detach().clone()
    seen: list[Tensor] = []

    class Seen(Callback):
        def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append(pl_module.ids.weight.detach().clone())

    done, _ = _fit(model, callbacks=[Seen()])
    torch.testing.assert_close(seen[2], initial, rtol=0, atol=0)
    assert model.begins == [0, 10, 0, 10, 20, 30]
    assert (done.best, done.best_epoch) == (pytest.approx(0.6), 4)
    assert float(model.steps) == 20


def test_where_nothing_is_ever_a_number_it_ends_soon() -> None:
    done, trainer = _fit(Told(_in_turn(math.nan)))
    assert trainer.current_epoch == 4
    assert done.best_epoch == 0
    assert math.isnan(done.last)


def test_models_keep_a_schedule_of_their_own() -> None:
    model = Told(_in_turn(0.5, 0.1), scheduled=True)
    done, trainer = _fit(model)
    assert model.rates == pytest.approx([0.1, 0.05, 0.025])
    assert model.begins == [0, 10, 20]
    assert done.ended
    assert done.decays == 0
    # Nor is it given more epochs than the schedule was made for.
    assert trainer.fit_loop.max_epochs == 30


def test_optimisation_by_hand_is_one_stage() -> None:
    class ByHand(Told):
        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    model = ByHand(_in_turn(0.5, 0.1))
    model.automatic_optimization = False
    done, _ = _fit(model)
    assert model.rates == pytest.approx([0.1] * 3)
    assert done.ended


@pytest.mark.parametrize(
    ("steps", "max_epochs", "options", "epochs"),
    [
        (10, None, {}, 1000),  # 10,000 steps.
        (10, 2, {}, 2),
        (500, None, {}, 30),
        (10, None, {"max_steps": 40}, 30),
        (10, None, {"accumulate_grad_batches": 2}, 2000),
    ],
)
def test_the_most_it_may_take(
    steps: int, max_epochs: int | None, options: dict[str, Any], epochs: int
) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.should_stop = True

    model = Told(_in_turn(0.5))
    _, trainer = _fit(model, steps=steps, max_epochs=max_epochs, callbacks=[Stop()], **options)
    assert trainer.fit_loop.max_epochs == epochs


@pytest.mark.parametrize(
    ("steps", "options", "at"),
    [
        (1000, {}, [500, 1000]),
        (1000, {"val_check_interval": 700}, [700]),
        (900, {}, [900]),
    ],
)
def test_long_epochs_have_several_validations(
    steps: int, options: dict[str, Any], at: list[int]
) -> None:
    found: list[int] = []

    def value(model: Told) -> float:
        found.append(model.global_step)
        return 0.5

    _fit(Told(value), steps=steps, max_epochs=1, **options)
    assert found == at


def test_so_many_as_the_trainer_is_told_to_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "_STEPS_BETWEEN", 4)
    for options, number in (({}, 2), ({"val_check_interval": 1}, 8)):
        model = Told(_in_turn(0.5))
        _fit(model, steps=8, max_epochs=1, **options)
        assert model.validations == number


def test_of_several_processes_all_go_by_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def of_the_first(self: Any, seen: float, src: int = 0) -> float:
        return 0.75 if isinstance(seen, float) else 4

    monkeypatch.setattr(SingleDeviceStrategy, "broadcast", of_the_first)
    done, _ = _fit(Told(_in_turn(0.5)), max_epochs=2)
    assert done.best == done.last == 0.75


def test_it_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    values = _in_turn(0.5, 0.6, 0.1, 0.1, 0.3)
    whole = Told(values)
    expected, _ = _fit(whole)
    # In the middle of the first decline, and after the rate was lowered.
    for epochs in (3, 5):
        first = Told(values)
        checkpoint = ModelCheckpoint(tmp_path / str(epochs), save_last=True)
        _fit(first, max_epochs=epochs, callbacks=[checkpoint], enable_checkpointing=True)
        second = Told(values)
        second.validations = first.validations
        done, _ = _fit(second, ckpt_path=checkpoint.last_model_path)
        assert done.state_dict()["best_epoch"] == expected.best_epoch
        assert done.best == expected.best
        assert done.decays == 1
        assert done.ended
        assert first.rates + second.rates == pytest.approx(whole.rates)
        torch.testing.assert_close(second.state_dict(), whole.state_dict())


def test_what_had_ended_does_not_go_on(tmp_path: Path) -> None:
    first = Told(_in_turn(0.5, 0.6, 0.1, 0.1, 0.3))
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    ended, before = _fit(first, callbacks=[checkpoint], enable_checkpointing=True)
    assert ended.ended
    second = Told(_in_turn(0.9))
    done, trainer = _fit(second, ckpt_path=checkpoint.last_model_path)
    assert trainer.global_step == before.global_step
    assert (done.best, done.ended, second.validations) == (ended.best, True, 0)
    torch.testing.assert_close(second.state_dict(), first.state_dict())


def test_a_model_that_keeps_some_weights_out_of_its_state() -> None:
    class Frozen(Told):
        def __init__(self, value: Callable[[Told], float]) -> None:
            super().__init__(value)
            self.encoder = nn.Linear(2, 2).requires_grad_(False)
            self.strict_loading = False

        def state_dict(self, *args: Any, **kwargs: Any) -> Any:
            state = super().state_dict(*args, **kwargs)
            return {name: each for name, each in state.items() if "encoder" not in name}

    model = Frozen(_in_turn(0.5, 0.6, 0.1, 0.1, 0.3))
    done, _ = _fit(model)
    assert done.best_epoch == 2
    assert float(model.steps) == 20


def test_weights_that_are_averaged_are_those_that_were_validated() -> None:
    callbacks = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")
    full = make_searchable(Net(), budget=0.5).full()
    data = batches_of(TRAIN, 16), batches_of(MIXED)
    done = train(
        lambda _: Net(),
        full,
        data,
        seed=0,
        max_epochs=5,
        monitor="val_loss",
        mode="min",
        callbacks=[callbacks.EMAWeightAveraging(decay=0.9)],
    )
    (metrics,) = quiet_trainer().validate(done.model, data[1], verbose=False)
    assert metrics["val_loss"] == pytest.approx(done.val_metric)


def test_what_somebody_else_validates_is_not_its_own() -> None:
    model = Told(_in_turn(0.5, 0.1))
    done, trainer = _fit(model, max_epochs=2)
    before = done.decays, done.num_validations
    other = Told(lambda _: 0.0)
    with torch.no_grad():
        other.ids.weight.fill_(7.0)
    for _ in range(4):
        trainer.validate(other, _loader(1), verbose=False)
    assert bool((other.ids.weight == 7.0).all())
    assert (done.decays, done.num_validations) == before


def test_the_standard_error_of_reference_models(datamodule: TableDataModule) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    model = reference_model(datamodule.features)(space.full())
    error = error_on_validation(model, datamodule)
    assert error is not None
    assert 0.0 < error(0.7) < 0.1
    assert error_on_validation(model, datamodule, "val_loss") is None
    assert error_on_validation(Told(_in_turn(0.5)), datamodule) is None
    assert error_on_validation(model, (_loader(1), _loader(1))) is None


def test_a_reference_model_whose_first_validations_are_no_numbers(
    datamodule: TableDataModule,
) -> None:
    class Diverging(RankingModule):
        validations = 0

        def on_validation_epoch_end(self) -> None:
            self.validations += 1
            self.log("told", math.nan if self.validations < 3 else 0.6)

    space = SearchSpace(datamodule.embedding_specs(8))
    model = Diverging(space.full(), bags=datamodule.bags)
    error = error_on_validation(model, datamodule)
    done = Convergence(Monitored("told"), max_epochs=4, error=error)
    quiet_trainer(max_epochs=4, callbacks=[done]).fit(model, datamodule=datamodule)
    assert (done.best, done.best_epoch) == (pytest.approx(0.6), 3)
    assert done.decays == 1


def test_a_reference_model_may_be_trained_by_another_value(datamodule: TableDataModule) -> None:
    class ByLoss(RankingModule):
        def on_validation_epoch_end(self) -> None:
            self.log("loss", 0.5 + self.current_epoch)

    space = SearchSpace(datamodule.embedding_specs(8))

    def build(allocation: Any) -> RankingModule:
        return ByLoss(allocation, bags=datamodule.bags)

    options: dict[str, Any] = {"seed": 0, "monitor": "loss", "mode": "min", "max_epochs": 3}
    done = train(build, space.full(), datamodule, **options)
    assert (done.val_metric, done.best_epoch) == (pytest.approx(0.5), 1)


def _of_epoch(*values: float) -> Callable[[Told], float]:
    """The value of the validation of each epoch, the last for all that follow."""
    return lambda model: values[min(model.current_epoch, len(values) - 1)]


def test_killed_anywhere_around_a_checkpoint_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "_INTERVAL", 0.0)
    monkeypatch.setattr(checkpoints, "_MAX_SHARE", 1.0)
    value = _of_epoch(0.5, 0.6, 0.1, 0.1, 0.7, 0.2)
    whole = Told(value)
    expected, _ = _fit(whole, steps=1)
    killed: set[tuple[str, int]] = set()

    def killed_once(owner: Any, name: str, *, after: bool = False) -> None:
        """Kill who calls it, once for each best step."""
        function = getattr(owner, name)

        def call(*args: Any) -> None:
            if after:
                function(*args)
            if (name, done.best_step) not in killed:
                killed.add((name, done.best_step))
                raise KilledError
            if not after:
                function(*args)

        monkeypatch.setattr(owner, name, call)

    killed_once(Convergence, "_replace", after=True)  # Before a checkpoint has its name.
    killed_once(checkpoints.os, "replace")  # The checkpoint that has it is not there yet.
    killed_once(Convergence, "forget_earlier")  # It is, and so are the weights of before.
    path, best = tmp_path / "last.ckpt", tmp_path / "best"
    starts = 0
    while True:
        starts += 1
        model = Told(value)
        done = Convergence(Monitored("told"), error=lambda _: 0.01, folder=best)
        trainer = quiet_trainer(max_epochs=30, callbacks=[done, PeriodicCheckpoint(path)])
        without_copies(trainer, tmp_path)
        with suppress(KilledError):
            ckpt_path = path if path.exists() else None
            trainer.fit(model, _loader(1), _loader(1), ckpt_path=ckpt_path)
            break
    # Untrained, twice better, and better once more with the lowered rate.
    assert {step for _, step in killed} == {0, 1, 2, 5}
    assert len(killed) == starts - 1 >= 11
    known = expected.state_dict()
    assert done.state_dict() == {n: known[n] for n in known.keys() - {"weights"}} | {"file": ANY}
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert len(list(best.iterdir())) <= 2


def test_checkpoints_that_hold_the_best_weights_are_read(tmp_path: Path) -> None:
    before, _ = _fit(Told(_in_turn(0.5, 0.6, 0.1)), max_epochs=3)
    done = Convergence(Monitored("told"), folder=tmp_path / "best")
    done.load_state_dict(before.state_dict())
    model = Told(_in_turn(0.5))
    done.restore(model)
    assert float(model.steps) == 20
    # From now on there is a file beside the checkpoint.
    state = done.state_dict()
    assert "weights" not in state
    again = Convergence(Monitored("told"), folder=tmp_path / "best")
    again.load_state_dict(state)
    assert again.best == pytest.approx(0.6)
    (tmp_path / "best" / state["file"]).unlink()
    with pytest.raises(FileNotFoundError, match="best weights of the training that is resumed"):
        again.load_state_dict(state)


def test_a_training_leaves_no_weights_behind(tmp_path: Path) -> None:
    seen: list[Path] = []

    class Seen(Callback):
        def on_validation_end(self, *args: Any) -> None:
            seen.extend(tmp_path.glob("*/*.pt"))

    full = make_searchable(Net(), budget=0.5).full()
    data = batches_of(TRAIN, 16), batches_of(MIXED)
    options: dict[str, Any] = {"seed": 0, "max_epochs": 2, "monitor": "val_loss", "mode": "min"}
    train(lambda _: Net(), full, data, checkpoint_dir=tmp_path, callbacks=[Seen()], **options)
    assert seen
    assert not list(tmp_path.iterdir())
