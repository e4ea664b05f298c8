"""The reference model of one target out of many, from bags of what is known."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from torch import Tensor, nn

from optuna_nis.models.base import check_hidden, mlp
from optuna_nis.models.embeddings import Batch, tables_of
from optuna_nis.models.items import ITEMS, Examples, ItemsModule, items_of
from optuna_nis.space.allocation import Allocation, TableAllocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec

#: Widths of the layers by default.
HIDDEN: Final = (256, 64)


class RetrievalModule(ItemsModule):
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
        num_numeric: As in :class:`RankingModule`.
        share: As in :class:`RankingModule`.
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

    def __init__(
        self,
        tables: SearchSpace | Allocation,
        *,
        num_classes: int,
        bags: Collection[str] = (),
        num_numeric: int = 0,
        share: Mapping[str, str] | None = None,
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
            tables=tables,
            num_classes=num_classes,
            top_k=top_k,
            num_sampled=num_sampled,
            bags=bags,
            num_numeric=num_numeric,
            share=share,
            learning_rate=learning_rate,
            l2=l2,
            init_std=init_std,
            output_features=() if table is None else (table.name,),
        )
        if not self.embeddings.names:
            raise ValueError(
                f"`tables` must have a feature besides the table of the items, {items!r}, got no "
                "other."
            )
        if table is not None:
            hidden = _with_table(hidden, table, num_classes)
        self.mlp = mlp(self._num_inputs, hidden, dropout)
        self.items = nn.Linear(hidden[-1], num_classes) if table is None else items_of(table)

    def vectors(self, batch: Batch) -> Tensor:
        """The output of the last layer."""
        return self._of_rows(self.embeddings(batch), batch)

    def training_examples(self, batch: Batch) -> Examples:
        """The output of the last layer, the labels and the rows."""
        rows = self.embeddings(batch)
        weights = self.weights_of(batch)
        return Examples(self._of_rows(rows, batch), batch["label"], rows, weights=weights)

    def _of_rows(self, rows: Tensor, batch: Batch) -> Tensor:
        vectors: Tensor = self.mlp(self._flat(rows, batch))
        return vectors


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
