from __future__ import annotations

from dataclasses import replace
import logging
from pathlib import Path
from typing import Any

from killing import KilledAt, KilledError
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
import optuna
from ordinary import ITEMS, TAGS, USERS, Data, Ordinary
from pairs import NextItem, Pairs
import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanSquaredError
from torchmetrics.classification import BinaryAUROC

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis._format import memory
from optuna_nis.data import EmbeddingDataModule, load_dataset
from optuna_nis.lightning import (
    FoundSizes,
    NISCallback,
    SearchPlan,
    convergence,
    reference_model,
    search_sizes,
    searching,
)
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.models import EmbeddingModule
from optuna_nis.nn import apply_allocation, count_ids, make_searchable
from optuna_nis.serve import load
from optuna_nis.serve.files import allocation_of
from optuna_nis.study.results import outputs_of
from optuna_nis.study.settings import metric_of

FAST: dict[str, Any] = {
    "epochs": 1,
    "num_updates": 2,
    "group_size": 4,
    "shortlist_epochs": (1,),
}


@pytest.mark.slow
def test_a_supernet_is_trained_until_it_no_longer_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convergence, "_LEAST_STEPS", 20)
    data = load_dataset("flights", "retrieval", max_rows=1_000, batch_size=256)
    build = reference_model(data.features, hidden=(8,))
    ended = Ended()
    lines: list[str] = []
    plan: dict[str, Any] = {"num_updates": 1, "shortlist_epochs": (1,)}
    found = search_sizes(build, data, 0.5, progress=lines.append, callbacks=[ended], **plan)
    assert "the supernet is trained until it no longer learns" in lines[0]
    epochs = [line for line in lines if line.startswith("Supernet: epoch")]
    assert epochs[-1].startswith(f"Supernet: epoch {len(epochs)}, ")
    assert ended.best_epoch < len(epochs)
    assert {s.embedding_dim for s in found.space.specs if s.name != "items"} == {64}


class Ended(Callback):
    """What the convergence of a supernet was."""

    best_epoch = 0

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        (own,) = (c for c in trainer.callbacks if isinstance(c, convergence.Convergence))
        assert own.ended
        self.best, self.best_epoch = own.best, own.best_epoch


@pytest.mark.slow
def test_or_as_long_as_the_plan_says() -> None:
    data = load_dataset("flights", "retrieval", max_rows=1_000, batch_size=256)
    build = reference_model(data.features, hidden=(8,))
    lines: list[str] = []
    plan = SearchPlan(epochs=2, num_updates=1, shortlist_epochs=(1,))
    search_sizes(build, data, 0.5, plan=plan, progress=lines.append)
    assert "the supernet is trained 2 epochs" in lines[0]
    epochs = [line for line in lines if line.startswith("Supernet: epoch")]
    assert [line.split(",")[0] for line in epochs] == [
        f"Supernet: epoch {epoch} of 2" for epoch in (1, 2)
    ]


def test_what_was_found_is_built_by_default(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="optuna")
    plan = FAST | {"shortlist_epochs": SearchPlan().shortlist_epochs}
    found = search_sizes(Ordinary, Data(), "25%", monitor="val_auroc", **plan)
    inside = found.build().user, found.build(found.space.full()).user
    chosen, full = (sum(p.numel() for p in layer.parameters()) for layer in inside)
    assert chosen == found.allocation["user"].num_parameters
    assert full == found.space.full()["user"].num_parameters
    assert found.study.best_trial.user_attrs["fidelity"] == "trained"
    assert found.space.allocation(found.study.best_params) == found.allocation
    assert "candidates" not in repr(found)
    # Nothing is advised that has been done.
    assert "The supernet is trained; candidates" in caplog.text
    assert "train_candidates" not in caplog.text


