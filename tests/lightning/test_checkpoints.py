from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout
from killing import KilledAt, KilledError
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.plugins.io import torch_io
from lightning.pytorch import Callback, Trainer
import numpy as np
import optuna
from ordinary import Data, Ordinary
import pytest
from tiny import TRAIN, Net, batches_of
import torch

from optuna_nis import SearchPlan, SearchSpace
from optuna_nis.lightning import (
    DataConfig,
    checkpoints,
    convergence,
    reference_model,
    search,
    search_sizes,
    train_shortlist,
)
from optuna_nis.lightning.checkpoints import SearchFolder, save_checkpoint
from optuna_nis.lightning.training import quiet_trainer
from optuna_nis.study.keys import PLAN_ATTR
from optuna_nis.study.results import SEARCH_SECONDS_ATTR, best_allocation
from optuna_nis.study.searches import join, searches_of

SMALL: dict[str, Any] = {
    "budget": 0.5,
    "embedding_dim": 8,
    "epochs": 3,
    "num_updates": 6,
    "plan": SearchPlan(warmup=0.7, shortlist_epochs=(1, 2, 2)),
}


@pytest.fixture
def _all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints after every batch."""
    monkeypatch.setattr(checkpoints, "_INTERVAL", 0.0)
    monkeypatch.setattr(checkpoints, "_MAX_SHARE", 1.0)


def _killed_at_line(start: str, count: int = 1) -> Callable[[str], None]:
    seen = []

    def progress(line: str) -> None:
        if line.startswith(start):
            seen.append(line)
            if len(seen) == count:
                raise KilledError

    return progress


def _counts(study: optuna.Study) -> dict[str, int]:
    return dict(Counter(trial.user_attrs["fidelity"] for trial in study.trials))


@pytest.mark.slow
@pytest.mark.usefixtures("_all_the_time")
def test_a_search_that_is_killed_again_and_again_goes_on(
    data: DataConfig, study: optuna.Study, tmp_path: Path
) -> None:
    folder = tmp_path / "checkpoints"
    steps: list[int] = []

    class Steps(Callback):
        def on_train_start(self, trainer: Trainer, *args: Any) -> None:
            steps.append(trainer.global_step)

    # A step of an epoch, its end, one with the controller at work, the last one.
    for step in (5, 37, 85, 110):
        with pytest.raises(KilledError):
            search(
                study,
                data,
                **SMALL,
                checkpoint_dir=folder,
                callbacks=[Steps(), KilledAt(step)],
            )
    assert len(searches_of(study)) == 1
    assert steps == [0, 5, 37, 85]
    with pytest.raises(KilledError):
        search(study, data, **SMALL, checkpoint_dir=folder, progress=_killed_at_line("Training"))
    assert _counts(study)["supernet"] == 48
    assert (validated := _counts(study)["validated"]) > 1
    for line in ("round 1 of 3: 2", "round 2 of 3: 1"):
        with pytest.raises(KilledError):
            search(study, data, **SMALL, checkpoint_dir=folder, progress=_killed_at_line(line))
    best = search(study, data, **SMALL, checkpoint_dir=folder)
    assert best == best_allocation(study)
    counts = _counts(study)
    assert counts["supernet"] == 48
    assert counts["validated"] == validated
    assert counts["trained"] + counts["dropped"] > 1
    (only,) = searches_of(study).values()
    assert {trial.user_attrs["search"] for trial in study.trials} == {only.id}
    assert only.seconds is not None
    assert study.user_attrs[SEARCH_SECONDS_ATTR] == only.seconds > 0
    assert not folder.exists()
    assert search(study, data, **SMALL, checkpoint_dir=folder) == best
    assert _counts(study) == counts


@pytest.mark.slow
@pytest.mark.usefixtures("_all_the_time")
def test_an_interrupted_search_ends_like_one_that_was_not(
    data: DataConfig, tmp_path: Path
) -> None:
    whole = optuna.create_study(direction="maximize")
    found = search(whole, data, **SMALL)
    study = optuna.create_study(direction="maximize")
    for step in (20, 90):
        with pytest.raises(KilledError):
            search(study, data, **SMALL, checkpoint_dir=tmp_path, callbacks=[KilledAt(step)])
    for line in ("Training", "round 2 of 3: 1"):
        with pytest.raises(KilledError):
            search(study, data, **SMALL, checkpoint_dir=tmp_path, progress=_killed_at_line(line))
    assert search(study, data, **SMALL, checkpoint_dir=tmp_path) == found
    # What memory costs, too.
    assert any(0 < t.user_attrs["penalty"] < 0.1 for t in whole.trials)
    assert [(t.params, t.value) for t in study.trials] == [
        (t.params, t.value) for t in whole.trials
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("_all_the_time")
def test_so_does_one_that_ends_when_nothing_more_is_learned(
    data: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convergence, "_LEAST_STEPS", 50)
    seen: list[tuple[int, int, bool]] = []

    class Seen(Callback):
        def on_train_end(self, trainer: Trainer, *args: Any) -> None:
            (own,) = (c for c in trainer.callbacks if isinstance(c, convergence.Convergence))
            seen.append((own.best_step, trainer.global_step, own.ended))

    options = SMALL | {"epochs": None, "plan": SearchPlan(shortlist_epochs=(1,))}
    whole = optuna.create_study(direction="maximize")
    found = search(whole, data, **options, callbacks=[Seen()])
    ((best_step, last_step, ended),) = seen
    assert ended
    study = optuna.create_study(direction="maximize")
    # After the first validation; where the best is waited for.
    assert 37 <= best_step < 90 < last_step
    for step in (37, 90):
        with pytest.raises(KilledError):
            search(study, data, **options, checkpoint_dir=tmp_path, callbacks=[KilledAt(step)])
    assert search(study, data, **options, checkpoint_dir=tmp_path, callbacks=[Seen()]) == found
    assert seen[1:] == seen[:1]
    assert [(t.params, t.value) for t in study.trials] == [
        (t.params, t.value) for t in whole.trials
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("_all_the_time")
def test_a_shortlist_goes_on_where_it_was_interrupted(data: DataConfig, tmp_path: Path) -> None:
    datamodule = data.datamodule(withhold_test=True)
    space = SearchSpace(datamodule.embedding_specs(8), budget=0.5)
    build = reference_model(datamodule.features)
    torch.manual_seed(0)
    supernet = build(space)
    sizes = [space.with_budget(int(space.budget / share)) for share in (1, 2, 4)]
    shortlist = [each.sample(np.random.default_rng(0), each.budget) for each in sizes]
    run = (shortlist, supernet, build, datamodule)
    rounds: dict[str, Any] = {"shortlist_epochs": (1, 2, 2)}
    whole = train_shortlist(*run, **rounds)
    for line in ("round 1 of 3: 2", "round 1 of 3: 3", "round 2 of 3: 1"):
        with pytest.raises(KilledError):
            train_shortlist(*run, **rounds, folder=tmp_path, progress=_killed_at_line(line))
    begun = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*-1.ckpt")}
    assert len(begun) == 3
    assert train_shortlist(*run, **rounds, folder=tmp_path) == whole
    assert train_shortlist(*run, **rounds, folder=tmp_path) == whole


def test_another_search_starts_where_none_is_left_to_go_on_with(
    data: DataConfig, study: optuna.Study, tmp_path: Path
) -> None:
    once = {"checkpoint_dir": tmp_path / "checkpoints"}
    with pytest.raises(KilledError):
        search(study, data, **SMALL, **once, callbacks=[KilledAt(5)])
    ((first, _),) = searches_of(study).items()
    held = SearchFolder(once["checkpoint_dir"] / first)
    # A process is at work on it.
    search(study, data, **SMALL, **once)
    assert len(searches_of(study)) == 2
    held.release()
    # With other settings it is not the same search, and the study has been searched to the end.
    lines: list[str] = []
    for other in ({"num_updates": 7}, {"trainer_options": {"gradient_clip_val": 0.5}}):
        lines.clear()
        search(study, data, **(SMALL | other), **once, progress=lines.append)
        assert "nothing is left to do" in lines[-1]
    lines.clear()
    search(study, data, **SMALL, **once, progress=lines.append)
    assert f"Going on with the search {first} that was interrupted." in lines
    assert {each.seconds is None for each in searches_of(study).values()} == {False}
    assert _counts(study)["supernet"] == 96
    assert study.user_attrs[SEARCH_SECONDS_ATTR] == pytest.approx(
        sum(each.seconds or 0.0 for each in searches_of(study).values())
    )


def test_a_search_that_was_begun_with_a_plan_of_before_keeps_its_rounds(
    data: DataConfig, study: optuna.Study, tmp_path: Path
) -> None:
    rounds: dict[str, Any] = {"shortlist_epochs": (1, 1), "warm_rounds": 2}
    options: dict[str, Any] = SMALL | {"epochs": 1, "checkpoint_dir": tmp_path}
    with pytest.raises(KilledError):
        search(
            study,
            data,
            **options | {"plan": SearchPlan(warmup=0.7, **rounds)},
            progress=_killed_at_line("Training"),
        )
    plan = study.user_attrs[PLAN_ATTR]
    before = {k: v for k, v in plan.items() if k not in ("warm_rounds", "keep_simple")}
    study.set_user_attr(PLAN_ATTR, before)
    other = SearchPlan(warmup=0.7, **rounds | {"warm_rounds": 1})
    with pytest.raises(ValueError, match=r"warm_rounds unset \(now 1\), keep_simple unset \(now"):
        search(study, data, **options | {"plan": other})
    del options["plan"]
    lines: list[str] = []
    search(study, data, **options, progress=lines.append)
    assert len(searches_of(study)) == 1
    assert any(line.startswith("round 2 of 2") for line in lines)
    assert not any("from scratch" in line for line in lines)


def test_no_process_goes_on_before_a_checkpoint_is_in_its_place(tmp_path: Path) -> None:
    path, seen = tmp_path / "x.ckpt", []
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    trainer.save_checkpoint = lambda file: file.touch()  # type: ignore[method-assign]
    trainer.strategy.barrier = lambda *args: seen.append(path.exists())
    save_checkpoint(trainer, path)
    assert seen == [True]


def test_a_folder_is_of_one_process(study: optuna.Study, tmp_path: Path) -> None:
    folder = SearchFolder(tmp_path / "one")
    join(study, folder.search_id, seed=0, settings={"epochs": 1})
    with pytest.raises(Timeout):
        SearchFolder(tmp_path / folder.search_id)
    assert SearchFolder.of_interrupted(study, tmp_path, {"epochs": 1}) is None
    folder.note_time()
    folder.release()
    assert SearchFolder.of_interrupted(study, tmp_path, {"epochs": 2}) is None
    again = SearchFolder.of_interrupted(study, tmp_path, {"epochs": 1})
    assert again is not None
    assert again.search_id == folder.search_id
    assert again.seconds > float((tmp_path / folder.search_id / "seconds").read_text()) > 0
    again.remove()
    assert list(tmp_path.parent.glob(tmp_path.name)) == []


def _at_work(tmp_path: Path, **options: Any) -> Trainer:
    """A trainer after a step of a model with a state of its optimiser."""
    model = Net()
    model.configure_optimizers = lambda: torch.optim.Adam(model.parameters())  # type: ignore[method-assign]
    trainer = quiet_trainer(max_steps=1, **options)
    checkpoints.without_copies(trainer, tmp_path / "own")
    trainer.fit(model, batches_of(TRAIN, 16))
    return trainer


def test_a_checkpoint_is_not_in_memory_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    atomic = torch_io._atomic_save
    monkeypatch.setattr(
        torch_io, "_atomic_save", lambda state, path: (written.append(path), atomic(state, path))
    )
    trainer = _at_work(tmp_path)
    (tmp_path / "own").mkdir()
    own, others = tmp_path / "own" / "a.ckpt", tmp_path / "others.ckpt"
    checkpoints.save_checkpoint(trainer, own)
    assert not written
    # Those that users let the trainer write are Lightning's business.
    trainer.save_checkpoint(others)
    assert written == [others]
    read: list[tuple[Any, Any]] = []

    def load(path: Path, **how: Any) -> Any:
        read.append((how.get("mmap"), torch_load(path, **how)))
        return read[-1][1]

    torch_load = torch.load
    monkeypatch.setattr(torch, "load", load)
    found, expected = map(trainer.strategy.load_checkpoint, (own, others))
    (mapped, in_file), (otherwise, _) = read
    assert (mapped, otherwise) == (True, None)
    for key in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=0)
    # What is taken as it is must not be in a file that is replaced; weights are copied.
    one, other = (each["optimizer_states"][0]["state"][0]["exp_avg"] for each in (found, in_file))
    assert one.data_ptr() != other.data_ptr()
    assert found["state_dict"] is in_file["state_dict"]


def test_who_writes_checkpoints_in_a_way_of_his_own_keeps_it(tmp_path: Path) -> None:
    class Own(TorchCheckpointIO):
        pass

    own = Own()
    assert _at_work(tmp_path, plugins=[own]).strategy.checkpoint_io is own


@dataclass
class Settings:
    rate: Any = np.logspace(-3, -1, 3)[1]
    folder: Path = Path("here")


class Objects(Ordinary):
    """Whose checkpoints hold more than tensors and plain values."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.rate)
        self.save_hyperparameters()
        self.extra = np.arange(3)

    def get_extra_state(self) -> Any:
        return {"extra": self.extra, "settings": Settings()}

    def set_extra_state(self, state: Any) -> None:
        self.extra = state["extra"]

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.val_auroc.update(self(batch), batch[3])
        self.log("test_auroc", self.val_auroc)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


