from __future__ import annotations

import math

import pytest
import torch
from torch.utils.data import DataLoader

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.lightning.parts import labels_of, ranking_part, retrieval_part
from optuna_nis.models import RankingModule
from optuna_nis.study.cautions import Part
from optuna_nis.study.uncertainty import auc_standard_error, share_standard_error


def test_ranking() -> None:
    part = ranking_part(torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0]), None, "ROC-AUC")
    log_loss = pytest.approx(-0.4 * math.log(0.4) - 0.6 * math.log(0.6))
    assert part == Part(5, 2, "ROC-AUC", 0.5, auc_standard_error(0.5, 2, 3), log_loss)


def test_ranking_with_weights() -> None:
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0])
    part = ranking_part(labels, torch.tensor([1.0, 2.0, 2.0, 3.0, 0.0]), "ROC-AUC")
    error = pytest.approx(auc_standard_error(0.5, 16 / 10, 2))
    # Half of the weight is that of positives.
    assert part == Part(5, 2, "ROC-AUC", 0.5, error, pytest.approx(math.log(2)))
    with pytest.raises(ValueError, match=r"weights of a part must not all be 0.*: 2 of its 5"):
        ranking_part(labels, 1 - labels, "ROC-AUC")


@pytest.mark.parametrize(
    ("top_k", "chance"), [(None, (1 + 1 / 2 + 1 / 4 + 1) / 5), (1, 2 / 5), (2, 3 / 5), (4, 4 / 5)]
)
def test_retrieval_by_the_most_frequent_targets(top_k: int | None, chance: float) -> None:
    # Classes are in the order of their frequency; -100 was never seen in training.
    part = retrieval_part(torch.tensor([0, 1, 3, -100, 0]), None, "metric", top_k)
    assert part.chance == pytest.approx(chance)
    assert part == Part(5, None, "metric", part.chance, share_standard_error(part.chance, 5))


def test_retrieval_with_weights() -> None:
    weights = torch.tensor([4.0, 0.0, 1.0, 5.0, 0.0])
    part = retrieval_part(torch.tensor([0, 1, 3, -100, 0]), weights, "metric", 1)
    error = pytest.approx(share_standard_error(0.4, 100 / 42))
    assert part == Part(5, None, "metric", pytest.approx(0.4), error)


def test_labels_and_weights_of_a_part() -> None:
    rows = [{"label": torch.tensor(n % 2.0), "weight": torch.tensor(n + 0.5)} for n in range(5)]
    loader: DataLoader[dict[str, torch.Tensor]] = DataLoader(rows, batch_size=3)  # type: ignore[arg-type]
    model = RankingModule(SearchSpace([EmbeddingSpec("user", 9, 4)]))
    labels, weights = labels_of(loader, model)
    assert labels.tolist() == [0, 1, 0, 1, 0]
    assert weights is not None
    assert weights.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    named_so = RankingModule(SearchSpace([EmbeddingSpec("weight", 9, 4)]))
    assert labels_of(loader, named_so)[1] is None
