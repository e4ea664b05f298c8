"""Jobs of the quality benchmark that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trainings import RULES, Trainings

from optuna_nis import Allocation, TableAllocation, Tier

SIZES = Allocation([TableAllocation("user", 10, 4, (Tier(10, 4),))])
RESULT = {"val": 0.7, "test": 0.6}


@pytest.fixture
def kept(tmp_path: Path) -> Trainings:
    """What was kept when allocations had no bits."""
    table = {"name": "user", "num_embeddings": 10, "embedding_dim": 4, "tiers": [[10, 4]]}
    before = json.dumps({"version": 1, "tables": [table]})
    job = {"kind": "train", "allocation": before, "seed": 0, "rules": RULES}
    (tmp_path / "insteval.jsonl").write_text(json.dumps({"job": job, "result": RESULT}) + "\n")
    return Trainings("insteval", None, tmp_path, 1, 1, rivals_dir="rivals")


def test_sizes_of_earlier_versions_are_known(
    kept: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit(*args: Any) -> None:
        raise LookupError("run anew")

    monkeypatch.setattr(kept._pool, "submit", submit)
    assert kept.run(kind="train", allocation=SIZES.to_json(), seed=0) == RESULT
    with pytest.raises(LookupError):
        kept.run(kind="train", allocation=SIZES.to_json(), seed=1)
    rounded = Allocation([TableAllocation("user", 10, 4, (Tier(10, 4, 4),))])
    with pytest.raises(LookupError):
        kept.run(kind="train", allocation=rounded.to_json(), seed=0)
    kept.close()


def test_where_code_is_is_no_part_of_a_job(
    kept: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(kept._pool, "submit", lambda *args: asked.append(args) or Done())
    assert kept.run(kind="pep", budget=0.1, seed=0) == {"nbytes": 5}
    (_, data, config, job) = asked[0]
    assert (data, config) == ("insteval", {"rivals_dir": "rivals"})
    assert job == {"kind": "pep", "budget": 0.1, "seed": 0, "rules": RULES}
    kept.close()


class Done:
    def result(self) -> dict[str, int]:
        return {"nbytes": 5}