@pytest.mark.slow
@pytest.mark.usefixtures("_all_the_time")
def test_models_whose_checkpoints_hold_objects_go_on(tmp_path: Path) -> None:
    loaders = (Data().train_dataloader(), Data().val_dataloader(), Data().val_dataloader())
    options: dict[str, Any] = {
        "monitor": "val_auroc",
        "checkpoint_dir": tmp_path / "c",
        "epochs": 2,
        "num_updates": 2,
        "shortlist_epochs": (1, 2),
    }

    def build() -> Objects:
        return Objects(Settings())

    study = optuna.create_study(direction="maximize")
    options["study"] = study
    for step in (5, 25):
        with pytest.raises(KilledError):
            search_sizes(build, loaders, "25%", callbacks=[KilledAt(step)], **options)
    with pytest.raises(KilledError):
        search_sizes(build, loaders, "25%", progress=_killed_at_line("round 2 of 2: 1"), **options)
    found = search_sizes(build, loaders, "25%", **options)
    assert len(searches_of(study)) == 1
    kept: dict[str, Any] = {"seeds": [0], "max_epochs": 2, "checkpoint_dir": tmp_path / "c"}
    with pytest.raises(KilledError):
        found.retrain(progress=_killed_at_line("NIS, finalist 3"), **kept)
    lines: list[str] = []
    found.retrain(progress=lines.append, **kept)
    assert sum("finished before" in line for line in lines) > 1
