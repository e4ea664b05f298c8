"""Tables of many rows: how many copies of them there are at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
import weakref

from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ProgressBar
import numpy as np
import optuna
import pytest
import torch

from optuna_nis import Allocation, SearchSpace
from optuna_nis.data import TableDataModule
from optuna_nis.lightning import (
    DataConfig,
    _memory,
    reference_model,
    retrain,
    search,
    train_shortlist,
)
from optuna_nis.lightning._memory import looked_at
from optuna_nis.models.reference import ReferenceModel


class _Alive:
    """Counts the models with weights that there are whenever one is made."""

    def __init__(self) -> None:
        self.models: list[weakref.ref[LightningModule]] = []
        self.most = 0

    def __call__(self, model: LightningModule) -> None:
        self.models.append(weakref.ref(model))
        self.most = max(self.most, sum(each() is not None for each in self.models))


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Alive]:
    monkeypatch.setattr(_memory, "_MUCH", 0)
    alive, make = _Alive(), ReferenceModel.__call__

    def counted(self: ReferenceModel, tables: SearchSpace | Allocation) -> Any:
        model = make(self, tables)
        if not model.embeddings.layers[0].like().is_meta:
            alive(model)
        return model

    monkeypatch.setattr(ReferenceModel, "__call__", counted)
    return alive


def test_a_shortlist_has_one_model_beside_the_supernet(
    datamodule: TableDataModule, alive: _Alive
) -> None:
    space = SearchSpace(datamodule.embedding_specs(8))
    build = reference_model(datamodule.features)
    rng = np.random.default_rng(0)
    choices = [space.sample(rng, space.full_parameters * share) for share in (0.9, 0.5, 0.2)]
    supernet = build(space)
    found = train_shortlist(
        choices, supernet, build, datamodule, shortlist_epochs=(1, 1), shortlist_batches=0.1
    )
    assert len(found) == 3
    assert alive.most == 2
    # Drawn first, then made when their turn comes; those that stay are made again.
    assert len(alive.models) > 1 + 3 + 3


def test_a_search_and_a_retraining_make_no_model_that_is_not_trained(
    data: DataConfig, study: optuna.Study, alive: _Alive, tmp_path: Path
) -> None:
    lines: list[str] = []
    options: dict[str, Any] = {
        "budget": 0.5,
        "embedding_dim": 4,
        "epochs": 1,
        "num_updates": 2,
        "checkpoint_dir": tmp_path,
        "callbacks": [ProgressBar()],
    }
    search(study, data, **options, progress=lines.append)
    assert alive.most == 2
    trainings = [line for line in lines if line.startswith("round ")]
    drawn = [line for line in trainings if line.startswith("round 1 ")]
    assert len(alive.models) == 1 + len(drawn) + len(trainings)
    alive.models.clear()
    alive.most = 0
    lines.clear()
    kept = {"checkpoint_dir": tmp_path, "callbacks": [ProgressBar()], "progress": lines.append}
    results = retrain(study, seeds=[0], max_epochs=1, **kept)  # type: ignore[arg-type]
    assert alive.most == 1
    # Those that are reported are made once more for the test, sizes of two names once.
    trained = [line for line in lines if ": embeddings of " in line]
    assert len(trained) >= 5
    assert len(alive.models) == len(trained) + len({result.nbytes for result in results})
    alive.models.clear()
    search(study, data, **options)
    assert not alive.models


@pytest.mark.parametrize("kind", ["ranking", "retrieval"])
def test_reference_models_that_are_looked_at_have_no_weights(data: DataConfig, kind: str) -> None:
    if kind == "ranking":
        features = data.datamodule(withhold_test=True).features
        models = ["deepfm", "dcn"]
    else:
        found = DataConfig(
            table=data.table, task="retrieval", label="city", bags={"genres": "|"}
        ).datamodule(withhold_test=True)
        features, models = found.features, ["mlp"]
    for model in models:
        build = reference_model(features, model=model)
        space = SearchSpace(build.specs(8, precisions=(32, 4), oov="shared"), budget=0.5)
        for tables in (space, space.full(), space.sample(np.random.default_rng(0), space.budget)):
            state = torch.get_rng_state()
            seen = looked_at(build, tables)
            assert {p.device.type for p in seen.parameters()} == {"meta"}
            assert torch.equal(state, torch.get_rng_state())
            whole = build(tables)
            assert {n: p.shape for n, p in seen.named_parameters()} == {
                n: p.shape for n, p in whole.named_parameters()
            }


def test_models_of_other_functions_are_whole(datamodule: TableDataModule) -> None:
    build = reference_model(datamodule.features)
    full = SearchSpace(datamodule.embedding_specs(8)).full()
    model = looked_at(lambda sizes: build(sizes), full)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