@pytest.mark.parametrize(
    ("build", "data", "options", "error", "message"),
    [
        (Ordinary(), Data(), {}, TypeError, "`build_model` must be a function .* got Ordinary"),
        (lambda sizes: Ordinary(), Data(), {}, ValueError, "without arguments, such as `lambda"),
        (lambda a, b: Ordinary(), Data(), {}, ValueError, r"got one of \['a', 'b'\]"),
        (lambda: nn.Embedding(9, 2), Data(), {}, TypeError, "LightningModule, got Embedding"),
        (Ordinary, [1], {}, ValueError, "`data` must be a data module, or .*, got 1"),
        (
            Ordinary,
            Data(),
            {"space": SearchSpace([EmbeddingSpec("user", 9, 2)])},
            ValueError,
            "`space` is for a `build_model` that takes sizes",
        ),
        (Ordinary, Data(), {"mode": "max"}, ValueError, "got 'max'; .* is `monitor_mode`"),
        # Before the data are fitted, which they cannot be.
        (Ordinary, [1], {"precisions": 3}, ValueError, "`precisions` must"),
        (Ordinary, [1], {"oov": "none"}, ValueError, "`oov` must"),
        (
            Ordinary,
            Data(),
            {"oov": "hash", "swap_options": {"oov": "shared"}},
            ValueError,
            "Either `oov` or .*, got 'hash' and 'shared'",
        ),
        (Ordinary, Data(), {"monitor_mode": "multi"}, ValueError, '`monitor_mode` must be "max"'),
        (Ordinary, Data(), {"max_epochs": 2}, TypeError, "Do you mean `epochs`"),
        (
            Ordinary,
            Data(),
            {"precision": (4,)},
            TypeError,
            r'`trainer_options={"precision": ...}`. Do you mean `precisions`',
        ),
        (Ordinary, Data(), {"monitors": "x"}, TypeError, "Do you mean `monitor`"),
        (
            Ordinary,
            Data(),
            {"accelerator": "cpu"},
            TypeError,
            '`trainer_options={"accelerator": ...}`',
        ),
        (
            Ordinary,
            Data(),
            {"trainer_options": {"max_epochs": 2}},
            ValueError,
            "`trainer_options` must not have 'max_epochs': `epochs`",
        ),
        (
            Ordinary,
            Data(),
            {"trainer_options": {"val_check_interval": 2}},
            ValueError,
            "`trainer_options` must not have 'val_check_interval': a search validates at the end",
        ),
        (Ordinary, Data(), {"swap_options": {"ids": 1}}, ValueError, "'outputs'.* got 'ids'"),
        (Ordinary, Data(), {"count_options": {"model": 1}}, ValueError, "'step'.* got 'model'"),
        (Ordinary, Data(), {"counts": {}, "count_options": {}}, ValueError, "Either `counts` or"),
    ],
)
def test_what_cannot_be_searched(
    build: Any, data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        search_sizes(build, data, "25%", **FAST, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"counts": {}}, "`counts` is for a `build_model` without arguments"),
        ({"count_options": {"step": print}}, "`count_options` is for a `build_model` without"),
        ({"swap_options": {"exclude": "user"}}, "`swap_options` is for a `build_model` without"),
        (
            {"budget": 0.5},
            "`space` has a budget, a mode, .*: give it alone, got budget",
        ),
        ({"mode": "single"}, "give it alone, got budget None, mode 'single', precisions"),
        ({"precisions": (8, 4)}, r"mode 'multi', precisions \(8, 4\) and oov 'zero' too"),
        ({"precisions": 8}, r"mode 'multi', precisions \(8,\) and"),
        ({"oov": "hash"}, "and oov 'hash' too"),
    ],
)
def test_what_is_not_for_a_function_of_the_sizes(options: dict[str, Any], message: str) -> None:
    space = SearchSpace([EmbeddingSpec("user", 9, 2)])
    with pytest.raises(ValueError, match=message):
        search_sizes(lambda sizes: Ordinary(), Data(), space=space, **FAST, **options)


@pytest.mark.slow
def test_a_search_of_precisions_keeps_to_its_bytes() -> None:
    found = search_sizes(Ordinary, Data(), "10%", precisions=(32, 8, 2), **FAST)
    assert found.space.precisions == (32, 8, 2)
    assert found.allocation.nbytes() <= found.space.budget_nbytes == found.space.full_nbytes // 10
    lines = str(found).splitlines()
    assert lines[-1].endswith(" in projections")
    assert f" with {memory(found.allocation.nbytes(), found.space.full_nbytes)}: " in lines[-1]


