"""Counting the ids of the training data of a model that is to be searched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
import pytest
from tiny import IDS, TRAIN, Net, batches_of
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, IterableDataset

from optuna_nis.lightning.swapping import swapped_subject
from optuna_nis.nn import supernet_layers


def _subject(kind: type[Net], data: Any, **options: Any) -> Any:
    count_options = {"progress": False, **options.pop("count_options", {})}
    space = {"budget": 0.5, "mode": "multi", "precisions": (32,)}
    return swapped_subject(kind, data, None, count_options, None, oov="zero", **space, **options)


class _Turned(LightningDataModule):
    """Its batches have other ids than those of its dataloader, in which 0 is most frequent."""

    def train_dataloader(self) -> Any:
        return [(torch.tensor([0] * 50 + list(range(IDS))), torch.zeros(50 + IDS))]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return IDS - 1 - batch[0], batch[1]


def test_hooks_of_a_data_module_come_before_ids_are_counted() -> None:
    (layer,) = supernet_layers(_subject(Net, _Turned()).supernet()).values()
    assert layer.ranks is not None
    assert layer.ranks.argmin() == IDS - 1


class _Stream(IterableDataset[Any]):
    """Without an end by default, which nobody is to come near."""

    def __init__(self, length: int | None = None) -> None:
        self.length = length

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(1000 if self.length is None else self.length):
            yield torch.tensor([number % IDS])
        assert self.length is not None


def _stream(length: int | None = None) -> DataLoader[Any]:
    return DataLoader(_Stream(length), batch_size=None)


@pytest.mark.parametrize(
    ("loader", "limit", "options", "expected"),
    [
        (_stream(), 3, {}, 4 * 3),
        (_stream(), 1, {}, 4),
        (_stream(), 3.0, {}, 4 * 3),
        (_stream(), 3, {"max_batches": 5}, 5),
        (_stream(), None, {"max_batches": 5}, 5),
        ([batches_of(TRAIN), _stream()], 3, {}, 4 * 3),
        (CombinedLoader({"a": batches_of(TRAIN), "b": _stream()}, "max_size_cycle"), 3, {}, 4 * 3),
        # All of what has an end, as far as can be told.
        (_stream(15), 0.5, {}, 15),
        (_stream(15), 1.0, {}, 15),
        (_stream(15), None, {}, 15),
        (batches_of(TRAIN, 4), 3, {}, 16),
        ({"a": batches_of(TRAIN, 4)}, 3, {}, 16),
    ],
)
def test_of_data_without_an_end_a_few_epochs_are_counted(
    loader: Any, limit: Any, options: dict[str, Any], expected: int
) -> None:
    steps: list[int] = []

    class Noting(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            steps.append(batch_idx)
            return self(tree_leaves(batch)[0]).sum()

    trainer = {} if limit is None else {"limit_train_batches": limit}
    _subject(Noting, (loader, None), trainer_options=trainer, count_options=options)
    assert steps == list(range(expected))
