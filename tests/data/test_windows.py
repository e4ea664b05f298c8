from __future__ import annotations

from collections.abc import Callable
from functools import partial
import json
from pathlib import Path
import pickle
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
import numpy as np
import pandas as pd
from programs import run_program
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from optuna_nis import SearchSpace
from optuna_nis.data import TableDataModule, base, store, table, windows
from optuna_nis.data.windows import WindowLoader
from optuna_nis.lightning import evaluate, reference_model, train


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, windows and what is kept, in the size of the test's tables."""
    monkeypatch.setattr(windows, "_BLOCK", 16)
    monkeypatch.setattr(windows, "_WINDOW", 128)
    monkeypatch.setattr(table, "_CACHED", 0)
    monkeypatch.setattr(base, "_VALIDATED", 30)
    monkeypatch.setattr(store, "_ROWS", 100)


ROWS = 1000


def _frame() -> pd.DataFrame:
    row = np.arange(ROWS)
    return pd.DataFrame(
        {
            "row": row,
            "city": np.where(row == 7, "rare city", np.array(list("abcde"))[row % 5]),
            "tags": [list(range(number % 4)) for number in row],
            "price": row * 0.5,
            "clicked": row % 2,
        }
    )


@pytest.fixture
def log(tmp_path: Path) -> Callable[..., TableDataModule]:
    path = tmp_path / "log.parquet"
    _frame().to_parquet(path)

    def make(**options: Any) -> TableDataModule:
        given: dict[str, Any] = {
            "label": "clicked",
            "features": ["row", "city"],
            "bags": {"tags": None},
            "numeric": ["price"],
            "cache_dir": tmp_path / "cache",
            "max_bytes": 0,
            "num_workers": 0,
            "batch_size": 32,
            "eval_batch_size": 64,
        }
        return TableDataModule(path, **{**given, **options})

    return make


RANK_AND_WORLD = "optuna_nis.data.batches._rank_and_world"


def _rows(batches: Any, key: str = "row") -> list[int]:
    return [number for batch in batches for number in batch[key].tolist()]


def test_models_are_tested_on_rows_on_disk_as_in_memory(
    log: Callable[..., TableDataModule],
) -> None:
    on_disk, in_memory = log(split="chronological"), log(split="chronological", max_bytes=1 << 30)
    build = reference_model(in_memory.features)
    torch.manual_seed(0)
    model = build(SearchSpace(in_memory.embedding_specs(4)).full())
    found = [evaluate(model, data, monitor="test_metric") for data in (on_disk, in_memory)]
    assert isinstance(on_disk.test_dataloader(), WindowLoader)
    assert found[0] == found[1]
    trained = train(
        build, SearchSpace(on_disk.embedding_specs(4)).full(), on_disk, seed=0, max_epochs=1
    )
    assert evaluate(trained.model, on_disk) > 0.9