@pytest.mark.parametrize(
    "options", [{"oov": "hash"}, {"oov": "hash", "swap_options": {"oov": "hash"}}]
)
def test_ids_without_a_row_may_share_some(options: dict[str, Any]) -> None:
    found = search_sizes(Ordinary, Data(), "50%", **FAST, **options)
    assert {spec.oov for spec in found.space.specs} == {"hash"}
    assert found.allocation.nbytes() <= found.space.budget_nbytes


@pytest.mark.parametrize("told", [False, True])
def test_how_often_outputs_are_the_target_must_be_told(told: bool) -> None:
    data, options = Pairs(), {"outputs": ["head"]}
    ids: dict[str, Any] = {"ids": lambda batch: {"last": batch[0]}} if told else {}
    with pytest.raises(ValueError, match=r"has the outputs \['head'\], but .*'head': batch\[1\]"):
        search_sizes(
            lambda: NextItem(tied=False), data, 0.5, swap_options=options, count_options=ids
        )


def test_memory_in_output_tables_is_told() -> None:
    def ids(batch: Any) -> dict[str, Any]:
        return {"last": batch[0], "head": batch[1]}

    found = search_sizes(
        lambda: NextItem(tied=False),
        Pairs(),
        0.5,
        swap_options={"outputs": ["head"]},
        count_options={"ids": ids},
        **FAST,
    )
    assert outputs_of(found.study) == ["head"]
    *sizes, last = str(found).splitlines()
    assert sizes == str(found.allocation).splitlines()
    assert last.startswith(f"Validation val_loss {-found.study.best_value:.4f} with ")
    number = found.allocation["head"].num_parameters
    assert f" of them in projections, {number:,} in output tables" in last


class WithTest(Ordinary):
    def test_step(self, batch: Any, batch_idx: int) -> None:
        batches_tested.append(batch_idx)
        self.val_auroc.update(self(batch), batch[3])
        self.log("test_auroc", self.val_auroc)


batches_tested: list[int] = []


def test_retraining_goes_by_the_options_of_the_search() -> None:
    loaders = (Data().train_dataloader(), Data().val_dataloader(), Data().val_dataloader())
    options = {"limit_train_batches": 3, "limit_test_batches": 2, "enable_checkpointing": False}
    found = search_sizes(
        WithTest, loaders, "25%", monitor="val_auroc", trainer_options=options, **FAST
    )
    steps = Steps()
    results = found.retrain(seeds=[0], max_epochs=1, callbacks=[steps, Fresh()])
    # Three finalists, uniform, full and mixed sizes; on untrained weights a test of its name.
    assert steps.number == 6 * 3
    assert batches_tested == [0] + len(results) * [0, 1]
    assert [result.name for result in results][:3] == ["nis", "uniform", "full"]
    assert str(results).splitlines() == [*map(str, results), results.verdict]
    assert str(results).startswith("NIS: val_auroc 0.")
    found.retrain(seeds=[0], max_epochs=1, callbacks=[steps], limit_train_batches=1)
    assert steps.number == 6 * 3 + 6
    steps.number = 0
    with pytest.raises(ValueError, match=r"one of \['test_auroc'\], got 'auc'"):
        found.retrain(test_monitor="auc", callbacks=[steps])
    untested = replace(found, _build=lambda sizes: Ordinary())
    with pytest.raises(ValueError, match="Ordinary must define `test_step`"):
        untested.retrain(callbacks=[steps])
    assert steps.number == 0


