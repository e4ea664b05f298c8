"""Processes that search and train together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from killing import KilledAt, KilledError
from lightning.pytorch.strategies import FSDPStrategy
import optuna
from programs import run_program
import pytest
from torch import distributed

from optuna_nis import SearchSpace
from optuna_nis.data.config import DataConfig
from optuna_nis.lightning import processes, retrain, search
from optuna_nis.lightning.processes import (
    Group,
    built,
    group_of,
    group_of_trainer,
    joined_by_torchrun,
    shared_batches,
)
from optuna_nis.models import embeddings, reference_model

TOGETHER = {"accelerator": "cpu", "strategy": "ddp", "devices": 2}
FLIGHTS = DataConfig(dataset="flights", max_rows=2_000)


@pytest.mark.slow
def test_two_processes_search_and_retrain(tmp_path: Path) -> None:
    script = Path(__file__).parent / "searched_in_two_processes.py"
    run_program("-W", "ignore", script, tmp_path, timeout=240)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["0.json", "1.json"]


def test_without_others_nothing_is_shared(tmp_path: Path) -> None:
    group = group_of({"accelerator": "cpu"})
    study = optuna.create_study()
    assert group == Group()
    assert group.share(3) == 3
    assert group.all_of(3) == [3]
    assert group.own(tmp_path) == tmp_path
    assert group.study(study) is study
    assert Group(1, 2).own(tmp_path / "weights.pt") == tmp_path / "weights.pt.1"


@pytest.mark.parametrize("work", [search, retrain])
def test_others_must_have_been_started(work: Any) -> None:
    study = optuna.create_study(direction="maximize")
    more = {"data": FLIGHTS, "budget": "25%"} if work is search else {}
    with pytest.raises(ValueError, match="are of 2 processes, of which there are none: start"):
        work(study, trainer_options=TOGETHER, **more)
    assert not study.user_attrs


def test_a_group_of_another_size_is_refused() -> None:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="of which there are 1: start the program"):
            group_of(TOGETHER)
    finally:
        distributed.destroy_process_group()


def test_other_strategies_are_refused() -> None:
    class OnGPUs:
        world_size, strategy = 2, object.__new__(FSDPStrategy)

    with pytest.raises(ValueError, match="must have the strategy 'ddp', got FSDPStrategy"):
        group_of_trainer(OnGPUs())  # type: ignore[arg-type]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_processes_that_train_alone_are_told(
    rank: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    processes._warn_of_torchrun.cache_clear()
    for name, value in (("WORLD_SIZE", "2"), ("RANK", rank), ("TORCHELASTIC_RUN_ID", "1")):
        monkeypatch.setenv(name, value)
    for _ in range(2):
        processes._warn_of_torchrun()
    processes._warn_of_torchrun.cache_clear()
    assert caplog.text.count("torchrun has started 2 processes") == (rank == "0")


def test_torchrun_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert joined_by_torchrun() is None
    # Other launchers set this too.
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert joined_by_torchrun() is None


def test_tables_that_cannot_be_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    data = FLIGHTS.datamodule(withhold_test=True)
    reference = reference_model(data.features)
    space = SearchSpace(reference.specs(8), budget="50%")
    assert built(reference, space, None, Group()) is reference
    with pytest.raises(ValueError, match="must be an integer of at least 100000, got 500"):
        built(reference, space, 500, Group(0, 2))
    monkeypatch.setattr(embeddings, "SPARSE_ABOVE", 100)
    with pytest.raises(ValueError, match=r"ids of the largest table, .* of 'tailnum', got 5000"):
        built(reference, space, 5000, Group(0, 2))
    with pytest.raises(ValueError, match=r"is for several processes, .* got 500 in one"):
        built(reference, space, 500, Group())


def test_batches_are_shared() -> None:
    data = FLIGHTS.datamodule(withhold_test=True)
    before = data.batch_size
    with shared_batches(data, Group()):
        assert data.batch_size == before
    with shared_batches(data, Group(0, 3)):
        assert data.batch_size == -(-before // 3)
    assert data.batch_size == before
    # How large they are is not known.
    with shared_batches([1], Group(0, 3)):
        pass


def test_an_interrupted_search_of_more_processes_is_told(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    lines: list[str] = []
    options: dict[str, Any] = {"budget": "25%", "epochs": 1, "num_updates": 1}
    options |= {"checkpoint_dir": tmp_path, "progress": lines.append}
    with pytest.raises(KilledError):
        search(study, FLIGHTS, callbacks=[KilledAt(3)], **options)
    ((key, value),) = [each for each in study.user_attrs.items() if "search:" in each[0]]
    study.set_user_attr(key, value | {"settings": value["settings"] | {"processes": 2}})
    search(study, FLIGHTS, **options)
    (told,) = [line for line in lines if "interrupted" in line]
    assert "of 2 processes, was interrupted; started with as many it goes on" in told
