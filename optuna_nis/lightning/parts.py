"""How much the parts of the data can tell about a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from optuna_nis.data import EmbeddingDataModule
from optuna_nis.data.batches import Batch
from optuna_nis.data.keys import LABEL
from optuna_nis.data.windows import whole
from optuna_nis.models import EmbeddingModule
from optuna_nis.models.items import ItemsModule
from optuna_nis.models.weights import mean
from optuna_nis.study.cautions import Part
from optuna_nis.study.uncertainty import auc_standard_error, effective_rows, share_standard_error


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
        labels, weights = labels_of(loader, model)
        metric = model.metric_name if test else model.monitor_name
        if isinstance(model, ItemsModule):
            parts[name] = retrieval_part(labels, weights, metric, model.top_k[0] if test else None)
        else:
            parts[name] = ranking_part(labels, weights, metric)
    return parts


def ranking_part(labels: Tensor, weights: Tensor | None, metric: str) -> Part:
    """A part with a yes-or-no label, on which an AUC is measured.

    Args:
        labels: Of its rows, both among them.
        weights: Of its rows, if these have some.
        metric: Name of the metric.
    """
    positive = labels > 0.5
    error = auc_standard_error(0.5, num_rows(positive, weights), num_rows(~positive, weights))
    share = mean(positive.double(), weights)
    log_loss = functional.binary_cross_entropy(share, share)
    return Part(len(labels), int(positive.sum()), metric, 0.5, error, float(log_loss))


def retrieval_part(
    labels: Tensor, weights: Tensor | None, metric: str, top_k: int | None = None
) -> Part:
    """A part with one target out of many, which chance names in the order of their frequency.

    Args:
        labels: Of its rows; classes are in the order of the frequency of their targets.
        weights: Of its rows, if these have some.
        metric: Name of the metric.
        top_k: The k of a recall, None for the mean reciprocal rank.
    """
    known = labels >= 0
    found = 1.0 / (1.0 + labels.double()) if top_k is None else (labels < top_k).double()
    chance = float(mean(torch.where(known, found, 0.0), weights))
    error = share_standard_error(chance, num_rows(torch.ones_like(known), weights))
    return Part(len(labels), None, metric, chance, error)


def labels_of(loader: Iterable[Batch], model: EmbeddingModule) -> tuple[Tensor, Tensor | None]:
    """The labels of all rows that a dataloader gives, and their weights, if they have some."""
    labels, weights = [], []
    for batch in whole(loader):
        labels.append(batch[LABEL])
        if (own := model.weights_of(batch)) is not None:
            weights.append(own.double())
    return torch.cat(labels), torch.cat(weights) if weights else None


def num_rows(which: Tensor, weights: Tensor | None) -> float:
    """How many rows some of a part are, or what rows of equal weight say as much.

    Args:
        which: Whether each row of the part is among them.
        weights: Of the rows of the part, if these have some.

    Raises:
        ValueError: If all these have the weight 0: nothing can be measured.
    """
    if weights is None:
        return int(which.sum())
    if not (rows := effective_rows(weights[which].numpy())):
        raise ValueError(
            "The sample weights of a part must not all be 0, for ranking those of neither class: "
            f"{int(which.sum()):,} of its {len(which):,} rows have no other."
        )
    return rows
