"""The reference model of one target out of many."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from torch import Tensor, nn
from torchmetrics import MeanMetric

from optuna_nis._checks import check_integer
from optuna_nis.data.features import UNSEEN_TARGET
from optuna_nis.models.base import EmbeddingModule, check_hidden, mlp
from optuna_nis.models.embeddings import Batch, tables_of
from optuna_nis.models.softmax import (
    Items,
    estimated_ranks,
    sampled_softmax_loss,
    softmax_loss,
    target_ranks,
    top_items,
)
from optuna_nis.nn import MultiSizeLinear, SupernetLinear
from optuna_nis.space.allocation import Allocation, TableAllocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec

#: Name of the table of the items.
ITEMS: Final = "items"
#: Widths of the layers by default.
HIDDEN: Final = (256, 64)

_MAX_FULL_SOFTMAX = 50_000
_NUM_SAMPLED = 8192
# Items that each target is compared with when choices are scored.
_NUM_RANKED = 1024


class RetrievalModule(EmbeddingModule):
    """A softmax over all items from the features of a query, measured by Recall@k.

    It is trained on all items, or on some of them (:func:`sampled_softmax_loss`) where there are
    very many, and always measured on all. Their vectors are a table as those of the features are:
    where ``tables`` has it, it is searched and sized with them.

    Trainings and choices are compared by their mean reciprocal rank, ``"val_mrr"``: where items
    are many, Recall@1 counts a handful of hits.

    Args:
        tables: As in :class:`RankingModule`, with or without the table of the items.
        num_classes: Number of items, sorted by falling frequency.
        bags: As in :class:`RankingModule`.
        hidden: Widths of the layers of the MLP; the last one is the width of the items' vectors,
            and that of their table takes its place where it is smaller.
        learning_rate: Of Adam.
        l2: Weight of the mean squared norm of the embeddings looked up.
        dropout: Probability after each layer of the MLP.
        init_std: Standard deviation of the initial embeddings.
        top_k: The k of the Recall@k that are reported; the first is ``"val_metric"``.
        items: Name of the feature of ``tables`` that is the table of the items. Where there is
            none of that name, or it is None, they have a plain :class:`torch.nn.Linear`.
        num_sampled: Items that each training batch is compared with; as many as there are give
            the full softmax. By default all up to 50,000, and 8,192 of more.

    Raises:
        ValueError: If an argument is out of range, or the table of the items is not one of
            ``num_classes`` rows or wider than the last layer.

    Shapes:
        - batch: as in :class:`RankingModule`, with ``"label"`` the index of the item,
          ``(batch,)``; an item unknown in training, ``UNSEEN_TARGET``, is never found
        - output: logits ``(batch, num_classes)``

    Example:
        >>> import torch
        >>> from optuna_nis import EmbeddingSpec
        >>> space = SearchSpace([EmbeddingSpec("history", 100, 8)])
        >>> model = RetrievalModule(space.full(), num_classes=5, bags={"history"})
        >>> model({"history": torch.tensor([[1, 2, 100]])}).shape
        torch.Size([1, 5])

        With the table of the items in the space:

        >>> space = SearchSpace([*space.specs, EmbeddingSpec("items", 5, 64)], budget="50%")
        >>> model = RetrievalModule(space, num_classes=5, bags={"history"})
        >>> type(model.items).__name__, model.output_features
        ('SupernetLinear', ('items',))
    """

    monitor = "val_mrr"
    monitor_name = "MRR"

    def __init__(
        self,
        tables: SearchSpace | Allocation,
        *,
        num_classes: int,
        bags: Collection[str] = (),
        hidden: Sequence[int] = HIDDEN,
        learning_rate: float = 6e-3,
        l2: float = 1e-4,
        dropout: float = 0.0,
        init_std: float = 0.03,
        top_k: Sequence[int] = (1, 10, 50),
        items: str | None = ITEMS,
        num_sampled: int | None = None,
    ) -> None:
        table = None if items is None else tables_of(tables).get(items)
        super().__init__(
            tables,
            bags=bags,
            learning_rate=learning_rate,
            l2=l2,
            init_std=init_std,
            output_features=() if table is None else (table.name,),
        )
        if num_classes < 2:
            raise ValueError(f"`num_classes` must be at least 2, got {num_classes!r}.")
        if num_sampled is None:
            num_sampled = num_classes if num_classes <= _MAX_FULL_SOFTMAX else _NUM_SAMPLED
        check_integer("num_sampled", num_sampled, 1)
        if len(top_k) == 0:
            raise ValueError(f"`top_k` must hold at least one k, got {top_k!r}.")
        for k in top_k:
            check_integer("top_k", k, 1)
        self.num_sampled = min(num_sampled, num_classes)
        inputs = len(self.embeddings.names) * self.embeddings.embedding_dim
        if table is not None:
            hidden = _with_table(hidden, table, num_classes)
        self.mlp = mlp(inputs, hidden, dropout)
        self.items: Items
        if table is None:
            self.items = nn.Linear(hidden[-1], num_classes)
        elif isinstance(table, EmbeddingSpec):
            self.items = SupernetLinear(table)
        else:
            self.items = MultiSizeLinear(table)
        self.top_k = tuple(dict.fromkeys(min(k, num_classes) for k in top_k))
        self.metric_name = f"Recall@{self.top_k[0]}"
        self.val_recall = nn.ModuleList(MeanMetric() for _ in self.top_k)
        self.test_recall = nn.ModuleList(MeanMetric() for _ in self.top_k)
        self.val_mrr = MeanMetric()

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the items."""
        logits: Tensor = self.items(self._vectors(self.embeddings(batch)))
        return logits

    def _vectors(self, rows: Tensor) -> Tensor:
        vectors: Tensor = self.mlp(rows.flatten(1))
        return vectors

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy over the items and the penalty of the embeddings."""
        rows = self.embeddings(batch)
        return self._loss(rows, batch) + self._penalty(rows)

    def _loss(self, rows: Tensor, batch: Batch) -> Tensor:
        vectors, labels = self._vectors(rows), batch["label"]
        if self.num_sampled < self.items.out_features:
            return sampled_softmax_loss(vectors, self.items, labels, self.num_sampled)
        return softmax_loss(vectors, self.items, labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Recall@k and mean reciprocal rank over the whole part."""
        ranks = self._ranks(batch)
        self._log_recall("val", self.val_recall, ranks)
        self.val_mrr.update(_reciprocal(ranks, batch["label"]))
        self.log("val_mrr", self.val_mrr, batch_size=len(ranks))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Recall@k over the whole part."""
        self._log_recall("test", self.test_recall, self._ranks(batch))

    def _log_recall(self, part: str, metrics: nn.ModuleList, ranks: Tensor) -> None:
        for index, (k, metric) in enumerate(zip(self.top_k, metrics)):
            assert isinstance(metric, MeanMetric)
            metric.update((ranks < k).float())
            name = f"{part}_metric" if index == 0 else f"{part}_recall@{k}"
            self.log(name, metric, prog_bar=part == "val", batch_size=len(ranks))

    def _ranks(self, batch: Batch) -> Tensor:
        return target_ranks(self._vectors(self.embeddings(batch)), self.items, batch["label"])

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Indices of the best items, best first, of shape ``(batch, max(top_k))``."""
        return top_items(self._vectors(self.embeddings(batch)), self.items, max(self.top_k))

    def choice_quality(self, batch: Batch, num_choices: int) -> Tensor:
        """Mean reciprocal rank of several choices on the same examples.

        A smooth stand-in for the Recall@k that is reported: on a few thousand examples with many
        items, Recall@1 is nearly always zero. Of more than 1,024 items the ranks are estimated
        (:func:`estimated_ranks`), since ranking all would take longer than a training.
        """
        vectors = self._vectors(self.embeddings(batch))
        if self.items.out_features <= _NUM_RANKED:
            ranks = target_ranks(vectors, self.items, batch["label"])
        else:
            ranks = estimated_ranks(vectors, self.items, batch["label"], _NUM_RANKED)
        return _reciprocal(ranks, batch["label"]).view(num_choices, -1).mean(1)


def _with_table(
    hidden: Sequence[int], table: EmbeddingSpec | TableAllocation, num_classes: int
) -> Sequence[int]:
    """Widths of the layers where the last one gives the vectors that a table is compared with."""
    check_hidden(hidden)
    if table.num_embeddings != num_classes or table.embedding_dim > hidden[-1]:
        raise ValueError(
            f"The table of the items, {table.name!r} of `tables`, must have `num_classes` rows, "
            f"{num_classes}, and be at most as wide as the last of `hidden`, {hidden[-1]}, got "
            f"{table.num_embeddings}x{table.embedding_dim}. If it is the table of a feature, give "
            "`items` another name, or None."
        )
    return [*hidden[:-1], table.embedding_dim]


def _reciprocal(ranks: Tensor, label: Tensor) -> Tensor:
    return (label != UNSEEN_TARGET) / (1.0 + ranks)