def test_a_retraining_that_was_interrupted_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaders = (Data().train_dataloader(), Data().val_dataloader(), Data().val_dataloader())
    trainer = {"limit_train_batches": 3}
    study = optuna.create_study(direction="maximize")
    found = search_sizes(
        WithTest, loaders, "25%", monitor="val_auroc", study=study, trainer_options=trainer, **FAST
    )
    options: dict[str, Any] = {"seeds": [0, 1], "max_epochs": 1, "checkpoint_dir": tmp_path / "c"}
    lines: list[str] = []

    def kept() -> Callback:
        return EarlyStopping("val_auroc", mode="max", patience=9)

    def interrupted(line: str) -> None:
        lines.append(line)
        if line.startswith("NIS, finalist 3") and "validation" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found.retrain(progress=interrupted, callbacks=[kept()], **options)
    with pytest.raises(KeyboardInterrupt):
        found.retrain(progress=interrupted, **(options | {"max_epochs": 2}))
    assert not any("finished before" in line for line in lines)
    lines.clear()
    results = found.retrain(progress=lines.append, callbacks=[kept()], **options)
    assert sum("finished before" in line for line in lines) == 3
    assert not any("trained once more" in line for line in lines)
    assert not (tmp_path / "c").exists()
    lines.clear()
    # What has led to results may be asked for again with another model, which need not show.
    again = found.retrain(progress=lines.append, **options)
    assert not any("finished before" in line for line in lines)
    assert [result.values for result in again] == [result.values for result in results]
    assert "begins anew" not in caplog.text
    with pytest.raises(KilledError):
        found.retrain(callbacks=[Untold(), KilledAt(0)], **options)
    assert "begins anew, in spite of `checkpoint_dir`" in caplog.text
    assert "and Untold cannot be told from others" in caplog.text


