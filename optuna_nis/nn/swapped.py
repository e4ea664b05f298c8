"""What an ``nn.Embedding``, ``nn.EmbeddingBag`` or ``nn.Linear`` of a user's model becomes.

The layer stays the object that it was and keeps its attributes, so whoever holds on to it, calls
it or asks for its type goes on working. Only its class changes, and where its weight was there is
one layer of this package for each field of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis.nn._ids import (
    bags_of,
    check_bags,
    check_weights,
    mean_of,
    no_offsets,
    without_rest,
)
from optuna_nis.nn._look_up import split
from optuna_nis.nn._ranked import constant
from optuna_nis.nn._side_by_side import rows_side_by_side
from optuna_nis.nn._sparse import sparse_only
from optuna_nis.nn._tracing import is_traced
from optuna_nis.nn._weight import table_weight
from optuna_nis.nn.multi_size import MultiSize, MultiSizeEmbeddingBag
from optuna_nis.nn.output import OutputLayer, linear_std
from optuna_nis.nn.supernet import SupernetEmbedding
from optuna_nis.nn.table import OfFields, TableLayer

# What cannot be changed of a layer whose table is made of fields.
_FIXED = (
    *("weight", "num_embeddings", "embedding_dim", "padding_idx"),
    *("in_features", "out_features"),
)
_PLAIN = (nn.Embedding, nn.EmbeddingBag, nn.Linear)


class _Swapped(OfFields):
    """A table of one field, or of several whose ids follow each other."""

    padding_idx: int | None
    # Where the ids of each field start and end, by field; no state.
    _bounds: Tensor
    _name: str
    _padding_row: Tensor | None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED:
            raise AttributeError(
                f"`{name}` of the swapped layer {self._name!r} cannot be set. Resize, tie or load "
                "its table before it is swapped."
            )
        super().__setattr__(name, value)

    @property
    def _is_guest(self) -> bool:
        """Whether the fields are those of another layer, which alone has them as its modules."""
        return "fields" in self.__dict__

    def reset_parameters(self) -> None:
        """Start anew, as the layer that this was would."""
        self._reset_rows(1.0)

    @torch.no_grad()
    def _reset_rows(self, std: float) -> None:
        for layer in self.field_layers():
            if isinstance(layer, SupernetEmbedding):
                layer.init_std = std
                layer.reset_parameters()
                layer.weight[-1].zero_()
            elif isinstance(layer, MultiSize):
                for tier in layer.tier_modules():
                    tier.init_std = std
                layer.reset_parameters()
        if self._padding_row is not None:
            self._padding_row.zero_()

    def set_fields(self, fields: nn.ModuleList) -> None:
        """Have the rows in other layers from now on."""
        if self._is_guest:
            self.__dict__["fields"] = fields
        else:
            self.fields = fields
        ends = list(accumulate(layer.num_ids for layer in self.field_layers()))
        self._bounds = torch.tensor([[0, *ends[:-1]], ends], device="cpu")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Where the row of padding was not zero, it need not have been so here.
        given = state_dict.get(f"{prefix}_padding_row")
        if isinstance(given, Tensor) and self._padding_row is None and self._keeps_padding():
            like = self.field_layers()[0].like()
            self._padding_row = torch.zeros_like(given, dtype=like.dtype, device=like.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _keeps_padding(self) -> bool:
        """Whether the row of padding may be another one than zero: bags leave it out."""
        return self.padding_idx is not None and not isinstance(self, nn.EmbeddingBag)

    def _check_whole(self) -> None:
        if is_traced():
            return
        # By its name: the module that has the class takes long to import.
        if any(type(parameter).__name__ == "DTensor" for parameter in self.fields.parameters()):
            raise RuntimeError(
                f"The table of {self._name!r} is sharded: it can be read while its model runs, or "
                "between `unshard()` and `reshard()` of the module that `fully_shard` was given."
            )


class _SwappedTable(_Swapped):
    """What looking ids up and pooling them have in common."""

    num_embeddings: int
    embedding_dim: int
    sparse: bool

    def _table(self) -> Tensor:
        """The table as the model sees it under the one choice that is set."""
        if self.sparse:
            sparse_only(self.fields)
        self._check_whole()
        for layer in self.field_layers():
            layer.check_one_choice()
        device = self.field_layers()[0].like().device
        return self._rows(torch.arange(self.num_embeddings, device=device))

    def _known(self, ids: Tensor) -> Tensor:
        """The ids, padding as the id out of vocabulary of the whole table."""
        if self.padding_idx is None:
            return ids
        return ids.masked_fill(ids == self.padding_idx, self.num_embeddings)

    def _columns(self, ids: Tensor) -> list[tuple[TableLayer, Tensor]] | None:
        """Layer and ids of every field, if each has a column of its own; else None."""
        # What data decides cannot be traced, and the length of bags is not to be fixed.
        if is_traced() or ids.is_meta:
            return None
        layers = self.field_layers()
        if len(layers) == 1 or ids.dim() < 2 or ids.shape[-1] != len(layers):
            return None
        starts, ends = constant(self, "_bounds", ids.device)
        if not bool(((ids >= starts) & (ids < ends)).all()):
            return None
        local = ids - starts
        columns = [local[..., index] for index in range(len(layers))]
        if self.padding_idx is not None:
            padding = (ids == self.padding_idx).unbind(-1)
            columns = [c.masked_fill(p, f.num_ids) for c, p, f in zip(columns, padding, layers)]
        return list(zip(layers, columns))

    def _rows(self, ids: Tensor) -> Tensor:
        """The row of every id of any shape."""
        if ids.dim() == 0:
            return self._rows(ids.view(1))[0]
        columns = self._columns(ids)
        if columns is not None:
            if ids.dim() == 2:
                return rows_side_by_side(columns, lambda index: _rows_of(*columns[index]))
            return torch.stack([_rows_of(layer, column) for layer, column in columns], dim=-2)
        self._check(ids)
        layers = self.field_layers()
        known = self._known(ids)
        if len(layers) == 1:
            return _rows_of(layers[0], known)
        shared = any(layer.num_choices > 1 for layer in layers)
        if shared or is_traced() or ids.is_meta:
            # Each field looks all ids up, those of the others as out of its vocabulary: a batch
            # that is shared among choices must not be taken apart, nor can it be traced.
            rows = [self._of_field(index, known) for index in range(len(layers))]
            return sum(rows[1:], start=rows[0])
        flat = known.reshape(-1)
        *found, (beyond, _) = split(flat, [layer.num_ids for layer in layers])
        parts = [_rows_of(layer, local) for layer, (_, local) in zip(layers, found)]
        where = torch.cat([*(where for where, _ in found), beyond])
        output = torch.cat([*parts, parts[0].new_zeros(len(beyond), self.embedding_dim)])
        output = torch.zeros_like(output).index_copy(0, where, output)
        return output.view(*ids.shape, self.embedding_dim)

    def _of_field(self, index: int, known: Tensor) -> Tensor:
        """The rows of ids, those of other fields and of padding zero."""
        layers = self.field_layers()
        layer = layers[index]
        local = known - sum(each.num_ids for each in layers[:index])
        outside = (local < 0) | (local >= layer.num_ids)
        return _rows_of(layer, local.masked_fill(outside, layer.num_ids))

    def _check(self, ids: Tensor) -> None:
        if ids.device.type == "cpu" and ids.numel() and not is_traced():
            low, high = ids.aminmax()
            if low < 0 or high >= self.num_embeddings:
                raise ValueError(
                    f"`input` must hold ids between 0 and {self.num_embeddings - 1}, got "
                    f"{int(low) if low < 0 else int(high)}."
                )


class SwappedEmbedding(_SwappedTable, nn.Embedding):
    """An :class:`torch.nn.Embedding` whose rows come from layers of this package.

    Made by :func:`make_searchable` and :func:`apply_allocation`.
    """

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The table as the model sees it, by id: computed at each access, differentiable."""
        ids = torch.arange(self.num_embeddings, device=self.field_layers()[0].like().device)
        return table_weight(self._filled(ids, self._table()), self._name)

    def forward(self, input: Tensor) -> Tensor:
        """Look up ids of any shape, also jagged ones."""
        if self.sparse:
            sparse_only(self.fields)
        if input.is_nested:
            return self._jagged(input)
        return self._filled(input, self._rows(input))

    def _jagged(self, ids: Tensor) -> Tensor:
        if ids.layout != torch.jagged:
            raise TypeError(
                f"`input` of {self._name!r} must be an ordinary tensor or a jagged one, got a "
                "nested one of another layout."
            )
        choices = self.field_layers()[0].num_choices
        if choices > 1:
            raise ValueError(
                f"Jagged ids of {self._name!r} cannot be shared among {choices} choices; use "
                "NISCallback(..., choices_per_step=1)."
            )
        rows = self(ids.values())
        cuts = ids.offsets(), ids.lengths()  # type: ignore[attr-defined]
        return torch.nested.nested_tensor_from_jagged(rows, *cuts)

    def _filled(self, ids: Tensor, rows: Tensor) -> Tensor:
        # A row of padding that is not zero is a constant, as in torch.
        if self._padding_row is None or self.padding_idx is None:
            return rows
        padding = torch.eq(ids, self.padding_idx).unsqueeze(-1)
        return torch.where(padding, self._padding_row, rows)


