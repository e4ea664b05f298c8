from __future__ import annotations

from pathlib import Path
from typing import Any

from ordinary import Data, Ordinary
import pytest
from torch import nn

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.data import load_dataset
from optuna_nis.lightning import SearchPlan, reference_model, search_sizes

FAST: dict[str, Any] = {"epochs": 1, "num_updates": 2, "group_size": 4}


@pytest.mark.parametrize(
    ("options", "plan", "epochs"),
    [
        ({}, {}, 6),
        ({"learning_rate": 3e-3}, {}, 12),
        ({}, {"plan": SearchPlan(epochs=2)}, 2),
    ],
)
def test_a_reference_model_goes_by_its_task(
    options: dict[str, float], plan: dict[str, Any], epochs: int
) -> None:
    data = load_dataset("flights", "retrieval", max_rows=1_000, batch_size=256)
    build = reference_model(data.features, hidden=(8,), **options)
    lines: list[str] = []
    found = search_sizes(build, data, 0.5, num_updates=1, progress=lines.append, **plan)
    assert len([line for line in lines if line.startswith("Supernet: epoch")]) == epochs
    assert {s.embedding_dim for s in found.space.specs if s.name != "items"} == {64}


def test_what_was_found_is_built_by_default() -> None:
    found = search_sizes(Ordinary, Data(), "25%", monitor="val_auroc", **FAST)
    inside = found.build().user, found.build(found.space.full()).user
    chosen, full = (sum(p.numel() for p in layer.parameters()) for layer in inside)
    assert chosen == found.allocation["user"].num_parameters
    assert full == found.space.full()["user"].num_parameters
    assert found.study.best_trial.user_attrs["fidelity"] == "trained"
    assert found.space.allocation(found.study.best_params) == found.allocation
    assert "candidates" not in repr(found)


@pytest.mark.parametrize(
    ("build", "data", "options", "error", "message"),
    [
        (Ordinary(), Data(), {}, TypeError, "`build_model` must be a function .* got Ordinary"),
        (lambda sizes: Ordinary(), Data(), {}, ValueError, "without arguments, such as `lambda"),
        (lambda a, b: Ordinary(), Data(), {}, ValueError, r"got one of \['a', 'b'\]"),
        (lambda: nn.Embedding(9, 2), Data(), {}, TypeError, "LightningModule, got Embedding"),
        (Ordinary, [1], {}, ValueError, "`data` must be a data module, or .*, got 1"),
        (
            Ordinary,
            Data(),
            {"space": SearchSpace([EmbeddingSpec("user", 9, 2)])},
            ValueError,
            "`space` is for a `build_model` that takes sizes",
        ),
    ],
)
def test_what_cannot_be_searched(
    build: Any, data: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        search_sizes(build, data, "25%", **FAST, **options)


def test_data_without_a_test_are_refused_before_anything_is_trained() -> None:
    lines: list[str] = []
    loaders = (Data().train_dataloader(), Data().val_dataloader())
    found = search_sizes(Ordinary, loaders, "25%", monitor="val_auroc", **FAST)
    with pytest.raises(ValueError, match="dataloader of the test as its third"):
        found.retrain(progress=lines.append)
    data = load_dataset("movielens-small", max_rows=1_000, withhold_test=True)
    found = search_sizes(reference_model(data.features), data, "25%", **FAST)
    with pytest.raises(ValueError, match="`data` must have a test part"):
        found.retrain(progress=lines.append)
    assert lines == []


def test_models_of_your_own_are_kept_by_yourself(tmp_path: Path) -> None:
    loaders = (Data().train_dataloader(), Data().val_dataloader(), Data().val_dataloader())
    found = search_sizes(Ordinary, loaders, "25%", monitor="val_auroc", **FAST)
    with pytest.raises(ValueError, match="`output` is for reference models"):
        found.retrain(output=tmp_path / "model")
