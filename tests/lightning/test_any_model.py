"""A model that knows nothing of searches is searched, in every way that people train."""

from __future__ import annotations

from collections.abc import Iterator
import json
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
import optuna
from ordinary import TAGS, USERS, Data, Ordinary
from programs import run_program
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.classification import BinaryAUROC

from optuna_nis import NISSampler, SearchSpace
from optuna_nis.lightning import (
    NISCallback,
    any_model,
    objective,
    train_shortlist,
    warm_start,
)
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.nn import (
    apply_allocation,
    count_ids,
    make_searchable,
    set_choices,
    supernet_layers,
    swapped_layers,
)

SETTINGS: dict[str, Any] = {"num_updates": 4, "group_size": 4, "warmup": 0.5}


def _study(space: SearchSpace) -> optuna.Study:
    return optuna.create_study(direction="maximize", sampler=NISSampler(budget=space, seed=0))


def _scored(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [t for t in study.trials if t.user_attrs["fidelity"] == "supernet"]


class _Choices(Callback):
    """Notes which choice each step was trained under."""

    def __init__(self) -> None:
        self.full: list[bool] = []
        self.counts: set[int] = set()

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: Tensor
    ) -> None:
        layers = supernet_layers(pl_module).values()
        self.full.append(all(bool(layer._mask[:, :-1].all()) for layer in layers))
        self.counts |= {layer.num_choices for layer in layers}


def _search(
    model: LightningModule | None = None,
    trainer: dict[str, Any] | None = None,
    data: Data | None = None,
    **options: Any,
) -> tuple[optuna.Study, NISCallback, LightningModule]:
    torch.manual_seed(0)
    model = Ordinary() if model is None else model
    space = make_searchable(model, budget=0.5)
    study = _study(space)
    callback = NISCallback(space, study, **(SETTINGS | options))
    more = dict(trainer or {})
    callbacks = [callback, *more.pop("callbacks", [])]
    quiet_trainer(**({"max_epochs": 2, "callbacks": callbacks} | more)).fit(model, data or Data())
    return study, callback, model


@pytest.mark.slow
def test_five_lines() -> None:
    torch.manual_seed(0)
    data, model = Data(), Ordinary()
    counts = count_ids(data.train_dataloader(), model, progress=False)
    space = make_searchable(model, counts=counts, budget="25%")
    study = _study(space)
    callback = NISCallback(space, study, metric=BinaryAUROC(), **SETTINGS)
    quiet_trainer(max_epochs=4, callbacks=[callback]).fit(model, data)
    best = callback.train_candidates(
        lambda sizes: apply_allocation(Ordinary(), sizes, counts=counts), data
    )
    assert best.num_parameters <= space.budget
    assert len(_scored(study)) == 16
    assert all(0.4 < t.user_attrs["quality"] < 1.0 for t in _scored(study))
    final = apply_allocation(Ordinary(), best, counts=counts)
    trainer = quiet_trainer(max_epochs=8)
    trainer.fit(final, data)
    assert trainer.callback_metrics["val_auroc"] > 0.75
    assert sum(p.numel() for s in swapped_layers(final) for p in s.parameters()) == (
        best.num_parameters
    )


def test_one_choice_in_each_step_full_tables_in_every_other() -> None:
    choices = _Choices()
    study, callback, _ = _search(trainer={"callbacks": [choices]})
    assert choices.full == [True, False] * 20
    assert choices.counts == {1}
    assert len(_scored(study)) == 16
    assert callback.candidates
    for trial in _scored(study):
        assert trial.value == pytest.approx(trial.user_attrs["quality"])
        assert trial.user_attrs["quality"] < 0  # The negated validation loss.


def test_several_choices_in_a_step_on_demand() -> None:
    choices = _Choices()
    _search(trainer={"callbacks": [choices]}, choices_per_step=4)
    assert choices.counts == {4}


class Offsets(Ordinary):
    """Bags of any length, one after the other: the tensors of a batch differ in length."""

    def __init__(self) -> None:
        super().__init__()
        self.tags = torch.nn.EmbeddingBag(TAGS, 8, mode="max")

    def forward(self, batch: Any) -> Tensor:
        user, item, (tags, offsets) = batch[:3]
        rows = [self.user(user), self.item(item), self.tags(tags, offsets)]
        logits: Tensor = self.head(self.norm(torch.cat(rows, 1))).squeeze(1)
        return logits


class OffsetsData(Data):
    def _loader(self, part: str) -> Any:
        def collate(rows: Any) -> Any:
            user, item, tags, label = (torch.stack(column) for column in zip(*rows))
            bags = [bag[: 1 + int(u) % 3] for bag, u in zip(tags, user)]
            offsets = torch.tensor([0, *(len(bag) for bag in bags)])[:-1].cumsum(0)
            return user, item, (torch.cat(bags), offsets), label

        return DataLoader(self.parts[part], batch_size=128, collate_fn=collate)

    def train_dataloader(self) -> Any:
        return self._loader("train")

    def val_dataloader(self) -> Any:
        return [self._loader("val"), self._loader("train")]


