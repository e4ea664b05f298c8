"""Numbers, weights and groups on a device, which is not waited for in training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pretend_device import DEVICE, PretendDevice
import pytest
import torch
from torch import Tensor
from users_and_genres import SPACE, batch_of

from optuna_nis.models import RankingModule, RetrievalModule
from optuna_nis.models.metrics import GroupAUC, GroupMean, weighted_auc

OPTIONS: dict[str, Any] = {"bags": {"genres"}, "num_numeric": 2, "l2": 0.1, "init_std": 1.0}


@pytest.fixture
def device() -> Iterator[PretendDevice]:
    with PretendDevice() as device:
        yield device


@pytest.mark.parametrize("kind", [RankingModule, RetrievalModule])
def test_training(kind: Any, device: PretendDevice) -> None:
    retrieval = kind is RetrievalModule
    batch = batch_of() | {"numeric": torch.randn(16, 2), "weight": torch.rand(16)}
    batch["label"] = torch.arange(16) % 5 if retrieval else batch["label"]
    model = kind(SPACE, **OPTIONS, **({"num_classes": 5} if retrieval else {})).eval()
    expected = model.training_step(batch, 0).detach()
    moved: dict[str, Tensor] = {name: values.to(DEVICE) for name, values in batch.items()}
    model.to(DEVICE)
    model.training_step(moved, 0).backward()  # What is constant goes there once.
    device.reset()
    loss = model.training_step(moved, 0)
    loss.backward()
    assert not device.waits
    torch.testing.assert_close(loss.detach().cpu(), expected)
    quality = model.choice_quality(moved, 1)
    torch.testing.assert_close(quality.cpu(), model.cpu().choice_quality(batch, 1))


def test_metrics(device: PretendDevice) -> None:
    scores, weights = torch.rand(50), torch.rand(50)
    target, groups = torch.randint(0, 2, (50,)), torch.randint(0, 9, (50,))
    given = (scores, target, groups, weights)
    there = tuple(each.to(DEVICE) for each in given)
    torch.testing.assert_close(
        weighted_auc(*there[:2], there[3]).cpu(), weighted_auc(scores, target, weights)
    )
    for make, which in ((GroupAUC, (0, 1, 2, 3)), (GroupMean, (0, 2, 3))):
        found = []
        for each in (given, there):
            metric: Any = make()
            metric.update(*(each[index] for index in which))
            found.append(metric.compute().cpu())
        torch.testing.assert_close(*found)
