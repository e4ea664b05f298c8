from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.datasets import Features
from optuna_nis.lightning import Predictor, reference_model

FRAME = pd.DataFrame(
    {
        "user": [f"u{i % 1000:04}" for i in range(3000)],
        "city": [i % 7 for i in range(3000)],
        "tags": [[i % 50, i % 3] for i in range(3000)],
    }
)
SIZES = Allocation(
    [
        TableAllocation("user", 1000, 4, (Tier(3, 4), Tier(2, 2))),
        TableAllocation("city", 7, 4, ()),
        TableAllocation("tags", 50, 4, (Tier(3, 4),)),
    ]
)


@pytest.mark.parametrize("task", ["ranking", "retrieval"])
def test_a_model_forgets_ids_that_have_no_row(task: Any, tmp_path: Path) -> None:
    targets = FRAME["city"] if task == "retrieval" else None
    features = Features.fit(FRAME, task=task, separators={"tags": None}, targets=targets)
    torch.manual_seed(0)
    model = reference_model(features, hidden=[8], init_std=0.5)(SIZES).eval()
    with torch.no_grad():
        expected = model.predict_step(features.encode(FRAME)).numpy()
    if features.targets is not None:
        expected = np.array(features.targets.values)[expected]

    predictor = Predictor(model, SIZES, features)
    predictor.save(tmp_path)
    again = Predictor.load(tmp_path)

    for each in (predictor, again):
        assert {name: len(known) for name, known in each.features.vocabularies.items()} == {
            **{"user": 5, "city": 1, "tags": 50}
        }
        np.testing.assert_array_equal(each.predict(FRAME), expected)
    dense = predictor.with_tables("dense").predict(FRAME)
    if task == "ranking":
        np.testing.assert_allclose(dense, expected, atol=1e-6)
    assert len((tmp_path / "features.json").read_text()) < len(features.to_json()) / 4


def test_one_strange_id_does_not_depend_on_its_batch() -> None:
    frame = pd.DataFrame({"user": [11, 12, 13] * 5, "city": [1, 2, 3] * 5})
    features = Features.fit(frame, task="ranking")
    sizes = Allocation([TableAllocation(name, 3, 4, (Tier(3, 4),)) for name in features.names])
    predictor = Predictor(reference_model(features, hidden=[8])(sizes), sizes, features)
    new = pd.DataFrame({"user": ["11", "12", "guest"], "city": [1, 2, 3]})

    found = predictor.predict(new, batch_size=1)

    np.testing.assert_allclose(found, predictor.predict(new), rtol=1e-6)
    known = predictor.predict(frame.iloc[:2])
    np.testing.assert_allclose(found[:2], known, rtol=1e-6)