class OffsetsOfTwo(Offsets):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self(batch), batch[3]


def test_bags_of_any_length() -> None:
    choices = _Choices()
    study, _, _ = _search(
        OffsetsOfTwo(),
        trainer={"callbacks": [choices], "limit_val_batches": 2},
        data=OffsetsData(),
        choices_per_step=4,  # As if it could be.
        metric=BinaryAUROC(),
    )
    assert len(_scored(study)) == 16
    assert choices.counts == {1}


def test_validation_data_that_ends_for_good() -> None:
    model = Ordinary()
    callback = NISCallback(make_searchable(model, budget=0.5), **SETTINGS)
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback])
    once = DataLoader(_Once(), batch_size=None)
    with pytest.raises(MisconfigurationException, match="validation dataloader gave no batch"):
        trainer.fit(model, Data().train_dataloader(), once)


class _Once(torch.utils.data.IterableDataset[Any]):
    def __init__(self) -> None:
        self._batches = iter(Data().val_dataloader())

    def __iter__(self) -> Iterator[Any]:
        return self._batches


def test_the_length_of_the_training_must_be_known() -> None:
    class Endless(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            while True:
                yield from Data().train_dataloader()

    loader = DataLoader(Endless(), batch_size=None)
    for trainer in ({"max_epochs": 1}, {"max_epochs": 1, "max_steps": 12}):
        model = Ordinary()
        space = make_searchable(model, budget=0.5)
        callback = NISCallback(space, **SETTINGS)
        fit = quiet_trainer(callbacks=[callback], **trainer).fit
        if "max_steps" not in trainer:
            with pytest.raises(MisconfigurationException, match="needs `max_steps` where the len"):
                fit(model, loader, Data().val_dataloader())
        else:
            fit(model, loader, Data().val_dataloader())
            assert len(_scored(callback.study)) == 16


def test_a_shortlist_by_the_loss() -> None:
    _, callback, model = _search()
    build = lambda sizes: apply_allocation(Ordinary(), sizes)  # noqa: E731
    found = train_shortlist(
        callback.candidates[:2],
        model,
        build,
        Data(),
        shortlist_epochs=(1,),
        monitor="val_loss",
        mode="min",
    )
    assert all(-1.0 < candidate.val_metric < 0.0 for candidate in found)
    other = {"user": torch.arange(USERS)}
    with pytest.raises(ValueError, match="must sort the ids of 'user' as the supernet does"):
        warm_start(apply_allocation(Ordinary(), found[0].allocation, counts=other), model)


def test_a_warm_start_takes_the_statistics_too() -> None:
    _, callback, model = _search()
    assert isinstance(model, Ordinary)
    small = apply_allocation(Ordinary(), callback.candidates[0])
    warm_start(small, model)
    assert torch.equal(small.norm.running_mean, model.norm.running_mean)
    set_choices(model, callback.space, [callback.candidates[0]])
    batch = next(iter(Data().val_dataloader()))
    torch.testing.assert_close(small.eval()(batch), model.eval()(batch))


def test_accumulated_gradients() -> None:
    study, _, _ = _search(trainer={"accumulate_grad_batches": 3})
    steps = [t.user_attrs["step"] for t in _scored(study)]
    assert len(steps) == 16
    assert min(steps) >= 7  # Of 14, the first half being the warm-up.


def test_steps_may_be_limited() -> None:
    study, _, _ = _search(trainer={"max_steps": 20, "max_epochs": -1})
    assert len(_scored(study)) == 16


class Manual(Ordinary):
    """Two optimisers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        tables, rest = self.optimizers()
        for optimiser in (tables, rest):
            optimiser.zero_grad()
        self.manual_backward(loss)
        for optimiser in (tables, rest):
            optimiser.step()
        for schedule in self.lr_schedulers():
            schedule.step()
        return loss

    def configure_optimizers(self) -> Any:
        tables = {id(p) for s in swapped_layers(self) for p in s.parameters()}
        split: tuple[list[Any], list[Any]] = ([], [])
        for parameter in self.parameters():
            split[id(parameter) not in tables].append(parameter)
        optimisers = [torch.optim.Adagrad(split[0], lr=0.1), torch.optim.Adam(split[1], lr=0.01)]
        return optimisers, [torch.optim.lr_scheduler.ExponentialLR(o, 0.99) for o in optimisers]


@pytest.mark.parametrize("limit", [{"max_epochs": 2}, {"max_epochs": -1, "max_steps": 60}])
def test_manual_optimisation(limit: dict[str, int]) -> None:
    study, _, _ = _search(Manual(), trainer=limit)
    steps = [t.user_attrs["step"] for t in _scored(study)]
    assert len(steps) == 16
    assert min(steps) > 0.4 * 2 * trainer_steps(limit)


def trainer_steps(limit: dict[str, int]) -> int:
    return limit["max_steps"] // 2 if "max_steps" in limit else 40


def test_bfloat16() -> None:
    study, callback, model = _search(
        trainer={"precision": "bf16-mixed"}, metric=BinaryAUROC(), choices_per_step=4
    )
    assert len(_scored(study)) == 16
    apply_allocation(model, callback.candidates[0])
    batch = next(iter(Data().val_dataloader()))
    model.eval()
    expected = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(batch).float(), expected, rtol=0.1, atol=0.1)
        model(batch).sum().backward()


class _Stop(Callback):
    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == 29:
            raise RuntimeError("The machine went down.")


def test_a_search_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole, _, _ = _search()

    torch.manual_seed(0)
    again = Ordinary()
    space = make_searchable(again, budget=0.5)
    study = _study(space)
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=25, save_top_k=-1)
    callbacks = [NISCallback(space, study, **SETTINGS), saving, _Stop()]
    with pytest.raises(RuntimeError, match="went down"):
        quiet_trainer(max_epochs=2, enable_checkpointing=True, callbacks=callbacks).fit(
            again, Data()
        )
    # What was scored after the checkpoint is scored again.
    (checkpoint,) = tmp_path.glob("*.ckpt")
    kept = [t for t in study.trials if t.user_attrs["step"] <= 25]
    assert 0 < len(kept) < 16
    restarted = optuna.create_study(direction="maximize", sampler=NISSampler(budget=space, seed=0))
    restarted.add_trials(kept)
    torch.manual_seed(1)
    resumed = Ordinary()
    make_searchable(resumed, budget=0.5)
    callback = NISCallback(space, restarted, **SETTINGS)
    trainer = quiet_trainer(max_epochs=2, callbacks=[callback])
    trainer.fit(resumed, Data(), ckpt_path=checkpoint)
    assert len(_scored(restarted)) == 16
    # The weights differ by the order of the batches. Until a reward of theirs is learned from, the
    # draws are the same.
    first = len(kept) + SETTINGS["group_size"]
    assert [t.params for t in _scored(restarted)][:first] == [t.params for t in _scored(whole)][
        :first
    ]
    assert [t.user_attrs["step"] for t in _scored(restarted)] == [
        t.user_attrs["step"] for t in _scored(whole)
    ]


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    script = Path(__file__).parent / "two_processes.py"
    run_program("-W", "ignore", script, tmp_path, timeout=120)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(first["widths"]) == 20
    assert first["widths"] == second["widths"]
    assert first["candidates"] == second["candidates"]
    # One process writes the trials. Their rewards are of all the validation data, of which each
    # process has seen half.
    assert len(first["trials"]["supernet"]) == 16
    assert not second["trials"]["supernet"] + second["trials"]["validated"]
    assert max(first["trials"]["validated"]) == pytest.approx(-first["loss_of_the_best"], abs=1e-5)
    # The positive is the 14th of the examples of one process; the other takes as many.
    assert first["rare_positives"]["num_examples"] == 16
    assert first["rare_positives"] == second["rare_positives"]


class SearchCLI(LightningCLI):
    def before_fit(self) -> None:
        space = make_searchable(self.model, budget=0.5)
        self.study = _study(space)
        self.trainer.callbacks.append(NISCallback(space, self.study, **SETTINGS))


def test_lightning_cli() -> None:
    quiet = ["enable_checkpointing", "enable_progress_bar", "enable_model_summary", "logger"]
    cli = SearchCLI(
        Ordinary,
        Data,
        save_config_callback=None,
        trainer_defaults={"max_epochs": 2, "num_sanity_val_steps": 0},
        args=[
            "fit",
            "--model.learning_rate=0.01",
            *[f"--trainer.{name}=false" for name in quiet],
        ],
    )
    assert cli.model.learning_rate == 0.01
    assert len(_scored(cli.study)) == 16


def test_a_training_for_each_trial() -> None:
    space = make_searchable(Ordinary(), budget=0.5)
    study = _study(space)
    run = objective(
        lambda sizes: apply_allocation(Ordinary(), sizes),
        Data(),
        space,
        max_epochs=2,
        monitor="val_loss",
        mode="min",
    )
    study.optimize(run, n_trials=2)
    for trial in study.trials:
        assert trial.value is not None
        assert trial.value == pytest.approx(max(trial.intermediate_values.values()))
        assert trial.value < 0


@pytest.mark.parametrize(
    ("validation", "test"),
    [
        ("val_loss", "test_loss"),
        ("validation_loss", "test_loss"),
        ("valid/auc", "test/auc"),
        ("valLoss", "testLoss"),
        ("eval_interval", "eval_interval"),
    ],
)
def test_the_value_of_a_test_is_called_as_that_of_the_validation(
    validation: str, test: str
) -> None:
    assert any_model._VALIDATION.sub("test", validation) == test