def test_other_batches_and_models_are_other_trainings(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    options: dict[str, Any] = {"epochs": 1, "num_updates": 1, "budget": "25%"}

    def data(batch_size: int) -> EmbeddingDataModule:
        return load_dataset("flights", "ranking", max_rows=2_000, batch_size=batch_size)

    def found(batch_size: int, **of_model: Any) -> FoundSizes:
        module = data(batch_size)
        build = reference_model(module.features, **of_model)
        return search_sizes(build, module, study=study, **options)

    lines: list[str] = []

    def interrupted(line: str) -> None:
        lines.append(line)
        if "validation" in line:
            raise KeyboardInterrupt

    for sizes in (found(200), found(100), found(100, learning_rate=0.1)):
        with pytest.raises(KeyboardInterrupt):
            sizes.retrain(seeds=[0], max_epochs=1, checkpoint_dir=tmp_path, progress=interrupted)
    assert not any("finished before" in line for line in lines)


def test_a_search_goes_on_with_the_same_model_and_data_alone(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    lines: list[str] = []

    class Wider(Ordinary):
        def __init__(self) -> None:
            super().__init__()
            self.more = nn.Linear(2, 2)

    # Of other rows, ids are more or less frequent.
    counts = count_ids(Data().train_dataloader(), Ordinary(), progress=False)
    more = {name: 2 * own for name, own in counts.items()}

    def begun(build: Any = Ordinary, **options: Any) -> None:
        lines.clear()
        with pytest.raises(KilledError):
            search_sizes(
                build,
                Data(),
                "25%",
                monitor="val_auroc",
                study=study,
                checkpoint_dir=tmp_path,
                callbacks=[KilledAt(3)],
                progress=lines.append,
                **(FAST | {"counts": counts} | options),
            )

    begun()
    assert not any("interrupted" in line for line in lines)
    begun()
    assert lines[0].startswith("Going on with the search ")
    for told, options in (
        ("The data has other rows now", {"counts": more}),
        ("another one: another model.", {"build": Wider}),
        ("another one: num_updates 2 (now 3).", {"num_updates": 3}),
    ):
        begun(**options)
        assert any(told in line for line in lines), lines
        assert not any("Going on" in line for line in lines)
    # What else tells it is beside that, and not in its place.
    begun(settings={"part": 1})
    begun(Wider, settings={"part": 1})
    assert not any("Going on" in line for line in lines)
    begun(settings={"part": 1})
    assert lines[0].startswith("Going on with the search ")


def test_a_reference_model_on_dataloaders_becomes_a_file(tmp_path: Path) -> None:
    module = load_dataset("flights", "ranking", max_rows=2_000, batch_size=200)
    module.setup("test")
    loaders = (module.train_dataloader(), module.val_dataloader(), module.test_dataloader())
    build = reference_model(module.features)
    found = search_sizes(build, loaders, "25%", epochs=1, num_updates=1)
    with pytest.raises(ValueError, match="`output` must be a file"):
        found.retrain(seeds=[0], max_epochs=1, output=tmp_path)
    found.retrain(seeds=[0], max_epochs=1, output=tmp_path / "model.pt")
    again = load(tmp_path / "model.pt", build)
    assert isinstance(again, EmbeddingModule)


class Untold(Callback):
    def __init__(self) -> None:
        self.lines = (line for line in "ab")

    def __deepcopy__(self, memo: Any) -> Untold:
        return self


class Fresh(Callback):
    """Has a state that no other training is to begin with."""

    def __init__(self) -> None:
        self.began = False

    def on_fit_start(self, *_: Any) -> None:
        assert not self.began
        self.began = True


class Steps(Callback):
    def __init__(self) -> None:
        self.number = 0

    def __deepcopy__(self, memo: Any) -> Steps:
        return self  # Of all trainings.

    def on_train_batch_end(self, *_: Any) -> None:
        self.number += 1


def test_data_without_a_test_are_refused_before_anything_is_trained(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines: list[str] = []
    loaders = (Data().train_dataloader(), Data().val_dataloader())
    found = search_sizes(WithTest, loaders, "25%", monitor="val_auroc", **FAST)
    with pytest.raises(ValueError, match="dataloader of the test as its third"):
        found.retrain(progress=lines.append)
    options: dict[str, Any] = {"seeds": [0], "max_epochs": 1, "limit_train_batches": 1}
    with pytest.raises(ValueError, match="`output` must be a file to write"):
        found.retrain(data=(*loaders, loaders[1]), output=tmp_path, **options)
    results = found.retrain(
        data=(*loaders, Data().val_dataloader()), output=tmp_path / "model.pt", **options
    )
    assert results.best is not None
    taken = results.best.allocation
    assert taken is not None
    model = load(tmp_path / "model.pt", lambda sizes: apply_allocation(WithTest(), sizes))
    assert allocation_of(model).nbytes() == taken.nbytes()
    quality = BinaryAUROC()
    with torch.no_grad():
        for batch in loaders[1]:
            quality.update(model.eval()(batch), batch[3])
    assert results.best.val_values == (pytest.approx(float(quality.compute())),)
    assert [result.name for result in results][:3] == ["nis", "uniform", "full"]
    # What has begun is logged where nobody asks for the lines.
    assert "6 sizes to train from scratch with seed 0." in caplog.text
    data = load_dataset("movielens-small", max_rows=1_000, withhold_test=True)
    found = search_sizes(reference_model(data.features), data, "25%", **FAST)
    with pytest.raises(ValueError, match="`data` must have a test part"):
        found.retrain(progress=lines.append)
    others = load_dataset("movielens-small", max_rows=900)
    with pytest.raises(
        ValueError, match=r"`data` must be those of the search.* other ids of 'user'"
    ):
        found.retrain(data=others, progress=lines.append)
    assert lines == []


class _MoreThanTensors(WithTest):
    def get_extra_state(self) -> Any:
        return {"names": ["a"]}

    def set_extra_state(self, state: Any) -> None:
        pass


def test_what_cannot_be_written_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    loaders = (Data().train_dataloader(), Data().val_dataloader(), Data().val_dataloader())
    found = search_sizes(_MoreThanTensors, loaders, "25%", monitor="val_auroc", **FAST)
    lines: list[str] = []
    with pytest.raises(ValueError, match="must be tensors only, got '_extra_state' of type dict"):
        found.retrain(output=tmp_path / "model.pt", progress=lines.append)
    assert lines == []


class _ByRmse(Ordinary):
    """Logs a metric whose name does not say that small is good."""

    def __init__(self) -> None:
        super().__init__()
        self.rmse = MeanSquaredError(squared=False)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.rmse.update(self(batch).sigmoid(), batch[3].float())
        self.log("val_rmse", self.rmse)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.02)
        schedule = ReduceLROnPlateau(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "monitor": "val_rmse"},
        }


def test_what_is_best_is_known_when_a_study_is_opened_again() -> None:
    options: dict[str, Any] = {"monitor": "val_rmse", **FAST, "epochs": 2}
    found = search_sizes(_ByRmse, Data(), "25%", **options)
    again = search_sizes(_ByRmse, Data(), "25%", study=found.study, **options)
    assert again.allocation == found.allocation
    assert again._monitored.mode == found._monitored.mode == "min"
    assert all(candidate.val_metric < 0 for candidate in found.candidates)


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", [{"monitor": "val_rmse"}, {"metric": BinaryAUROC()}, {"metric": MeanSquaredError()}]
)
def test_a_supernet_goes_back_to_its_best_by_what_the_search_goes_by(
    how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only the metric itself tells whether it is to be large or small."""
    monkeypatch.setattr(convergence, "_LEAST_STEPS", 20)
    values: list[float] = []

    class Values(Ended):
        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            (value,) = (
                float(value)
                for name, value in trainer.callback_metrics.items()
                if name in ("val_rmse", "nis_BinaryAUROC", "nis_MeanSquaredError")
            )
            values.append(value)

    class ByRmse(_ByRmse):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            if "monitor" in how:
                super().validation_step(batch, batch_idx)
            return self(batch).sigmoid(), batch[3]

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.1)

    ended = Values()
    plan = {"num_updates": 1, "group_size": 2, "shortlist_epochs": (1,)}
    search_sizes(ByRmse, Data(), "25%", callbacks=[ended], **how, **plan)
    best = max if isinstance(how.get("metric"), BinaryAUROC) else min
    assert min(values) < max(values)
    assert ended.best == best(values)


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [None, 1])
def test_what_is_scored_is_what_the_shortlist_begins_with(
    epochs: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a callback does at the end of the training, such as averaging weights."""
    monkeypatch.setattr(convergence, "_LEAST_STEPS", 20)
    seen: list[torch.Tensor] = []
    score, shortlist = NISCallback.on_train_end, searching.run_shortlist

    class Averaging(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
            with torch.no_grad():
                next(pl_module.parameters()).add_(1.0)

    def noted(self: Any, trainer: Trainer, pl_module: Any) -> None:
        seen.append(next(pl_module.parameters()).clone())
        score(self, trainer, pl_module)

    def begun(candidates: Any, supernet: Any, *args: Any, **options: Any) -> Any:
        seen.append(next(supernet.parameters()).clone())
        return shortlist(candidates, supernet, *args, **options)

    monkeypatch.setattr(NISCallback, "on_train_end", noted)
    monkeypatch.setattr(searching, "run_shortlist", begun)
    options = FAST | {"epochs": epochs, "callbacks": [Averaging()]}
    search_sizes(Ordinary, Data(), "25%", monitor="val_auroc", **options)
    assert torch.equal(*seen)


@pytest.mark.slow
def test_a_loss_is_to_be_small_for_candidates_too() -> None:
    torch.manual_seed(0)
    model = Ordinary()
    space = make_searchable(model, budget=0.5)
    search = NISCallback(space, monitor="val_auroc", num_updates=2, group_size=4)
    quiet_trainer(max_epochs=1, callbacks=[search]).fit(model, Data())
    search.train_candidates(Ordinary, Data(), monitor="val_loss")
    trained = [t.value for t in search.study.trials if t.user_attrs["fidelity"] == "trained"]
    assert search.study.best_value == max(trained) < 0


@pytest.mark.slow
def test_data_of_unknown_length_are_told_before_anything_is_trained() -> None:
    class Rows(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(Data().train_dataloader().dataset)

    data = (DataLoader(Rows(), batch_size=50), Data().val_dataloader())
    with pytest.raises(ValueError, match="`shortlist_batches` must be 1 for training data of unk"):
        search_sizes(Ordinary, data, "25%", monitor="val_auroc", **FAST, shortlist_batches=0.3)
    found = search_sizes(Ordinary, data, "25%", monitor="val_auroc", **FAST)
    assert found.allocation.num_parameters <= found.space.budget


def test_a_plan_that_is_none_is_told() -> None:
    with pytest.raises(TypeError, match="`plan` must be a SearchPlan, got dict"):
        search_sizes(Ordinary, Data(), "25%", plan={"epochs": 2})  # type: ignore[arg-type]


def _study() -> optuna.Study:
    return optuna.create_study(direction="maximize", study_name="mine")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"monitor": "val_loss"}, "'mine' is searched by 'val_auroc', not by 'val_loss'"),
        ({"metric": MeanSquaredError()}, "by 'val_auroc', not by 'MeanSquaredError'"),
        (
            {"monitor": "val_auroc", "monitor_mode": "min"},
            "by 'val_auroc', the best being its max, not by 'val_auroc', the best being its min",
        ),
    ],
)
def test_a_study_has_one_metric(other: dict[str, Any], message: str) -> None:
    study = _study()
    first = search_sizes(Ordinary, Data(), "25%", monitor="val_auroc", study=study, **FAST)
    before = study.trials, study.user_attrs
    with pytest.raises(ValueError, match=message):
        search_sizes(Ordinary, Data(), "25%", study=study, **other, **FAST)
    assert (study.trials, study.user_attrs) == before
    again = search_sizes(Ordinary, Data(), "25%", monitor="val_auroc", study=study, **FAST)
    assert again.allocation == first.allocation


