"""A search and a retraining in two processes: run by ``test_processes.py``, fails if wrong.

They are forked when everything is imported; Lightning, which would start the second anew, goes by
their ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from importlib.util import find_spec
import io
import json
import os
from pathlib import Path
import socket
import sys
from types import SimpleNamespace
from typing import Any

from killing import KilledAt, KilledError
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from torch import distributed, multiprocessing

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace
from optuna_nis.cli import app
from optuna_nis.data.config import DataConfig
from optuna_nis.lightning import checkpoints, logged, retrain, search
from optuna_nis.lightning.evaluating import evaluate_table
from optuna_nis.lightning.processes import Group, joined_by_torchrun
from optuna_nis.models import RankingModule, embeddings
from optuna_nis.serve.predictor import Predictor
from optuna_nis.study.results import Results

TOGETHER = {"accelerator": "cpu", "strategy": "ddp", "devices": 2}


def write_clicks(path: Path) -> None:
    rng = np.random.default_rng(0)
    users = (rng.random(1500) ** 3 * 400).astype(int)
    frame = pd.DataFrame({"user": users, "item": rng.integers(0, 30, 1500)})
    frame["clicked"] = (rng.random(1500) < 0.2 + 0.06 * (users * 7 % 10)).astype(int)
    frame.to_csv(path, index=False)
    frame.iloc[::3].to_csv(path.with_name("some.csv"), index=False)


class Jobs:
    """Searches and retrainings of one study, the first process's."""

    def __init__(self, rank: int, folder: Path, name: str, **options: Any) -> None:
        self.rank, self.folder = rank, folder / name
        # As in the command the others have any study.
        self.study = optuna.create_study()
        if rank == 0:
            self.study = optuna.create_study(
                study_name=name, storage=f"sqlite:///{folder}/{name}.db", direction="maximize"
            )
        self._data = DataConfig(
            table=str(folder / "clicks.csv"), label="clicked", features=("user", "item")
        )
        self.lines: list[str] = []
        self._options: dict[str, Any] = {
            "checkpoint_dir": self.folder,
            "trainer_options": TOGETHER,
            "progress": self.lines.append,
            **options,
        }

    def search(self, callbacks: Sequence[Callback] = ()) -> Allocation:
        return search(
            self.study,
            self._data,
            budget="50%",
            embedding_dim=8,
            epochs=1,
            num_updates=2,
            callbacks=callbacks,
            **self._options,
        )

    def retrain(self, callbacks: Sequence[Callback] = ()) -> Results:
        return retrain(
            self.study,
            seeds=[0],
            max_epochs=1,
            callbacks=callbacks,
            output=str(self.folder.with_suffix(".model")),
            **self._options,
        )


class KilledAfter(ProgressBar):
    """Kills a training when so many batches of all trainings have been trained on.

    A bar, without which a training is the same.
    """

    def __init__(self, batches: int) -> None:
        super().__init__()
        self.left = batches

    def disable(self) -> None:
        """Nothing is shown anyway."""

    def __deepcopy__(self, memo: Any) -> KilledAfter:
        return self  # Not one for each training.

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KilledError


def same_everywhere(value: Any) -> None:
    """Fail unless all processes have the same."""
    found: list[Any] = [None, None]
    distributed.all_gather_object(found, value)
    assert found[0] == found[1], found


def values(study: optuna.Study) -> list[float | None]:
    return [trial.value for trial in study.trials]


def outcome(results: Results) -> dict[str, tuple[float, ...]]:
    return {result.name: result.values for result in results}


def check(rank: int, folder: Path, name: str, **options: Any) -> tuple[Jobs, Allocation, Results]:
    """All processes find the same, which the first one writes down."""
    jobs = Jobs(rank, folder, name, **options)
    found = jobs.search()
    same_everywhere(found.to_json())
    results = jobs.retrain()
    same_everywhere((outcome(results), results.verdict))
    trained = [t for t in jobs.study.trials if t.user_attrs["fidelity"] == "trained"]
    assert bool(trained) == bool(jobs.lines) == (rank == 0)
    assert not jobs.folder.exists()
    model = Predictor.load(jobs.folder.with_suffix(".model"))
    # Metrics are of the rows of all processes.
    assert evaluate_table(model, folder / "some.csv", label="clicked").rows == 500
    return jobs, found, results


