"""Embeddings of other authors in the reference model.

Their code is no part of the project: what needs it is skipped unless the environment variable
OPTUNA_NIS_RIVALS_DIR names a folder with it.
"""

from __future__ import annotations

from functools import partial
import os
from pathlib import Path
from typing import Any

import authors
from authors import AuthorsEmbeddings, global_ids
import host_model
import jobs
import numpy as np
import pytest
from small_tables import write_table
import torch
from torch import nn

from optuna_nis import SearchSpace

FOLDER = os.environ.get("OPTUNA_NIS_RIVALS_DIR")
needs_code = pytest.mark.skipif(not FOLDER, reason="OPTUNA_NIS_RIVALS_DIR names no folder")


def test_one_embedding_of_all_features_is_as_one_for_each() -> None:
    sizes = {"user": 5, "genres": 3, "city": 4}
    table = nn.Embedding(12, 2)
    to_global = global_ids(list(sizes.values()))
    layer = AuthorsEmbeddings(table, lambda ids: table(to_global(ids)), sizes, {"genres"})
    batch = {
        "user": torch.tensor([4, 5, 0]),
        "genres": torch.tensor([[0, 2], [1, 3], [3, 3]]),
        "city": torch.tensor([3, 0, 4]),
    }
    rows = layer(batch)
    weight = table.weight
    zeros = torch.zeros(2)
    assert torch.equal(rows[:, 0], torch.stack([weight[4], zeros, weight[0]]))
    assert torch.allclose(rows[:, 1], torch.stack([(weight[5] + weight[7]) / 2, weight[6], zeros]))
    assert torch.equal(rows[:, 2], torch.stack([weight[11], weight[8], zeros]))
    rows.sum().backward()
    # Each id of a bag has its part of the mean.
    assert weight.grad[5:8, 0].tolist() == [0.5, 1.0, 0.5]


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A table with a bag, on which trainings take one epoch."""
    write_table("seattle_pets", tmp_path)
    monkeypatch.setattr(host_model, "train", partial(host_model.train, max_epochs=1))
    return {"data_dir": str(tmp_path), "rivals_dir": FOLDER}


@needs_code
def test_mpe_groups_are_runs_of_ranks() -> None:
    counts = [[100, 50, 50, 50, 1], [70, 70, 2]]
    embedding = authors.mpe_embedding(str(FOLDER), counts, 4, groups=4, tau=3e-3, init_std=0.1)
    groups = embedding.group_index
    assert groups.tolist() == [3, 2, 1, 1, 0, 3, 2, 0]
    assert embedding.group_cnt.isfinite().all()


@needs_code
@pytest.mark.parametrize(
    "job",
    [
        {"kind": "mpe", "penalty": 1e-3},
        {"kind": "pep", "budget": 0.6},
        {"kind": "optembed", "budget": 0.25, "penalty": 1e-4},
    ],
    ids=lambda job: job["kind"],
)
def test_classes_of_their_authors_are_searched_and_trained(
    config: dict[str, Any], job: dict[str, Any]
) -> None:
    result = jobs.run("seattle_pets", config, job | {"seed": 0})
    assert 0 <= result["test"] <= 1
    space = SearchSpace.from_json(jobs.run("seattle_pets", config, {"kind": "describe"})["space"])
    assert 0 < result["nbytes"] <= job.get("budget", 1.0) * space.full_nbytes
    assert result["search_seconds"] > 0


@needs_code
def test_who_never_reaches_a_budget_says_what_is_left(config: dict[str, Any]) -> None:
    job = {"kind": "pep", "budget": 0.1, "seed": 0, "most_steps": 3}
    result = jobs.run("seattle_pets", config, job)
    assert list(result) == ["nbytes"]
    assert result["nbytes"] > 0


def test_numpy_of_before_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(np, "long", raising=False)
    with pytest.raises(RuntimeError, match="needs numpy 2"):
        authors.pep_embedding("nowhere", [1], 2)
