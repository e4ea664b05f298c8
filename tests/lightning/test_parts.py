from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from optuna_nis.lightning.parts import ranking_part, retrieval_part
from optuna_nis.study.cautions import Part
from optuna_nis.study.uncertainty import auc_standard_error, share_standard_error


def _loader(labels: list[float]) -> DataLoader[dict[str, torch.Tensor]]:
    rows = [{"label": torch.tensor(label)} for label in labels]
    return DataLoader(rows, batch_size=3)  # type: ignore[arg-type]


def test_ranking() -> None:
    part = ranking_part(_loader([1.0, 0.0, 0.0, 1.0, 0.0]), "ROC-AUC")
    assert part == Part(5, 2, "ROC-AUC", 0.5, auc_standard_error(0.5, 2, 3))


@pytest.mark.parametrize(
    ("top_k", "chance"), [(None, (1 + 1 / 2 + 1 / 4 + 1) / 5), (1, 2 / 5), (2, 3 / 5), (4, 4 / 5)]
)
def test_retrieval_by_the_most_frequent_targets(top_k: int | None, chance: float) -> None:
    # Classes are in the order of their frequency; -100 was never seen in training.
    part = retrieval_part(_loader([0, 1, 3, -100, 0]), "metric", top_k)
    assert part.chance == pytest.approx(chance)
    assert part == Part(5, None, "metric", part.chance, share_standard_error(part.chance, 5))