def check_interrupted(rank: int, folder: Path, name: str, **options: Any) -> None:
    """What was interrupted ends like what was not."""
    jobs, found, results = check(rank, folder, name, **options)
    again = Jobs(rank, folder, f"{name}-interrupted", **options)
    # In mid-epoch; when some trainings have ended.
    with pytest.raises(KilledError):
        again.search([KilledAt(12)])
    assert again.search() == found
    with pytest.raises(KilledError):
        again.retrain([KilledAfter(45)])
    kept = sorted(path.name.partition("-")[0] for path in again.folder.iterdir())
    same_everywhere(kept)
    assert kept == ["retrain", "retrain"]
    # Of three processes, once.
    (again.folder / f"{min(again.folder.iterdir()).name}.2").mkdir(exist_ok=True)
    assert outcome(again.retrain()) == outcome(results)
    assert not again.folder.exists()
    if rank == 0:
        assert not any("trained once more" in line for line in again.lines)
        assert values(again.study) == values(jobs.study)
        assert any("interrupted" in line for line in again.lines)
        assert any("finished before" in line for line in again.lines)


def check_weights(rank: int) -> None:
    """The gradients of a step are those of all examples, whatever their weights."""
    torch.manual_seed(0)
    full = SearchSpace([EmbeddingSpec("user", 50, 4)]).full()
    batch = {"user": torch.arange(40), "label": torch.rand(40).round(), "weight": torch.rand(40)}
    batch["weight"][:20] *= 5
    found = []
    for world, rows in ((1, slice(None)), (2, slice(20 * rank, 20 * rank + 20))):
        torch.manual_seed(0)
        model = RankingModule(full, l2=0.1)
        model._trainer = SimpleNamespace(world_size=world)  # type: ignore[assignment]
        loss = model.training_step({name: each[rows] for name, each in batch.items()}, 0)
        loss.backward()
        gradient = next(model.mlp.parameters()).grad
        assert gradient is not None
        if world == 2:
            distributed.all_reduce(gradient)
            gradient /= 2
        found.append(gradient)
    torch.testing.assert_close(found[0], found[1])


def check_own_rows(rank: int) -> None:
    """What a model logs of the rows of one process is that of the first one, and it is said."""
    warned: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logged, "warn_of_own_rows", warned.append)
        for value in (0.5, 0.1 + rank):
            trainer: Any = SimpleNamespace(
                callback_metrics={"loss": value},
                strategy=SimpleNamespace(broadcast=Group(rank, 2).share),
            )
            assert logged.logged_by_first(trainer, "loss") == (0.5 if value == 0.5 else 0.1)
    assert warned == ["loss"] * rank


def check_sharded(rank: int, folder: Path) -> None:
    """No process has all rows of a large table."""
    embeddings.SPARSE_ABOVE = 100  # type: ignore[misc]
    check_interrupted(rank, folder, "sharded", shard_tables_above=100)
    jobs = Jobs(rank, folder, "none so large", shard_tables_above=1000)
    with pytest.raises(ValueError, match="must be less than the number of ids of the largest"):
        jobs.search()
    assert not jobs.study.user_attrs


def check_command(rank: int, folder: Path) -> None:
    """The command has one study, and says what it has found once."""
    storage, said = f"sqlite:///{folder}/command.db", io.StringIO()
    options = ["--table", f"{folder}/clicks.csv", "--label", "clicked", "--features", "user,item"]
    options += ["--embedding-dim", "8", "--epochs", "1", "--updates", "2"]
    with redirect_stdout(said):
        app(["search", *options, "--storage", storage], standalone_mode=False)
    assert said.getvalue().count("Validation ROC-AUC") == (rank == 0)
    study = optuna.load_study(study_name="optuna-nis", storage=storage)
    assert any(trial.user_attrs["fidelity"] == "trained" for trial in study.trials)


def main(rank: int, folder: Path, port: int) -> None:
    # As torchrun sets them.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    assert joined_by_torchrun() == {"strategy": "ddp", "devices": 2, "num_nodes": 1}
    torch.set_num_threads(1)
    # Whenever it can be.
    checkpoints._INTERVAL, checkpoints._MAX_SHARE = 0.0, 1.0
    check_weights(rank)
    check_own_rows(rank)
    check_command(rank, folder)
    if find_spec("torchrec") is None:
        check_interrupted(rank, folder, "whole")
    else:
        check_sharded(rank, folder)
    (folder / f"{rank}.json").write_text(json.dumps("done"))
    distributed.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = Path(sys.argv[1])
    write_clicks(folder / "clicks.csv")
    run = partial(main, folder=folder, port=port)
    multiprocessing.start_processes(run, (), nprocs=2, start_method="fork")