class SwappedEmbeddingBag(_SwappedTable, nn.EmbeddingBag):
    """An :class:`torch.nn.EmbeddingBag` whose rows come from layers of this package.

    Made by :func:`make_searchable` and :func:`apply_allocation`. The maximum of a bag is taken
    over projected rows, since a maximum cannot be projected after pooling; that costs more than
    sum and mean, which are pooled first.
    """

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The table as the model sees it, by id: computed at each access, differentiable."""
        return table_weight(self._table(), self._name)

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Look up and pool bags of ids, as torch takes them.

        With ``include_last_offset`` the last bag ends where the last offset says, in every mode.
        """
        if self.sparse:
            sparse_only(self.fields)
        if per_sample_weights is not None and self.mode != "sum":
            raise ValueError(f"`per_sample_weights` needs mode='sum', got {self.mode!r}.")
        if input.dim() == 1 and offsets is None:
            check_bags(input, offsets, self._name)
        check_weights(per_sample_weights, input, self._name)
        # Bags by offsets are refused below where a model is traced.
        if offsets is not None and self.include_last_offset and not is_traced():
            input, offsets, per_sample_weights = without_rest(
                input, offsets, per_sample_weights, self.num_embeddings, self._name
            )
        if self.mode == "max":
            return self._maximum(input, offsets)
        columns = None if per_sample_weights is not None else self._columns(input)
        if columns is not None:
            parts = [layer(column.unsqueeze(-1)) for layer, column in columns]
            output: Tensor = sum(parts[1:], start=parts[0])
        elif len(self.fields) == 1 and self._pools(offsets, per_sample_weights):
            self._check(input)
            more = () if offsets is per_sample_weights is None else (offsets, per_sample_weights)
            output = self.fields[0](self._known(input), *more)
            return output
        else:
            output = self._sum(input, offsets, per_sample_weights)
        if self.mode == "sum":
            return output
        return mean_of(output, self._known(input), offsets, self.num_embeddings)

    def _pools(self, offsets: Tensor | None, weights: Tensor | None) -> bool:
        """Whether the layer of the only field pools such bags."""
        plain = offsets is None and weights is None
        return plain or isinstance(self.fields[0], MultiSizeEmbeddingBag)

    def _bags(self, ids: Tensor, offsets: Tensor | None) -> tuple[Tensor, Tensor, int]:
        first = self.field_layers()[0]
        if offsets is not None and first.num_choices > 1:
            raise ValueError(
                f"Bags of {first.name!r} given by `offsets` cannot be shared among "
                f"{first.num_choices} choices; use NISCallback(..., choices_per_step=1)."
            )
        return bags_of(ids, offsets, first.name)

    def _sum(self, ids: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        if is_traced():
            rows = self._traced_rows(ids, offsets)
            if weights is not None:
                rows = rows * weights.unsqueeze(-1).to(rows.dtype)
            return rows.sum(1)
        flat, bags, num_bags = self._bags(ids, offsets)
        rows = self._rows(flat)
        if weights is not None:
            rows = rows * weights.reshape(-1, 1).to(rows.dtype)
        return rows.new_zeros(num_bags, self.embedding_dim).index_add(0, bags, rows)

    def _traced_rows(self, ids: Tensor, offsets: Tensor | None) -> Tensor:
        """The rows of bags of one length, whose number no data decides."""
        if offsets is not None:
            filler = None if self.padding_idx is None else "its padding_idx"
            raise ValueError(no_offsets(self.field_layers()[0].name, filler))
        return self._rows(ids)

    def _maximum(self, ids: Tensor, offsets: Tensor | None) -> Tensor:
        if is_traced():
            rows = self._traced_rows(ids, offsets)
            if self.padding_idx is None:
                return rows.amax(1)
            known = torch.ne(ids, self.padding_idx).unsqueeze(-1)
            highest = rows.masked_fill(~known, -math.inf).amax(1)
            return torch.where(known.any(1), highest, torch.zeros_like(highest))
        flat, bags, num_bags = self._bags(ids, offsets)
        rows = self._rows(flat)
        if self.padding_idx is not None or self.include_last_offset:
            left_out = self._known(flat) == self.num_embeddings
            rows = rows.masked_fill(left_out.unsqueeze(1), -math.inf)
        index = bags.unsqueeze(1).expand(-1, self.embedding_dim)
        # Not of zeros, which torch counts among equal maxima where the gradient is shared, also
        # if they are not to be included.
        lowest = rows.new_full((num_bags, self.embedding_dim), -math.inf)
        highest = lowest.scatter_reduce(0, index, rows, "amax")
        # Of bags with nothing but padding.
        return highest.masked_fill(highest == -math.inf, 0.0)


class SwappedLinear(_Swapped, OutputLayer, nn.Linear):
    """An :class:`torch.nn.Linear` whose rows come from layers of this package.

    Made by :func:`make_searchable` and :func:`apply_allocation`. If its weight was that of an
    embedding, it is that of the swapped embedding, which alone has it among its parameters and in
    its state, and the row of padding stays as it was.
    """

    # Two parents have one.
    bias: nn.Parameter | None  # type: ignore[assignment]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight as the model sees it, by id: computed at each access, differentiable."""
        self._check_whole()
        return self._weight(self._name)

    def reset_parameters(self) -> None:
        """Start anew, as the layer that this was would."""
        self._reset_rows(linear_std(self.in_features))
        self._reset_bias()

    def extra_repr(self) -> str:
        """Show the shape, and whose weight it is."""
        return super().extra_repr() + (f", weight of {self._name!r}" if self._is_guest else "")

    def _replicate_for_data_parallel(self) -> Any:
        if self._is_guest:
            raise RuntimeError(
                f"An output layer that has the weight of {self._name!r} cannot be copied for "
                "nn.DataParallel; use nn.parallel.DistributedDataParallel."
            )
        return super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]

    def _products(self, vectors: Tensor) -> Tensor:
        logits = super()._products(vectors)
        if self.padding_idx is None:
            return logits
        padding = torch.arange(self.out_features, device=logits.device) == self.padding_idx
        if self._padding_row is None:
            return logits.masked_fill(padding, 0.0)
        constant = functional.linear(vectors, self._padding_row.unsqueeze(0))
        return torch.where(padding, constant, logits)

    def _dense(self, choice: int) -> Tensor:
        weight = super()._dense(choice)
        if self.padding_idx is None:
            return weight
        padding = torch.arange(self.out_features, device=weight.device) == self.padding_idx
        row = 0.0 if self._padding_row is None else self._padding_row
        return torch.where(padding.unsqueeze(1), row, weight)


