"""What the reference models share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

from lightning.pytorch import LightningModule
import torch
from torch import Tensor, nn

from optuna_nis._checks import check_integer, check_number
from optuna_nis.data.keys import GROUP, NUMERIC, WEIGHT
from optuna_nis.models.embeddings import Batch, FeatureEmbeddings
from optuna_nis.models.metrics import groups_of
from optuna_nis.models.numeric import NumericField, numbers_of
from optuna_nis.models.weights import mean, share_of_processes, weights_of
from optuna_nis.nn import AdamAndRowwiseAdagrad
from optuna_nis.nn._adam import adam
from optuna_nis.nn._sharded_layers import follow_rates
from optuna_nis.nn.table import TableLayer
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace

# The learning rate of row-wise Adagrad, in those of Adam. With 26 features it does better than 1,
# 10 and 30 on a log of a million rows, and than 1 on ten million; on MovieLens as well as Adam.
_TABLES_RATE = 3.0


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
    #: Names of the features whose tables are output layers: no ids of theirs are looked up.
    output_features: tuple[str, ...] = ()
    #: Number of the numbers of each example, besides the features.
    num_numeric: int = 0
    numeric: NumericField

    def __init__(
        self,
        tables: SearchSpace | Allocation,
        *,
        bags: Collection[str],
        learning_rate: float,
        l2: float,
        init_std: float,
        num_numeric: int = 0,
        share: Mapping[str, str] | None = None,
        output_features: Sequence[str] = (),
    ) -> None:
        super().__init__()
        check_integer("num_numeric", num_numeric, 0)
        check_number("learning_rate", learning_rate, 0, or_least=False)
        check_number("l2", l2, 0)
        check_number("init_std", init_std, 0)
        self.learning_rate = learning_rate
        self.l2 = l2
        self.output_features = tuple(output_features)
        self.embeddings = FeatureEmbeddings(
            tables,
            bags=bags,
            leave_out=self.output_features,
            share=share,
            init_std=init_std,
        )
        self.num_numeric = num_numeric
        if num_numeric:
            if NUMERIC in self.embeddings.names:
                raise ValueError(
                    f"`tables` must not have a feature {NUMERIC!r} beside `num_numeric="
                    f"{num_numeric}`: the numbers of a batch have that name."
                )
            self.numeric = NumericField(num_numeric, self.embeddings.embedding_dim)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam on all parameters; row-wise Adagrad on those of tables with sparse gradients."""
        tables = [m.weight for m in self.modules() if isinstance(m, nn.Embedding) and m.sparse]
        if not tables:
            return adam(self.parameters(), self.learning_rate)
        of_tables = {id(weight) for weight in tables}
        dense = [p for p in self.parameters() if id(p) not in of_tables]
        optimizer = AdamAndRowwiseAdagrad(
            dense, tables, self.learning_rate, _TABLES_RATE * self.learning_rate
        )
        follow_rates(self, optimizer)
        return optimizer

    @abstractmethod
    def choice_loss(self, batch: Batch) -> Tensor:
        """The loss of a choice on some examples, without the penalty of the embeddings.

        The mean, by their weights where they have some.
        """

    def num_dense_parameters(self) -> int:
        """Number of parameters outside the tables: those of embeddings and of sized outputs."""
        tables = [self.embeddings, *(m for m in self.modules() if isinstance(m, TableLayer))]
        inside = {id(parameter) for table in tables for parameter in table.parameters()}
        return sum(p.numel() for p in self.parameters() if id(p) not in inside)

    @property
    def _num_inputs(self) -> int:
        """How many numbers an example is: those of all fields, and its own."""
        fields = len(self.embeddings.names) + (self.num_numeric > 0)
        return fields * self.embeddings.embedding_dim + self.num_numeric

    def _beside(self, rows: Tensor, batch: Batch) -> Tensor | None:
        """The inputs beside the rows: the field made of the numbers, then these as they are.

        So have it the linear term of DeepFM (Guo et al., 2017) and DCN-V2 (Wang et al., 2021).

        Returns:
            Shape ``(batch, embedding_dim + num_numeric)``, None without numbers.
        """
        if not self.num_numeric:
            return None
        numbers = numbers_of(batch, self.num_numeric).to(rows.dtype)
        return torch.cat([self.numeric(numbers), numbers], 1)

    def _flat(self, rows: Tensor, batch: Batch) -> Tensor:
        """All inputs in a row.

        Returns:
            Shape ``(batch, inputs)``.
        """
        flat, others = rows.flatten(1), self._beside(rows, batch)
        return flat if others is None else torch.cat([flat, others], 1)

    @property
    def more_metrics(self) -> dict[str, str]:
        """Names for people of other metrics, and under which a test logs each.

        Some only where examples are in groups.
        """
        return {}

    @property
    def _looked_up(self) -> Collection[str]:
        """Names of the features whose ids are looked up."""
        return self.embeddings.names

    def weights_of(self, batch: Batch) -> Tensor | None:
        """The sample weights of a batch, None if it has none.

        Raises:
            TypeError: If they are integers.
            ValueError: If there are not as many as labels, or one is negative or not finite.
        """
        # A feature may have that name, where data have no weights.
        return None if WEIGHT not in batch or WEIGHT in self._looked_up else weights_of(batch)

    def groups_of(self, batch: Batch) -> Tensor | None:
        """The groups of the examples of a batch, users or queries, None if it has none.

        Raises:
            TypeError: If they are no integers.
            ValueError: If there are not as many as labels.
        """
        return None if GROUP not in batch or GROUP in self._looked_up else groups_of(batch)

    def _penalty(self, norms: Tensor, batch: Batch) -> Tensor:
        """What large rows cost, by their squared norms in each example."""
        return self.l2 * mean(norms, self.weights_of(batch))

    def _of_all(self, loss: Tensor, weights: Tensor | None) -> Tensor:
        """A mean by weights, as its share of that over the processes that train together."""
        if weights is None or self._trainer is None or self.trainer.world_size == 1:
            return loss
        return loss * share_of_processes(weights)


def mlp(num_inputs: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Linear layers, each with a ReLU and dropout.

    Args:
        num_inputs: Width of the inputs.
        hidden: Width of each layer.
        dropout: Probability after each layer.

    Raises:
        ValueError: If there is no layer, or an argument is out of range.
    """
    check_number("dropout", dropout, 0, 1)
    check_hidden(hidden)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([num_inputs, *hidden]):
        layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def check_hidden(hidden: Sequence[int]) -> None:
    """Check the widths of the layers of an MLP.

    Raises:
        ValueError: If there is none, or one is no positive integer.
    """
    if len(hidden) == 0:
        raise ValueError(f"`hidden` must hold the width of at least one layer, got {hidden!r}.")
    for width in hidden:
        check_integer("hidden", width, 1)
