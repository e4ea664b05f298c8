"""The reference model of a yes-or-no label."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric, Metric
from torchmetrics.functional.classification import binary_auroc

from optuna_nis.models.base import EmbeddingModule, mlp
from optuna_nis.models.embeddings import Batch
from optuna_nis.models.metrics import AUROC, GroupAUC, weighted_auc
from optuna_nis.models.products import Products, products
from optuna_nis.models.weights import weight_sum
from optuna_nis.nn._side_by_side import has_hooks
from optuna_nis.nn._tracing import is_traced
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace

# Inputs of a batch from which on putting weights together takes less time than it saves.
_MANY = 2**19


class RankingModule(EmbeddingModule):
    """A DeepFM-style model of a yes-or-no label, measured by ROC-AUC.

    The logit is a factorisation-machine term (the pairwise products of the embeddings) plus an
    MLP and a linear term over all of them (Guo et al., 2017). Numbers, if there are any, are one
    more field, made by a small network (DLRM, Naumov et al., 2019), and inputs of MLP and linear
    term as they are.

    Args:
        tables: A :class:`~optuna_nis.SearchSpace` makes a supernet to be searched, an
            :class:`~optuna_nis.Allocation` a model of these sizes.
        bags: Names of the features whose ids come as bags.
        num_numeric: Number of the numbers of each example, besides the features.
        share: For features without a table of their own, the feature in whose table their ids
            are looked up too, such as ``{"history": "item"}``; the ids of both are the same.
        hidden: Widths of the layers of the MLP.
        learning_rate: Of Adam.
        l2: Weight of the mean squared norm of the embeddings looked up.
        dropout: Probability after each layer of the MLP.
        init_std: Standard deviation of the initial embeddings.

    Raises:
        ValueError: If an argument is out of range.

    Shapes:
        - batch: for every feature ids ``(batch,)``, or ``(batch, length)`` for bags, and
          ``"label"`` of 0 and 1, ``(batch,)``; with numbers ``"numeric"``, standardised,
          ``(batch, num_numeric)``; with sample weights ``"weight"``, ``(batch,)``, by which loss,
          penalty and metrics are means; with groups, such as users, ``"group"``, integers,
          ``(batch,)``, for GAUC in a test
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
        num_numeric: int = 0,
        share: Mapping[str, str] | None = None,
        hidden: Sequence[int] = (128, 64),
        learning_rate: float = 5e-3,
        l2: float = 1e-3,
        dropout: float = 0.0,
        init_std: float = 0.03,
    ) -> None:
        super().__init__(
            tables,
            bags=bags,
            num_numeric=num_numeric,
            share=share,
            learning_rate=learning_rate,
            l2=l2,
            init_std=init_std,
        )
        self.mlp = mlp(self._num_inputs, hidden, dropout)
        self.head = nn.Linear(hidden[-1], 1)
        self.wide = nn.Linear(self._num_inputs, 1, bias=False)
        self.val_auroc = AUROC()
        self.test_auroc = AUROC()
        self.test_logloss, self.test_gauc = MeanMetric(), GroupAUC()

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the label."""
        return self._predicted(batch)

    def _predicted(self, batch: Batch) -> Tensor:
        rows = self.embeddings(batch)
        return self._logits(rows, products(rows), batch)

    def _logits(self, rows: Tensor, found: Products, batch: Batch) -> Tensor:
        interaction, others = found.pairs, self._beside(rows, batch)
        if others is not None:
            interaction = interaction + (found.sums * others[:, : rows.shape[2]]).sum(1)
        return interaction + self._of_inputs(rows.flatten(1), others).squeeze(1)

    def _of_inputs(self, rows: Tensor, others: Tensor | None) -> Tensor:
        """The MLP and the linear term.

        Of many inputs, their first layers are one product: they are neither copied side by side
        nor gone over twice, nor are their gradients.
        """
        # Of what is traced no size is looked at.
        if is_traced() or rows.numel() < _MANY or not self._has_plain_first_layers():
            flat = rows if others is None else torch.cat([rows, others], 1)
            of_all: Tensor = self.head(self.mlp(flat)) + self.wide(flat)
            return of_all
        first, *layers = self.mlp
        assert isinstance(first, nn.Linear)
        weight = torch.cat([first.weight, self.wide.weight])
        bias = functional.pad(first.bias, (0, 1))
        if others is None:
            hidden = functional.linear(rows, weight, bias)
        else:
            own, rest = torch.split(weight, [rows.shape[1], others.shape[1]], 1)
            hidden = torch.addmm(functional.linear(others, rest, bias), rows, own.t())
        hidden, wide = torch.split(hidden, [first.out_features, 1], 1)
        for layer in layers:
            hidden = layer(hidden)
        deep: Tensor = self.head(hidden) + wide
        return deep

    def _has_plain_first_layers(self) -> bool:
        """Whether the first layers do what they were made for, and nobody looks at them."""
        first, wide = self.mlp[0], self.wide
        return (
            type(first) is type(wide) is nn.Linear
            and first.bias is not None
            and wide.bias is None
            and wide.out_features == 1
            and not any(has_hooks(each) for each in (self.mlp, first, wide))
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Binary cross-entropy and the penalty of the embeddings."""
        rows = self.embeddings(batch)
        found = products(rows)
        loss = self._loss(rows, found, batch) + self._penalty(found.norms, batch)
        return self._of_all(loss, self.weights_of(batch))

    def choice_loss(self, batch: Batch) -> Tensor:
        """Binary cross-entropy."""
        rows = self.embeddings(batch)
        return self._loss(rows, products(rows), batch)

    def _loss(self, rows: Tensor, found: Products, batch: Batch) -> Tensor:
        logits = self._logits(rows, found, batch)
        if (weights := self.weights_of(batch)) is None:
            return functional.binary_cross_entropy_with_logits(logits, batch["label"])
        loss = functional.binary_cross_entropy_with_logits(
            logits, batch["label"], weights, reduction="sum"
        )
        return loss / weight_sum(weights)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """ROC-AUC over the whole part."""
        self._update(self.val_auroc, self(batch), batch)
        self.log("val_metric", self.val_auroc, prog_bar=True, batch_size=len(batch["label"]))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """ROC-AUC and log loss over the whole part, and GAUC, see :class:`GroupAUC`, of groups."""
        logits, label, weights = self(batch), batch["label"], self.weights_of(batch)
        self._update(self.test_auroc, logits, batch)
        losses = functional.binary_cross_entropy_with_logits(logits, label, reduction="none")
        self.test_logloss.update(losses, *(() if weights is None else (weights,)))
        logged: dict[str, Metric] = {
            "test_metric": self.test_auroc,
            "test_logloss": self.test_logloss,
        }
        if (groups := self.groups_of(batch)) is not None:
            self.test_gauc.update(logits.sigmoid(), label, groups, weights)
            logged["test_gauc"] = self.test_gauc
        for name, metric in logged.items():
            self.log(name, metric, batch_size=len(label))

    @property
    def more_metrics(self) -> dict[str, str]:
        """Log loss and, of groups, GAUC."""
        return {"LogLoss": "test_logloss", "GAUC": "test_gauc"}

    def _update(self, metric: AUROC, logits: Tensor, batch: Batch) -> None:
        # Of logits the metric would judge batch by batch whether they are probabilities.
        metric.update(logits.sigmoid(), batch["label"].int(), self.weights_of(batch))

    def predict_step(self, batch: Batch, batch_idx: int = 0) -> Tensor:
        """Probabilities of the label."""
        return self._predicted(batch).sigmoid()

    def choice_quality(self, batch: Batch, num_choices: int) -> Tensor:
        """ROC-AUC of several choices on the same examples; NaN if these are all of one class."""
        target = batch["label"].view(num_choices, -1)[0].int()
        weights = self.weights_of(batch)
        # Also where it tells nothing: other processes may need rows that are looked up together.
        logits = self(batch).view(num_choices, -1)
        if target.min() == target.max():
            return torch.full((num_choices,), torch.nan)
        if weights is None:
            return torch.stack([binary_auroc(choice, target) for choice in logits])
        weights = weights.view(num_choices, -1)[0]
        return torch.stack([weighted_auc(choice, target, weights) for choice in logits]).float()