SwappedLayer = SwappedEmbedding | SwappedEmbeddingBag | SwappedLinear


def become(
    layer: nn.Embedding | nn.EmbeddingBag | nn.Linear,
    name: str,
    fields: nn.ModuleList,
    guest: bool,
    padding_idx: int | None,
    padding_row: Tensor | None,
) -> None:
    """Turn a layer of torch into one of this module, in place.

    Args:
        layer: The layer.
        name: What messages call it.
        fields: What its rows are in.
        guest: Whether they are modules of another layer.
        padding_idx: The id of padding.
        padding_row: The row of padding, if it is not zero.
    """
    del layer._parameters["weight"]
    kind: type[SwappedLayer]
    if isinstance(layer, nn.Linear):
        layer.__dict__["padding_idx"] = padding_idx
        kind = SwappedLinear
    elif isinstance(layer, nn.Embedding):
        kind = SwappedEmbedding
    else:
        kind = SwappedEmbeddingBag
    object.__setattr__(layer, "__class__", kind)
    assert isinstance(layer, SwappedLayer)
    layer._name = name
    if guest:
        layer.__dict__["fields"] = fields
    layer.set_fields(fields)
    if padding_row is not None:
        padding_row = padding_row.clone() if layer._keeps_padding() else None
    layer.register_buffer("_padding_row", padding_row)


