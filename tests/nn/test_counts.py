from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
import pytest
import torch
from torch import Tensor, nn

from optuna_nis.nn import count_ids, make_searchable


class Clicks(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(60, 4)
        self.genres = nn.EmbeddingBag(70, 4)
        self.norm = nn.BatchNorm1d(4)
        self.norm.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        users, items, genres = batch
        rows = self.user(users) + self.user(items + 30) + self.genres(input=genres)
        loss: Tensor = self.norm(rows).square().mean()
        self.log("loss", loss)
        return loss


def _batches() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [
        tuple(
            torch.randint(0, high, shape, generator=generator)
            for high, shape in ((30, (16,)), (30, (16,)), (70, (16, 3)))
        )
        for _ in range(3)
    ]


@pytest.mark.filterwarnings("error")
def test_what_the_layers_are_asked_for_is_counted() -> None:
    model, batches = Clicks(), _batches()
    mean = model.norm.running_mean.clone()
    counts = count_ids(batches, model, progress=False)
    users = torch.cat([torch.cat([u, i + 30]) for u, i, _ in batches])
    assert torch.equal(counts["user"], torch.bincount(users, minlength=60))
    genres = torch.cat([g.flatten() for _, _, g in batches])
    assert torch.equal(counts["genres"], torch.bincount(genres, minlength=70))
    # The model is as it was.
    assert torch.equal(model.norm.running_mean, mean)
    assert model.training
    assert not model.norm.training
    assert not model.user._forward_pre_hooks
    make_searchable(model, counts=counts)


def test_the_ids_of_a_batch_can_be_named() -> None:
    model, batches = Clicks(), _batches()
    counted = count_ids(batches, model, ids=lambda b: {"genres": b[2]}, progress=False)
    assert set(counted) == {"genres"}
    assert torch.equal(counted["genres"], count_ids(batches, model, progress=False)["genres"])
    stepped = count_ids(
        iter(batches), model, step=lambda b: model.user(b[0].int()), progress=False
    )
    assert stepped["user"].sum() == 48


def test_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    count_ids(_batches(), Clicks())
    assert "Counting ids" in capsys.readouterr().out


def test_bad_arguments() -> None:
    model, batches = Clicks(), _batches()
    with pytest.raises(ValueError, match="`ids` names 'item', which is none of the embedding"):
        count_ids(batches, model, ids=lambda b: {"item": b[0]}, progress=False)
    ids = torch.tensor([9, 99])
    with pytest.raises(ValueError, match="ids of 'user' must be between 0 and 59, got 9 to 99"):
        count_ids(batches, model, ids=lambda b: {"user": ids}, progress=False)
    with pytest.raises(ValueError, match="no embedding layer was asked"):
        count_ids([], model, progress=False)
    model.automatic_optimization = False
    with pytest.raises(ValueError, match="`step` or `ids` must be given: the training step of"):
        count_ids(batches, model, progress=False)
