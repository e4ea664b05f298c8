"""What models that choose among many items share: the softmax, its losses and its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from optuna_nis._checks import check_integer
from optuna_nis.data.keys import UNSEEN_TARGET
from optuna_nis.models.base import EmbeddingModule
from optuna_nis.models.embeddings import Batch
from optuna_nis.models.metrics import GroupMean
from optuna_nis.models.softmax import (
    Items,
    estimated_ranks,
    sampled_softmax_loss,
    softmax_loss,
    target_ranks,
    top_items,
    without,
)
from optuna_nis.nn import MultiSizeLinear, SupernetLinear
from optuna_nis.space.allocation import TableAllocation
from optuna_nis.space.spec import EmbeddingSpec

#: Name of the table of the items.
ITEMS: Final = "items"

_MAX_FULL_SOFTMAX = 50_000
_NUM_SAMPLED = 8192
# Items that each target is compared with when choices are scored.
_NUM_RANKED = 1024
_NDCG_K = 10
# Under which names scores are logged.
_VALIDATION, _TEST, _BY_GROUP = "val_{}", "test_{}", "test_{}_by_group"


class Examples(NamedTuple):
    """What a training batch is made of.

    Attributes:
        vectors: What the items are compared with, shape ``(examples, width)``.
        labels: The item that comes next of each.
        rows: The rows that were looked up, to be penalised.
        certain: As in :func:`sampled_softmax_loss`.
        weights: As in :func:`sampled_softmax_loss`.
    """

    vectors: Tensor
    labels: Tensor
    rows: Tensor
    certain: Tensor | None = None
    weights: Tensor | None = None


class ItemsModule(EmbeddingModule):
    """A softmax over all items, measured by Recall@k, NDCG@10 and mean reciprocal rank.

    Subclasses set :attr:`items` and give the vectors that these are compared with.

    Args:
        num_classes: Number of items, sorted by falling frequency.
        top_k: The k of the Recall@k that are reported; the first is ``"val_metric"``.
        num_sampled: Items that each training batch is compared with, None for the default.
        **options: Arguments of :class:`EmbeddingModule`.

    Raises:
        ValueError: If an argument is out of range.
    """

    monitor = "val_mrr"
    monitor_name = "MRR"
    #: The layer that gives the logits.
    items: Items

    def __init__(
        self, *, num_classes: int, top_k: Sequence[int], num_sampled: int | None, **options: Any
    ) -> None:
        super().__init__(**options)
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2, got {num_classes!r}.")
        if num_sampled is None:
            num_sampled = num_classes if num_classes <= _MAX_FULL_SOFTMAX else _NUM_SAMPLED
        check_integer("num_sampled", num_sampled, 1)
        if len(top_k) == 0:
            raise ValueError(f"`top_k` must hold at least one k, got {top_k!r}.")
        for k in top_k:
            check_integer("top_k", k, 1)
        self.num_classes = num_classes
        self.num_sampled = min(num_sampled, num_classes)
        self.top_k = tuple(dict.fromkeys(min(k, num_classes) for k in top_k))
        self.metric_name = f"Recall@{self.top_k[0]}"
        names = ["metric", *(f"recall@{k}" for k in self.top_k[1:]), f"ndcg@{_NDCG_K}", "mrr"]
        self.val_scores = nn.ModuleDict({name: MeanMetric() for name in names})
        self.test_scores = nn.ModuleDict({name: MeanMetric() for name in names})
        self.test_group_scores = nn.ModuleDict({name: GroupMean() for name in names})

    def vectors(self, batch: Batch) -> Tensor:
        """What the items are compared with, one vector for each example."""
        raise NotImplementedError

    def training_examples(self, batch: Batch) -> Examples:
        """What a training batch is made of."""
        raise NotImplementedError

    def left_out(self, batch: Batch) -> Tensor | None:
        """Items of each example that are not asked for, as :func:`without` takes them."""
        return None

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the items."""
        return without(self.items(self.vectors(batch)), self.left_out(batch))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy over the items and the penalty of the embeddings."""
        found = self.training_examples(batch)
        loss = self._loss(found.vectors, found.labels, found.weights, found.certain)
        penalty = self._penalty(found.rows.square().sum((1, 2)), batch)
        weights = self.weights_of(batch)
        return self._of_all(loss, found.weights) + self._of_all(penalty, weights)

    def choice_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy over the items."""
        return self._loss(self.vectors(batch), batch["label"], self.weights_of(batch))

    def _loss(
        self,
        vectors: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        certain: Tensor | None = None,
    ) -> Tensor:
        if self.num_sampled < self.num_classes:
            return sampled_softmax_loss(
                vectors, self.items, labels, self.num_sampled, certain, weights
            )
        return softmax_loss(vectors, self.items, labels, weights)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Recall@k, NDCG@10 and mean reciprocal rank over the whole part."""
        weights = self.weights_of(batch)
        self._log_scores(_VALIDATION, self.val_scores, self._scores(batch), weights)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Recall@k, NDCG@10 and mean reciprocal rank over the whole part, and over its groups."""
        scores, weights = self._scores(batch), self.weights_of(batch)
        self._log_scores(_TEST, self.test_scores, scores, weights)
        if (groups := self.groups_of(batch)) is not None:
            self._log_scores(_BY_GROUP, self.test_group_scores, scores, groups, weights)

    @property
    def more_metrics(self) -> dict[str, str]:
        """Those beside the first recall and, of groups, the means of all of them over groups."""
        shown = [*(f"Recall@{k}" for k in self.top_k), f"NDCG@{_NDCG_K}", "MRR"]
        names = dict(zip(shown, self.test_scores))
        more = {each: _TEST.format(name) for each, name in names.items() if name != "metric"}
        return more | {f"{each} by group": _BY_GROUP.format(name) for each, name in names.items()}

    def _scores(self, batch: Batch) -> list[Tensor]:
        """Recall@k, NDCG@10 and reciprocal rank of each example."""
        ranks = self._ranks(batch)
        gains = 1.0 / (2.0 + ranks).log2()
        # An item unknown in training ranks after all of them, be these ever so few.
        found = (ranks < min(_NDCG_K, self.num_classes)).float()
        scores = [(ranks < k).float() for k in self.top_k]
        return [*scores, gains * found, _reciprocal(ranks, batch["label"])]

    def _log_scores(
        self,
        pattern: str,
        metrics: nn.ModuleDict,
        scores: Sequence[Tensor],
        *of_each: Tensor | None,
    ) -> None:
        """Log the means of scores by metrics, which take groups and weights if there are some."""
        known = [each for each in of_each if each is not None]
        for (name, metric), score in zip(metrics.items(), scores):
            assert isinstance(metric, Metric)
            metric.update(score, *known)
            shown = pattern is _VALIDATION and name.startswith(("metric", "recall"))
            self.log(pattern.format(name), metric, prog_bar=shown, batch_size=len(score))

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Indices of the best items, best first, of shape ``(batch, max(top_k))``."""
        vectors, left_out = self.vectors(batch), self.left_out(batch)
        return top_items(vectors, self.items, max(self.top_k), left_out)

    def _ranks(self, batch: Batch) -> Tensor:
        vectors, left_out = self.vectors(batch), self.left_out(batch)
        return target_ranks(vectors, self.items, batch["label"], left_out)

    def choice_quality(self, batch: Batch, num_choices: int) -> Tensor:
        """Mean reciprocal rank of several choices on the same examples.

        A smooth stand-in for the Recall@k that is reported: on a few thousand examples with many
        items, Recall@1 is nearly always zero. Of more than 1,024 items the ranks are estimated
        (:func:`estimated_ranks`), since ranking all would take longer than a training.
        """
        if self.num_classes <= _NUM_RANKED:
            ranks = self._ranks(batch)
        else:
            vectors, left_out = self.vectors(batch), self.left_out(batch)
            ranks = estimated_ranks(vectors, self.items, batch["label"], _NUM_RANKED, left_out)
        found = _reciprocal(ranks, batch["label"]).view(num_choices, -1)
        if (weights := self.weights_of(batch)) is None:
            return found.mean(1)
        weights = weights.view(num_choices, -1)
        return (found * weights).sum(1) / weights.sum(1)


def items_of(
    table: EmbeddingSpec | TableAllocation, *, init_std: float | None = None, tied: bool = False
) -> SupernetLinear | MultiSizeLinear:
    """The items of a table, to be searched or of chosen sizes."""
    layer: SupernetLinear | MultiSizeLinear
    if isinstance(table, EmbeddingSpec):
        layer = SupernetLinear(table, init_std=init_std)
    else:
        layer = MultiSizeLinear(table, init_std=init_std)
    layer.tied = tied
    return layer


def _reciprocal(ranks: Tensor, label: Tensor) -> Tensor:
    return (label != UNSEEN_TARGET) / (1.0 + ranks)
