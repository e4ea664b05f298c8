"""The jobs of the quality benchmark, on a table of some rows."""

from __future__ import annotations

from functools import partial
import math
from pathlib import Path
from typing import Any

import host_model
import jobs
import pytest
from small_tables import write_table

from optuna_nis import SearchSpace


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The folder of a table, on which trainings take one epoch."""
    write_table("insteval", tmp_path)
    monkeypatch.setattr(host_model, "train", partial(host_model.train, max_epochs=1))
    return {"data_dir": str(tmp_path)}


def job(config: dict[str, str], **more: Any) -> dict[str, Any]:
    about = jobs.run("insteval", config, {"kind": "describe"})
    sizes = SearchSpace.from_json(about["space"]).full().to_json()
    return {"kind": "train", "allocation": sizes, "seed": 0} | more


def test_the_options_of_the_model_are_told(config: dict[str, str]) -> None:
    about = jobs.run("insteval", config, {"kind": "describe"})
    assert about["options"] == {"learning_rate": 5e-3, "l2": 1e-3, "dropout": 0.0}
    assert about["output_features"] == []


def test_a_training_has_the_options_of_its_job(
    config: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[host_model.Training] = []
    tested = jobs.tested
    monkeypatch.setattr(jobs, "tested", lambda t, d: known.append(t) or tested(t, d))
    plain = jobs.run("insteval", config, job(config))
    jobs.run("insteval", config, job(config, options={"learning_rate": 0.05}))
    assert [each.model.learning_rate for each in known] == [0.005, 0.05]
    assert plain["steps"] == plain["best_steps"] == 1
    assert math.isfinite(plain["val_error"])


def test_options_of_no_use_are_a_result(
    config: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*args: Any, **options: Any) -> Any:
        raise FloatingPointError("the training diverged")

    monkeypatch.setattr(host_model, "train", diverge)
    assert jobs.run("insteval", config, job(config, options={"l2": 9.0}))["val"] == -math.inf
    with pytest.raises(FloatingPointError):
        jobs.run("insteval", config, job(config))


def test_a_pruned_model_has_the_steps_of_both_trainings(config: dict[str, str]) -> None:
    result = jobs.run("insteval", config, {"kind": "prune", "budget": 0.5, "seed": 0})
    assert (result["steps"], result["best_steps"]) == (2, 2)
