"""The models of ``benchmarks/whole_step.py``, over small tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import whole_step

from optuna_nis.models import RankingModule

FOUND = whole_step.found_sizes((300, 40, 1), 8)


def test_sizes_are_an_eighth_of_the_full_tables() -> None:
    assert sum(whole_step.VALUES) == 5_000_000
    assert len(whole_step.VALUES) == 26
    share = FOUND.nbytes() / (4 * 8 * sum(table.num_embeddings for table in FOUND.values()))
    assert 0.1 < share <= 0.125


def test_ids_are_in_range_and_the_first_ones_frequent() -> None:
    (batch,) = whole_step.batches_of(FOUND, 2000, 1)
    assert batch["C1"].max() < 300
    # Of 1 / rank, the first 16 have about half.
    assert (batch["C1"] < 16).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert batch["C3"].tolist() == [0] * 2000


@pytest.mark.parametrize("make", [whole_step._dense, whole_step._sparse, whole_step._fused])
def test_a_step_trains_the_full_tables_and_the_head(make: Callable[..., Any]) -> None:
    if make is whole_step._fused:
        pytest.importorskip("fbgemm_gpu")
    model, optimizer = make(FOUND)
    assert isinstance(model, RankingModule)
    batches = whole_step.batches_of(FOUND, 16, 1)
    # That of fbgemm has an empty one, from which its backward pass starts.
    parameters = [parameter for parameter in model.parameters() if parameter.numel()]
    before = [parameter.detach().clone() for parameter in parameters]
    assert sum(each.numel() for each in before) >= 8 * (301 + 41 + 2)
    whole_step.training_step(model, batches, optimizer)(0)
    assert not any(torch.equal(a, b) for a, b in zip(before, parameters))


def test_ratios_are_of_pairs() -> None:
    row = whole_step.compared(
        "train_vs_dense", FOUND, [1.0, 2.0, 9.0], [2.0, 2.0, 10.0], runtime="x"
    )
    assert row["ratio"] == 0.9
    assert row["embedding_dim"] == 8
    assert row["full"]["median"] == 2000
    assert row["runtime"] == "x"