def test_a_study_whose_search_was_interrupted_has_one_metric() -> None:
    study = _study()

    class Stop(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            raise KeyError("stop")

    options = FAST | {"study": study}
    with pytest.raises(KeyError):
        search_sizes(Ordinary, Data(), 0.25, monitor="val_auroc", callbacks=[Stop()], **options)
    with pytest.raises(ValueError, match="'val_auroc', not by 'val_loss'"):
        search_sizes(Ordinary, Data(), 0.25, monitor="val_loss", **options)


def test_a_study_is_searched_for_the_largest_or_the_smallest_values() -> None:
    options = FAST | {"study": _study(), "monitor": "val_auroc"}

    def stop(line: str) -> None:
        if line.startswith("Training"):
            raise KeyError("stop")

    with pytest.raises(KeyError):
        search_sizes(Ordinary, Data(), 0.25, progress=stop, **options)
    with pytest.raises(ValueError, match="its max, not by 'val_auroc', the best being its min"):
        search_sizes(Ordinary, Data(), 0.25, monitor_mode="min", **options)


def test_a_metric_that_is_asked_for_has_its_own_name() -> None:
    data = load_dataset("flights", "retrieval", max_rows=1_000, batch_size=256)
    build = reference_model(data.features, hidden=(8,))
    study = _study()
    search_sizes(build, data, 0.5, study=study, monitor="val_ndcg@10", monitor_mode="max", **FAST)
    assert metric_of(study) == "val_ndcg@10"
    with pytest.raises(ValueError, match="is searched by 'val_ndcg@10', not by 'MRR'"):
        search_sizes(build, data, 0.5, study=study, **FAST)


def test_a_study_that_has_ended_says_so_and_what_is_other_about_the_data(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="optuna")
    options = FAST | {"monitor": "val_auroc", "study": _study()}
    sizes = {"user": USERS, "item": ITEMS, "tags": TAGS}
    counts = {name: 100 * torch.arange(size, 0, -1) for name, size in sizes.items()}
    search_sizes(Ordinary, Data(), "25%", counts=counts, **options)
    caplog.clear()
    # As counts of a sample of the batches may differ.
    nearly = {name: own + own // 20 for name, own in counts.items()}
    search_sizes(Ordinary, Data(), "25%", counts=nearly, **options)
    assert "searched to the end; nothing is left to do" in caplog.text
    assert "other data" not in caplog.text
    other = counts | {"user": counts["user"] * 2}
    search_sizes(Ordinary, Data(), "25%", counts=other, **options)
    assert "was searched on other data: the ids of ['user'] come more or less" in caplog.text


@pytest.mark.parametrize("value", [True, 1])
def test_trainers_that_keep_nothing_are_refused_at_once(value: object) -> None:
    options = {"barebones": value}
    with pytest.raises(ValueError, match="`trainer_options` must not have 'barebones'"):
        search_sizes(Ordinary, [1], trainer_options=options)
    # What it is without.
    with pytest.raises(ValueError, match="`data` must be"):
        search_sizes(Ordinary, [1], trainer_options={"barebones": False})
