"""What ``benchmarks/click_log.py`` measures, on little."""

from __future__ import annotations

from multiprocessing import Pipe
from pathlib import Path

import click_log
from click_log import Model, count_distinct, log_of, steps_in_turns
import click_log_data
from click_log_data import IDS
import pytest
import torch

from optuna_nis.models import embeddings
from optuna_nis.nn import AdamAndRowwiseAdagrad


def test_a_log_is_made_once_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click_log_data, "BLOCK", 500)
    monkeypatch.setattr(click_log, "PARTS", {700: 3})
    log, facts = log_of(tmp_path, 700)
    assert len(list(log.iterdir())) == 3
    assert facts["rows"] == 700
    before = [path.stat().st_mtime_ns for path in log.iterdir()]
    assert log_of(tmp_path, 700) == (log, facts)
    assert [path.stat().st_mtime_ns for path in log.iterdir()] == before
    receive, send = Pipe(duplex=False)
    click_log._measure(count_distinct, (log,), send)
    processor, seconds, gib = receive.recv()
    assert processor > 0
    assert seconds > 0
    assert 0.05 < gib < 50


def test_steps_of_few_and_many_rows_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click_log, "BATCH", 64)
    monkeypatch.setattr(click_log, "STEPS", 5)
    monkeypatch.setattr(embeddings, "SPARSE_ABOVE", 400)
    small, large = steps_in_turns([2000, 6000])
    assert set(small) == set(large) == {"supernet", "full"}
    assert min(*small.values(), *large.values()) > 0


@pytest.mark.parametrize("supernet", [True, False])
def test_the_tables_have_so_many_rows_and_a_step_trains(
    monkeypatch: pytest.MonkeyPatch, supernet: bool
) -> None:
    monkeypatch.setattr(click_log, "BATCH", 64)
    monkeypatch.setattr(embeddings, "SPARSE_ABOVE", 400)
    model = Model(3000, supernet=supernet)
    rows = [spec.num_embeddings for spec in model.space.specs]
    assert len(rows) == len(IDS)
    assert sum(rows) == pytest.approx(3000, abs=2 * len(IDS))
    assert isinstance(model.optimizer, AdamAndRowwiseAdagrad)
    before = [parameter.detach().clone() for parameter in model.model.parameters()]
    assert model.step(0) > 0
    moved = [not torch.equal(*pair) for pair in zip(before, model.model.parameters())]
    assert all(moved)