def restore(layer: SwappedLayer, weight: nn.Parameter) -> None:
    """Turn a layer back into one of torch, in place."""
    del layer.fields
    for name in ("_bounds", "_padding_row"):
        if hasattr(layer, name):
            delattr(layer, name)
    del layer._name
    if isinstance(layer, SwappedLinear):
        del layer.padding_idx
    (plain,) = (each for each in _PLAIN if isinstance(layer, each))
    object.__setattr__(layer, "__class__", plain)
    layer.register_parameter("weight", weight)


def _rows_of(layer: TableLayer, ids: Tensor) -> Tensor:
    """The row of every id, each a bag of one where the layer pools."""
    pools = isinstance(layer, MultiSizeEmbeddingBag) or (
        isinstance(layer, SupernetEmbedding) and layer.mode is not None
    )
    if not pools:
        rows: Tensor = layer(ids)
        return rows
    rows = layer(ids.reshape(-1, 1))
    return rows.view(*ids.shape, rows.shape[-1])


def swapped_layers(model: nn.Module) -> Sequence[SwappedLayer]:
    """The layers of a model that :func:`make_searchable` or :func:`apply_allocation` swapped.

    Layers of one weight share their ``fields``.

    Example:
        >>> from optuna_nis.nn import make_searchable
        >>> model = nn.ModuleDict({"user": nn.Embedding(100, 8), "rest": nn.Linear(8, 1)})
        >>> _ = make_searchable(model, budget="50%")
        >>> len(swapped_layers(model))
        1
    """
    return [layer for layer in model.modules() if isinstance(layer, SwappedLayer)]
