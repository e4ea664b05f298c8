"""How much the parts of the data can tell about a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from optuna_nis.data import EmbeddingDataModule
from optuna_nis.data.batches import Batch
from optuna_nis.data.features import LABEL
from optuna_nis.models import EmbeddingModule
from optuna_nis.models.items import ItemsModule
from optuna_nis.study.cautions import Part
from optuna_nis.study.uncertainty import auc_standard_error, share_standard_error


def parts_of_data(
    datamodule: EmbeddingDataModule, model: EmbeddingModule, names: Sequence[str]
) -> dict[str, Part]:
    """How much the parts of the data can tell about a reference model.

    Args:
        datamodule: The data.
        model: The model; on the test part counts what it reports, on validation its monitor.
        names: Which of ``"validation"`` and ``"test"``, beside training.
    """
    parts = {"train": Part(datamodule.sizes["train"])}
    for name in names:
        test = name == "test"
        loader = datamodule.test_dataloader() if test else datamodule.val_dataloader()
        metric = model.metric_name if test else model.monitor_name
        if isinstance(model, ItemsModule):
            parts[name] = retrieval_part(loader, metric, model.top_k[0] if test else None)
        else:
            parts[name] = ranking_part(loader, metric)
    return parts


def ranking_part(loader: DataLoader[Batch], metric: str) -> Part:
    """A part with a yes-or-no label, on which an AUC is measured.

    Args:
        loader: Its batches, with both labels.
        metric: Name of the metric.
    """
    labels = labels_of(loader)
    rows, positives = len(labels), int((labels > 0.5).sum())
    error = auc_standard_error(0.5, positives, rows - positives)
    return Part(rows, positives, metric, 0.5, error)


def retrieval_part(loader: DataLoader[Batch], metric: str, top_k: int | None = None) -> Part:
    """A part with one target out of many, which chance names in the order of their frequency.

    Args:
        loader: Its batches; classes are in the order of the frequency of their targets.
        metric: Name of the metric.
        top_k: The k of a recall, None for the mean reciprocal rank.
    """
    labels = labels_of(loader)
    known = labels >= 0
    found = 1.0 / (1.0 + labels.double()) if top_k is None else (labels < top_k).double()
    chance = float(torch.where(known, found, 0.0).mean())
    return Part(len(labels), None, metric, chance, share_standard_error(chance, len(labels)))


def labels_of(loader: DataLoader[Batch]) -> Tensor:
    """The labels of all rows that a dataloader gives."""
    return torch.cat([batch[LABEL] for batch in loader])
