"""What a part of the data says about a model that knows nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from optuna_nis.cautions import Part
from optuna_nis.datasets.base import Batch
from optuna_nis.datasets.features import LABEL
from optuna_nis.uncertainty import auc_standard_error, share_standard_error


def ranking_part(loader: DataLoader[Batch], metric: str) -> Part:
    """A part with a yes-or-no label, on which an AUC is measured.

    Args:
        loader: Its batches, with both labels.
        metric: Name of the metric.
    """
    labels = _labels(loader)
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
    labels = _labels(loader)
    known = labels >= 0
    found = 1.0 / (1.0 + labels.double()) if top_k is None else (labels < top_k).double()
    chance = float(torch.where(known, found, 0.0).mean())
    return Part(len(labels), None, metric, chance, share_standard_error(chance, len(labels)))


def _labels(loader: DataLoader[Batch]) -> Tensor:
    return torch.cat([batch[LABEL] for batch in loader])