def test_rows_on_disk_are_those_in_memory(log: Callable[..., TableDataModule]) -> None:
    on_disk, in_memory = log(split="chronological"), log(split="chronological", max_bytes=1 << 30)
    for data in (on_disk, in_memory):
        data.setup("test")

    assert isinstance(on_disk.train_dataloader(), WindowLoader)
    assert not isinstance(in_memory.train_dataloader(), WindowLoader)
    assert on_disk.features == in_memory.features
    for one, other in zip(on_disk.test_dataloader(), in_memory.test_dataloader(), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    found, wanted = (
        {row: batch for batch in data.train_dataloader() for row in _by_row(batch)}
        for data in (on_disk, in_memory)
    )
    assert len(found) == len(wanted) == 800


def _by_row(batch: Any) -> list[Any]:
    return [
        tuple(tuple(value.reshape(-1).tolist()) for _, value in sorted(row.items()))
        for row in (
            {name: tensor[place] for name, tensor in batch.items()}
            for place in range(len(batch["label"]))
        )
    ]


def test_every_row_comes_once_in_an_epoch_and_in_another_order(
    log: Callable[..., TableDataModule],
) -> None:
    data = log(split="random", seed=3)
    loader = data.train_dataloader()

    first, second = _rows(loader), _rows(loader)

    assert len(loader) == 25
    assert len(set(first)) == len(first) == 800
    assert set(first) == set(second)
    assert first != second
    again = log(split="random", seed=3).train_dataloader()
    assert _rows(again) == first
    other = log(split="random", seed=3, shuffle_seed=1).train_dataloader()
    assert _rows(other) != first


def test_the_last_rows_that_fill_no_batch_are_left_out(
    log: Callable[..., TableDataModule],
) -> None:
    loader = log(batch_size=48).train_dataloader()

    sizes = [len(batch["label"]) for batch in loader]

    assert sizes == [48] * (800 // 48)


def test_a_batch_has_rows_from_many_places(log: Callable[..., TableDataModule]) -> None:
    data = log(split="chronological")

    places = [
        len({data.vocabularies["row"].values[row] // 16 for row in batch["row"].tolist()})
        for batch in data.train_dataloader()
    ]

    # A window has 8 blocks of 16 rows, a batch 32 rows of it.
    assert np.mean(places) > 6


def test_epochs_go_on_where_they_were_interrupted(log: Callable[..., TableDataModule]) -> None:
    loader = log().train_dataloader()
    list(loader)
    whole = _rows(loader)
    for number in (0, 1, 4, 7, 24):
        interrupted, resumed = log().train_dataloader(), log().train_dataloader()
        list(interrupted)
        batches = iter(interrupted)
        begun = _rows(next(batches) for _ in range(number))
        state = interrupted.state_dict() if number else {"epoch": 1, "batches": 0}
        resumed.set_epoch(1)
        resumed.load_state_dict(state)

        assert begun + _rows(resumed) == whole


@pytest.mark.parametrize("window", [128, 1 << 18])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_rows(
    world: int,
    window: int,
    log: Callable[..., TableDataModule],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "_WINDOW", window)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(
            "optuna_nis.data.batches._rank_and_world", lambda rank=rank: (rank, world)
        )
        loader = log().train_dataloader()
        share = _rows(loader)
        assert len(share) == 32 * len(loader)
        shares.append(share)

    assert len({len(share) for share in shares}) == 1
    # What is left of each run is less than a batch.
    rows = log().sizes["train"]
    assert len(set().union(*shares)) == sum(map(len, shares)) > rows - world * 32 - world


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_what_is_tested(
    world: int, log: Callable[..., TableDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = log()
    data.setup("test")
    every = _rows(data.test_dataloader())
    shares = []
    for rank in range(world):
        monkeypatch.setattr(
            "optuna_nis.data.batches._rank_and_world", lambda rank=rank: (rank, world)
        )
        loader = data.test_dataloader()
        shares.append(_rows(loader))
        assert len(loader) == -(-len(shares[0]) // data.eval_batch_size)
        assert _rows(windows.whole(loader)) == every

    # The first rows once more, so that each has as many.
    expected = (every + every[: -len(every) % world]) if len(every) % world else every
    assert [row for share in shares for row in share] == expected
    assert len({len(share) for share in shares}) == 1


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_rows(
    method: str, log: Callable[..., TableDataModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, with_worker = log().train_dataloader(), log(num_workers=1).train_dataloader()
    first = _rows(alone)[:64]
    context = torch.multiprocessing.get_context(method)
    monkeypatch.setattr(
        windows, "DataLoader", partial(DataLoader, multiprocessing_context=context)
    )

    batches = iter(with_worker)
    assert _rows([next(batches), next(batches)]) == first


def test_processes_that_read_ahead_get_no_values(log: Callable[..., TableDataModule]) -> None:
    sent = pickle.dumps(log(features=["row", "city"]).train_dataloader())

    assert b"rare city" not in sent
    assert len(sent) < 30_000


def test_validation_is_a_sample_that_is_told(log: Callable[..., TableDataModule]) -> None:
    data = log()

    assert len(_rows(data.val_dataloader())) == 30
    assert data.sizes["validation"] == 100
    assert "100 for validation (30 of them, drawn at random, are used)" in data.summary()


def test_shards_are_parts_of_the_rows(log: Callable[..., TableDataModule]) -> None:
    halves = []
    for index in range(2):
        data = log()
        data.shard = (index, 2)
        halves.append(set(_rows(data.train_dataloader())))

    assert not halves[0] & halves[1]
    assert len(halves[0] | halves[1]) > 750


def test_fingerprints_tell_data_apart(log: Callable[..., TableDataModule]) -> None:
    assert log().fingerprint("train") == log().fingerprint("train")
    others = [log(seed=1), log(max_rows=500), log(na_values=["7"])]
    assert len({data.fingerprint("train") for data in (log(), *others)}) == 4


class _Sum(LightningModule):
    """A model that knows which rows it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen: list[int] = []

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        self.seen += batch["row"].tolist()
        loss: Tensor = self.layer(batch["numeric"]).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def _trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, **{"enable_checkpointing": False, **options},
    )  # fmt: skip


def test_a_trainer_resumes_in_the_middle_of_an_epoch(
    log: Callable[..., TableDataModule], tmp_path: Path
) -> None:
    whole = _Sum()
    _trainer(tmp_path, max_epochs=2).fit(whole, log())
    begun, resumed = _Sum(), _Sum()
    keep = ModelCheckpoint(tmp_path, "middle", every_n_train_steps=31, save_top_k=-1)
    _trainer(tmp_path, max_steps=33, enable_checkpointing=True, callbacks=[keep]).fit(begun, log())

    _trainer(tmp_path, max_epochs=2).fit(resumed, log(), ckpt_path=tmp_path / "middle.ckpt")

    assert begun.seen[: 31 * 32] + resumed.seen == whole.seen


@pytest.mark.slow
@pytest.mark.parametrize(("max_bytes", "tables"), [(0, "sparse"), (1 << 30, "dense")])
def test_two_processes_train_on_rows_of_their_own(
    max_bytes: int, tables: str, tmp_path: Path
) -> None:
    _frame().to_parquet(tmp_path / "log.parquet")
    script = Path(__file__).parent / "table_in_two_processes.py"

    log = tmp_path / "log.parquet"
    run_program("-W", "ignore", script, log, str(max_bytes), tables, timeout=120)

    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first["weights"] == second["weights"]
    assert first["loss"] == second["loss"]
    assert first["steps"] == second["steps"] == len(first["rows"]) // 32
    half = len(first["rows"]) // 2
    for epoch in (slice(half), slice(half, None)):
        ours, others = first["rows"][epoch], second["rows"][epoch]
        assert len(ours) == len(others) >= 300
        # Where a batch is missing to have as many each, Lightning repeats one that is in memory.
        repeated = 0 if max_bytes == 0 else 32
        assert len(ours) + len(others) - len(set(ours) | set(others)) <= repeated
    assert set(first["rows"][:half]) != set(first["rows"][half:])
