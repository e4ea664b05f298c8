"""Reference models: ranking and retrieval over categorical features."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import pairwise
from typing import Any

from lightning.pytorch import LightningModule
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.classification import BinaryAUROC
from torchmetrics.functional.classification import binary_auroc

from optuna_nis._checks import check_integer, check_number
from optuna_nis.data.features import UNSEEN_TARGET, Features
from optuna_nis.models.softmax import (
    estimated_ranks,
    sampled_softmax_loss,
    softmax_loss,
    target_ranks,
    top_items,
)
from optuna_nis.nn import MultiSizeEmbedding, MultiSizeEmbeddingBag, SupernetEmbedding
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace

Batch = dict[str, Tensor]

_MAX_FULL_SOFTMAX = 50_000
_NUM_SAMPLED = 8192
# Items that each target is compared with when choices are scored.
_NUM_RANKED = 1024


class FeatureEmbeddings(nn.Module):
    """The embeddings of all features of a batch, stacked.

    Args:
        tables: A space gives supernet embeddings, an allocation multi-size ones.
        bags: Names of the features whose ids come as bags, pooled by their mean.

    Raises:
        TypeError: If ``tables`` is neither.
        ValueError: If the widths seen downstream differ between features, or a bag is unknown; in
            the forward pass if ids have the wrong number of dimensions.

    Shapes:
        - batch: for every feature ``(batch,)``, or ``(batch, length)`` for bags
        - output: ``(batch, features, embedding_dim)``
    """

    def __init__(
        self, tables: SearchSpace | Allocation, *, bags: Collection[str] = (), init_std: float
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        self.names: list[str] = []
        widths: set[int] = set()
        if isinstance(tables, SearchSpace):
            for spec in tables.specs:
                mode: Any = "mean" if spec.name in bags else None
                self.layers.append(SupernetEmbedding(spec, mode=mode, init_std=init_std))
                self.names.append(spec.name)
                widths.add(spec.embedding_dim)
        elif isinstance(tables, Allocation):
            for table in tables.values():
                kind = MultiSizeEmbeddingBag if table.name in bags else MultiSizeEmbedding
                self.layers.append(kind(table, init_std=init_std))
                self.names.append(table.name)
                widths.add(table.embedding_dim)
        else:
            raise TypeError(
                f"`tables` must be a SearchSpace or an Allocation, got {type(tables).__name__}."
            )
        if unknown := set(bags) - set(self.names):
            raise ValueError(f"`bags` names unknown features {sorted(unknown)}.")
        if len(widths) > 1:
            raise ValueError(
                "All features must have the same `embedding_dim` in this model, got "
                f"{sorted(widths)}."
            )
        self.embedding_dim = widths.pop()
        self._bags = sorted(bags)
        self._shapes = {
            name: ("batch", "length") if name in bags else ("batch",) for name in self.names
        }

    def forward(self, batch: Batch) -> Tensor:
        """Look up every feature."""
        for name, shape in self._shapes.items():
            if batch[name].dim() != len(shape):
                raise ValueError(
                    f"The ids of {name!r} must have the shape ({', '.join(shape)}), `bags` being "
                    f"{self._bags}, got {tuple(batch[name].shape)}."
                )
        return torch.stack([layer(batch[n]) for n, layer in zip(self.names, self.layers)], dim=1)


def _mlp(num_inputs: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    check_number("dropout", dropout, 0, 1)
    if len(hidden) == 0:
        raise ValueError(f"`hidden` must hold the width of at least one layer, got {hidden!r}.")
    for width in hidden:
        check_integer("hidden", width, 1)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([num_inputs, *hidden]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


class EmbeddingModule(LightningModule):
    """What the reference models share: embeddings, optimiser, one metric for each part.

    Subclasses log ``"val_metric"`` and ``"test_metric"``, larger is better.
    """

    #: Name of the metric for people.
    metric_name: str
    #: Under which name the models log what choices are compared by, larger is better.
    monitor: str
    #: Its name for people.
    monitor_name: str
    #: The arguments, besides tables and features, that :func:`reference_model` was given.
    options: dict[str, Any]

    def __init__(
        self,
        tables: SearchSpace | Allocation,
        *,
        bags: Collection[str],
        learning_rate: float,
        l2: float,
        init_std: float,
    ) -> None:
        super().__init__()
        check_number("learning_rate", learning_rate, 0, or_least=False)
        check_number("l2", l2, 0)
        check_number("init_std", init_std, 0)
        self.learning_rate = learning_rate
        self.l2 = l2
        self.embeddings = FeatureEmbeddings(tables, bags=bags, init_std=init_std)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on all parameters."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)

    def num_dense_parameters(self) -> int:
        """Number of parameters outside the embeddings."""
        embeddings = {id(parameter) for parameter in self.embeddings.parameters()}
        return sum(p.numel() for p in self.parameters() if id(p) not in embeddings)

    def _penalty(self, rows: Tensor) -> Tensor:
        return self.l2 * rows.square().sum((1, 2)).mean()


class RankingModule(EmbeddingModule):
    """A DeepFM-style model of a yes-or-no label, measured by ROC-AUC.

    The logit is a factorisation-machine term (the pairwise products of the embeddings) plus an
    MLP and a linear term over all of them (Guo et al., 2017).

    Args:
        tables: A :class:`~optuna_nis.SearchSpace` makes a supernet to be searched, an
            :class:`~optuna_nis.Allocation` a model of these sizes.
        bags: Names of the features whose ids come as bags.
        hidden: Widths of the layers of the MLP.
        learning_rate: Of Adam.
        l2: Weight of the mean squared norm of the embeddings looked up.
        dropout: Probability after each layer of the MLP.
        init_std: Standard deviation of the initial embeddings.

    Raises:
        ValueError: If an argument is out of range.

    Shapes:
        - batch: for every feature ids ``(batch,)``, or ``(batch, length)`` for bags, and
          ``"label"`` of 0 and 1, ``(batch,)``
        - output: logits ``(batch,)``

    Example:
        >>> from optuna_nis import EmbeddingSpec
        >>> space = SearchSpace([EmbeddingSpec("user", 100, 8), EmbeddingSpec("item", 50, 8)])
        >>> model = RankingModule(space.full())
        >>> model({"user": torch.tensor([1, 2]), "item": torch.tensor([3, 4])}).shape
        torch.Size([2])
    """

    metric_name = monitor_name = "ROC-AUC"
    monitor = "val_metric"

    def __init__(
        self,
        tables: SearchSpace | Allocation,
        *,
        bags: Collection[str] = (),
        hidden: Sequence[int] = (128, 64),
        learning_rate: float = 2e-3,
        l2: float = 1e-3,
        dropout: float = 0.0,
        init_std: float = 0.03,
    ) -> None:
        super().__init__(tables, bags=bags, learning_rate=learning_rate, l2=l2, init_std=init_std)
        inputs = len(self.embeddings.names) * self.embeddings.embedding_dim
        self.mlp = _mlp(inputs, hidden, dropout)
        self.head = nn.Linear(hidden[-1], 1)
        self.wide = nn.Linear(inputs, 1, bias=False)
        self.val_auroc = BinaryAUROC()
        self.test_auroc = BinaryAUROC()

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the label."""
        return self._logits(self.embeddings(batch))

    def _logits(self, rows: Tensor) -> Tensor:
        interaction = 0.5 * (rows.sum(1).square() - rows.square().sum(1)).sum(1)
        flat = rows.flatten(1)
        deep: Tensor = self.head(self.mlp(flat)) + self.wide(flat)
        return interaction + deep.squeeze(1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Binary cross-entropy and the penalty of the embeddings."""
        rows = self.embeddings(batch)
        loss = functional.binary_cross_entropy_with_logits(self._logits(rows), batch["label"])
        return loss + self._penalty(rows)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """ROC-AUC over the whole part."""
        self.val_auroc.update(self(batch), batch["label"].int())
        self.log("val_metric", self.val_auroc, prog_bar=True, batch_size=len(batch["label"]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """ROC-AUC over the whole part."""
        self.test_auroc.update(self(batch), batch["label"].int())
        self.log("test_metric", self.test_auroc, batch_size=len(batch["label"]))

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Probabilities of the label."""
        return self._logits(self.embeddings(batch)).sigmoid()

    def choice_quality(self, batch: Batch, num_choices: int) -> Tensor:
        """ROC-AUC of several choices on the same examples; NaN if these are all of one class."""
        target = batch["label"].view(num_choices, -1)[0].int()
        if target.min() == target.max():
            return torch.full((num_choices,), torch.nan)
        logits = self(batch).view(num_choices, -1)
        return torch.stack([binary_auroc(choice, target) for choice in logits])


class RetrievalModule(EmbeddingModule):
    """A softmax over all items from the features of a query, measured by Recall@k.

    It is trained on all items, or on some of them (:func:`sampled_softmax_loss`) where there are
    very many, and always measured on all. Trainings and choices are compared by their mean
    reciprocal rank, ``"val_mrr"``: where items are many, Recall@1 counts a handful of hits.

    Args:
        tables: As in :class:`RankingModule`.
        num_classes: Number of items, sorted by falling frequency.
        bags: As in :class:`RankingModule`.
        hidden: Widths of the layers of the MLP; the last one is the width of the items' vectors.
        learning_rate: Of Adam.
        l2: Weight of the mean squared norm of the embeddings looked up.
        dropout: Probability after each layer of the MLP.
        init_std: Standard deviation of the initial embeddings.
        top_k: The k of the Recall@k that are reported; the first is ``"val_metric"``.
        num_sampled: Items that each training batch is compared with; as many as there are give
            the full softmax. By default all up to 50,000, and 8,192 of more.

    Raises:
        ValueError: If an argument is out of range.

    Shapes:
        - batch: as in :class:`RankingModule`, with ``"label"`` the index of the item,
          ``(batch,)``; an item unknown in training, ``UNSEEN_TARGET``, is never found
        - output: logits ``(batch, num_classes)``

    Example:
        >>> from optuna_nis import EmbeddingSpec
        >>> space = SearchSpace([EmbeddingSpec("history", 100, 8)])
        >>> model = RetrievalModule(space.full(), num_classes=5, bags={"history"})
        >>> model({"history": torch.tensor([[1, 2, 100]])}).shape
        torch.Size([1, 5])
    """

    monitor = "val_mrr"
    monitor_name = "MRR"

    def __init__(
        self,
        tables: SearchSpace | Allocation,
        *,
        num_classes: int,
        bags: Collection[str] = (),
        hidden: Sequence[int] = (256, 64),
        learning_rate: float = 6e-3,
        l2: float = 1e-4,
        dropout: float = 0.0,
        init_std: float = 0.03,
        top_k: Sequence[int] = (1, 10, 50),
        num_sampled: int | None = None,
    ) -> None:
        super().__init__(tables, bags=bags, learning_rate=learning_rate, l2=l2, init_std=init_std)
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
        self.mlp = _mlp(inputs, hidden, dropout)
        self.items = nn.Linear(hidden[-1], num_classes)
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
        known = (batch["label"] != UNSEEN_TARGET).nonzero().squeeze(1)
        vectors = self._vectors(rows).index_select(0, known)
        labels = batch["label"].index_select(0, known)
        if self.num_sampled < self.items.out_features:
            loss = sampled_softmax_loss(vectors, self.items, labels, self.num_sampled)
        else:
            loss = softmax_loss(vectors, self.items, labels)
        return loss + self._penalty(rows)

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


def _reciprocal(ranks: Tensor, label: Tensor) -> Tensor:
    return (label != UNSEEN_TARGET) / (1.0 + ranks)


def reference_model(
    features: Features, **options: Any
) -> Callable[[SearchSpace | Allocation], EmbeddingModule]:
    """Makes the reference model of a data set's task.

    Args:
        features: Features of the data set.
        **options: Arguments of :class:`RankingModule` or :class:`RetrievalModule`.

    Returns:
        A function that makes a supernet from a search space and a model from an allocation.

    Example:
        >>> build = reference_model(data.features)
        >>> space = SearchSpace(data.embedding_specs(8))
        >>> type(build(space)).__name__, type(build(space.full()).embeddings.layers[0]).__name__
        ('RankingModule', 'MultiSizeEmbedding')
    """

    def build(tables: SearchSpace | Allocation) -> EmbeddingModule:
        model: EmbeddingModule
        if features.task == "ranking":
            model = RankingModule(tables, bags=features.bags, **options)
        else:
            model = RetrievalModule(
                tables, num_classes=features.num_classes, bags=features.bags, **options
            )
        model.options = options
        return model

    return build
