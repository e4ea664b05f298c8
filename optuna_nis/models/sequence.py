"""The reference model of the next item of a sequence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis._checks import check_integer, check_number
from optuna_nis.data.keys import UNSEEN_TARGET
from optuna_nis.models.embeddings import Batch, tables_of
from optuna_nis.models.items import ITEMS, Examples, ItemsModule, items_of
from optuna_nis.nn._ids import check_ids
from optuna_nis.nn.output import OutputLayer
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace

# More than the length of any sequence. The export to ONNX cannot multiply a mask by the length.
_FAR = 2**31


class SequenceModule(ItemsModule):
    """Which item comes next after a sequence of items: SASRec (Kang and McAuley, 2018).

    The rows of the items of a sequence, with one for each place, go through blocks of
    self-attention in which each item sees those before it. What comes out at the latest one is
    compared with the rows of all items, which are those of the same table: it is searched and
    sized as one feature and counted once. Other features, if there are any, are added to what
    comes out.

    Args:
        tables: As in :class:`RankingModule`, with the table of the items, whose width is that of
            the model.
        sequence: Name of the feature that is the sequence: a bag whose values are in order. Ids
            that are no item are left out.
        num_classes: Number of items, sorted by falling frequency.
        classes: For every id of the sequence the index of the item, ``num_classes`` if it is
            none; by default ids are indices of items.
        latest_first: Whether a sequence begins with the latest item, as the histories of the data
            sets do, or ends with it.
        bags: As in :class:`RankingModule`, the sequence apart.
        num_numeric: There must be no numbers: an item of a sequence has none.
        share: As in :class:`RankingModule`.
        num_blocks: Number of blocks.
        max_length: Items of a longer sequence that are looked at, the latest ones.
        every_position: Whether training is on every item of a sequence, from those before it,
            rather than on the one after the sequence only. It learns more from an epoch, but is
            not for rows that are split at random: their sequences hold what others are tested on.
        repeats: Whether an item may come again. If not, those of a sequence are left out when
            items are ranked: the latest, whose row goes through all blocks, would else be first.
            Where fewer items than are asked for are not of the sequence, those of it come last.
        learning_rate: Of Adam.
        l2: Weight of the mean squared norm of the embeddings looked up.
        dropout: Probability after the embeddings and in each block.
        init_std: Standard deviation of the initial embeddings.
        top_k: As in :class:`RetrievalModule`.
        items: Name of the feature of ``tables`` that is the table of the items.
        num_sampled: Items that each training batch is compared with; as many as there are give
            the full softmax, which takes long with every position.

    Raises:
        ValueError: If an argument is out of range, or ``tables`` has no table of the items or not
            one of ``num_classes`` rows.

    Shapes:
        - batch: the sequence ``(batch, length)``, padded with its number of ids, and others as in
          :class:`RetrievalModule`
        - output: logits ``(batch, num_classes)``

    Example:
        >>> from optuna_nis import EmbeddingSpec
        >>> space = SearchSpace([EmbeddingSpec("items", 100, 16)], budget="50%")
        >>> model = SequenceModule(space, sequence="history", num_classes=100)
        >>> model({"history": torch.tensor([[7, 99, 100], [3, 100, 100]])}).shape
        torch.Size([2, 100])
    """

    _classes: Tensor

    def __init__(
        self,
        tables: SearchSpace | Allocation,
        *,
        sequence: str,
        num_classes: int,
        classes: Sequence[int] | None = None,
        latest_first: bool = False,
        bags: Collection[str] = (),
        num_numeric: int = 0,
        share: Mapping[str, str] | None = None,
        num_blocks: int = 2,
        max_length: int = 50,
        every_position: bool = False,
        repeats: bool = False,
        learning_rate: float = 1e-3,
        l2: float = 0.0,
        dropout: float = 0.2,
        init_std: float = 0.03,
        top_k: Sequence[int] = (1, 10, 50),
        items: str = ITEMS,
        num_sampled: int = 1024,
    ) -> None:
        if num_numeric:
            raise ValueError(
                '`num_numeric` must be 0 for a SequenceModule, the model "sasrec", which takes no '
                f"numbers, got {num_numeric!r}. Leave the numeric columns out, or take the model "
                '"mlp".'
            )
        if sequence in (share or {}):
            raise ValueError(
                f"`share` must leave the sequence out, {sequence!r}: its items are looked up in "
                f"the table of the items already, got {share!r}."
            )
        super().__init__(
            tables=tables,
            num_classes=num_classes,
            top_k=top_k,
            num_sampled=num_sampled,
            bags=set(bags) - {sequence},
            share=share,
            learning_rate=learning_rate,
            l2=l2,
            init_std=init_std,
            output_features=(items,),
        )
        check_number("dropout", dropout, 0, 1)
        check_integer("num_blocks", num_blocks, 1)
        check_integer("max_length", max_length, 1)
        table = tables_of(tables).get(items)
        if table is None or table.num_embeddings != num_classes:
            rows = "none" if table is None else f"one of {table.num_embeddings}"
            raise ValueError(
                f"`tables` must have a table of the items, {items!r}, of `num_classes` rows, "
                f"{num_classes}, got {rows}."
            )
        # Its ids are looked up too.
        self.output_features = ()
        self.sequence = sequence
        self.latest_first = latest_first
        self.every_position = every_position
        self.repeats = repeats
        found = torch.arange(num_classes) if classes is None else torch.as_tensor(classes)
        # A model without weights, which is only looked at, has no values either.
        known = found.is_meta or bool(((found >= 0) & (found <= num_classes)).all())
        if found.dim() != 1 or not known:
            raise ValueError(
                f"`classes` must be integers between 0 and {num_classes}, got {classes!r}."
            )
        self.register_buffer("_classes", functional.pad(found, (0, 1), value=num_classes))
        width = table.embedding_dim
        self.items = items_of(table, init_std=init_std, tied=True)
        self.places = nn.Parameter(torch.randn(max_length, width) * init_std * width**0.5)
        self.dropout = nn.Dropout(dropout)
        # The names of its layers are in the state.
        block = nn.TransformerEncoderLayer(
            width, 1, width, dropout, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            block, num_blocks, nn.LayerNorm(width), enable_nested_tensor=False
        )
        others = len(self.embeddings.names) * self.embeddings.embedding_dim
        self.others = nn.Linear(others, width, bias=False) if others else None

    @property
    def _looked_up(self) -> Collection[str]:
        return [*super()._looked_up, self.sequence]

    def vectors(self, batch: Batch) -> Tensor:
        """What comes out at the latest item of each sequence."""
        return self._latest(batch, self._encoded(self._items_of(batch))[0])

    def left_out(self, batch: Batch) -> Tensor | None:
        """The items of the sequences, unless they may come again."""
        return None if self.repeats else self._in_order(batch)

    def training_examples(self, batch: Batch) -> Examples:
        """What comes out at the items, what comes after each of them, and the rows."""
        ids, labels, weights = self._items_of(batch), batch["label"], self.weights_of(batch)
        encoded, rows = self._encoded(ids)
        latest = self._latest(batch, encoded)
        # An item looks like the next one itself: the tables are tied, and the blocks add to it.
        seen = ids.masked_fill(ids == self.num_classes, UNSEEN_TARGET)
        if not self.every_position:
            return Examples(latest, labels, rows, seen[:, 0], weights)
        vectors = torch.cat([latest.unsqueeze(1), encoded[:, 1:]], 1)
        # The latest comes first: what comes after an item is to its left.
        after = seen[:, :-1].masked_fill(seen[:, 1:] < 0, UNSEEN_TARGET)
        labels = torch.cat([labels.unsqueeze(1), after], 1)
        kept = self._labelled(labels)
        vectors, labels, seen = (each.flatten(0, 1)[kept] for each in (vectors, labels, seen))
        if weights is not None:
            weights = weights.repeat_interleave(ids.shape[1])[kept]
        return Examples(vectors, labels, rows, seen, weights)

    def _labelled(self, labels: Tensor) -> Tensor:
        """Which examples have a label, as many in each run of a batch that choices share."""
        assert isinstance(self.items, OutputLayer)
        known = labels.view(self.items.field_layers()[0].num_choices, -1) >= 0
        first = known.int().argsort(1, descending=True)[:, : int(known.sum(1).max())]
        starts = torch.arange(0, labels.numel(), known.shape[1], device=labels.device)
        return (first + starts.unsqueeze(1)).flatten()

    def _items_of(self, batch: Batch) -> Tensor:
        """Indices of the latest items of each sequence, as many as are seen."""
        items = self._in_order(batch)
        places = torch.arange(items.shape[1], device=items.device)
        # Nothing is cut off: exported models take sequences of any length.
        return items.masked_fill(places >= len(self.places), self.num_classes)

    def _in_order(self, batch: Batch) -> Tensor:
        """Indices of the items of each sequence, the latest first, then ``num_classes``."""
        ids = batch[self.sequence]
        if ids.dim() != 2:
            raise ValueError(
                f"The ids of the sequence {self.sequence!r} must have the shape (batch, length), "
                f"got {tuple(ids.shape)}."
            )
        check_ids(ids, len(self._classes) - 1, self.sequence)
        items = self._classes[ids if self.latest_first else ids.flip(1)]
        places = torch.arange(items.shape[1], device=items.device)
        order = (places + (items == self.num_classes) * _FAR).argsort(1)
        return items.gather(1, order)

    def _encoded(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """What comes out at each item, and the rows that were looked up."""
        rows = self._look_up(items)
        places = torch.arange(items.shape[1], device=items.device)
        # An item sees itself, so that there is something to see, and those before it.
        hidden = (places < places.unsqueeze(1)) | (items == self.num_classes).unsqueeze(1)
        hidden = hidden & (places != places.unsqueeze(1))
        scaled = rows * rows.shape[-1] ** 0.5 + self.places[places.clamp(max=len(self.places) - 1)]
        encoded: Tensor = self.blocks(self.dropout(scaled), mask=hidden, is_causal=False)
        return encoded, rows

    def _look_up(self, items: Tensor) -> Tensor:
        """The rows of items, zeros where there is none."""
        if isinstance(self.items, OutputLayer):
            rows: Tensor = self.items.field_layers()[0](items)
            return rows
        # A plain layer, for serving.
        known = items < self.num_classes
        rows = functional.embedding(items.clamp(max=self.num_classes - 1), self.items.weight)
        return rows * known.unsqueeze(-1)

    def _latest(self, batch: Batch, encoded: Tensor) -> Tensor:
        if self.others is None:
            return encoded[:, 0]
        others: Tensor = self.others(self.embeddings(batch).flatten(1))
        return encoded[:, 0] + others
