"""Output layers over many items, whose rows are searched and sized as those of an embedding."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from optuna_nis.nn._weight import table_weight
from optuna_nis.nn.choices import supernet_layers
from optuna_nis.nn.multi_size import MultiSizeEmbedding, sized_layers
from optuna_nis.nn.supernet import SupernetEmbedding
from optuna_nis.nn.table import OfFields, TableLayer
from optuna_nis.space.allocation import TableAllocation
from optuna_nis.space.spec import EmbeddingSpec


class OutputLayer(OfFields):
    """A linear layer whose weight is the tables of some features, one after the other.

    Attributes:
        in_features: Width of the vectors.
        out_features: Number of ids.
        bias: A number for each id, or None.
        tied: Whether the model looks ids up in the tables, too, without a layer of its own for it.
    """

    in_features: int
    out_features: int
    bias: nn.Parameter | None
    tied: bool = False

    def forward(self, vectors: Tensor) -> Tensor:
        """Logits of all ids."""
        if vectors.dim() == 0 or vectors.shape[-1] != self.in_features:
            raise ValueError(
                f"The vectors of {self.field_layers()[0].name!r} must be {self.in_features} wide, "
                f"got shape {tuple(vectors.shape)}."
            )
        if vectors.dim() == 1:
            return self.forward(vectors.unsqueeze(0)).squeeze(0)
        logits = self._products(vectors)
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)

    def parts(self, num_rows: int) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """The plain linear layers that a batch sees: one for each choice.

        For losses that need weights in place of logits, such as those of a softmax that is
        sampled, or made a chunk at a time.

        Args:
            num_rows: Number of examples in the batch.

        Yields:
            Which rows of the batch, the weight of shape ``(out_features, in_features)`` and the
            bias. Gradients of the weight reach the rows and their projection.

        Raises:
            ValueError: If the batch cannot be cut into a run for each choice.
        """
        first = self.field_layers()[0]
        first.check_runs(num_rows)
        size = num_rows // first.num_choices
        for choice in range(first.num_choices):
            yield slice(choice * size, (choice + 1) * size), self._dense(choice), self.bias

    def _products(self, vectors: Tensor) -> Tensor:
        """The logits without the bias."""
        found = [layer.logits(vectors) for layer in self.field_layers()]
        return found[0] if len(found) == 1 else torch.cat(found, -1)

    def _dense(self, choice: int) -> Tensor:
        """The weight as the model sees it, of shape ``(out_features, in_features)``, by id."""
        found = [layer.rows(choice) for layer in self.field_layers()]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _weight(self, name: str) -> Tensor:
        for layer in self.field_layers():
            layer.check_one_choice()
        return table_weight(self._dense(0), name)

    def reset_parameters(self) -> None:
        """Draw rows and bias anew."""
        for layer in self.field_layers():
            layer.reset_parameters()
        self._reset_bias()

    def _reset_bias(self) -> None:
        if self.bias is not None:
            bound = self.in_features**-0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def extra_repr(self) -> str:
        """Show the shape."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class _Linear(OutputLayer):
    """An output layer that has a table of its own."""

    def __init__(self, layer: TableLayer, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.width, layer.num_ids
        self.fields = nn.ModuleList([layer])
        empty = nn.Parameter(torch.empty(self.out_features)) if bias else None
        self.register_parameter("bias", empty)
        self._reset_bias()

    @property
    def weight(self) -> Tensor:
        """The dense weight, by id: computed at each access, differentiable."""
        return self._weight(self.field_layers()[0].name)


class SupernetLinear(_Linear):
    """An output layer that holds every choice of a search space at once.

    In place of :class:`torch.nn.Linear` to many items. The weights of an item are searched as the
    row of an id of :class:`SupernetEmbedding`: under a choice those of width ``d`` are the first
    ``d`` numbers of the full row, times the projection. The bias is not counted in the space; an
    item without a row has its bias for a logit.

    With ``k`` choices set, the batch is cut into ``k`` equal runs, each of which sees one of them.

    Args:
        spec: The full table and its blocks: of as many ids as there are items, as wide as the
            vectors.
        bias: Whether each item has a bias.
        ranks: As in :class:`SupernetEmbedding`.
        init_std: Standard deviation of the initial weights, by default that of
            :class:`torch.nn.Linear`.

    Raises:
        ValueError: If ``ranks`` is not a permutation; in the forward pass if the vectors are of
            another width or cannot be cut into runs.

    Shapes:
        - vectors: ``(batch, *, in_features)``
        - output: ``(batch, *, out_features)``, in the order of ids

    Example:
        >>> from optuna_nis import SearchSpace
        >>> from optuna_nis.nn import set_choices
        >>> space = SearchSpace([EmbeddingSpec("items", 1000, 16)])
        >>> layer = SupernetLinear(space.specs[0])
        >>> set_choices(layer, space, [space.full(), space.full()])
        >>> layer(torch.randn(4, 16)).shape
        torch.Size([4, 1000])
        >>> [rows for rows, weight, bias in layer.parts(4)]
        [slice(0, 2, None), slice(2, 4, None)]
    """

    def __init__(
        self,
        spec: EmbeddingSpec,
        *,
        bias: bool = True,
        ranks: Tensor | None = None,
        init_std: float | None = None,
    ) -> None:
        std = linear_std(spec.embedding_dim) if init_std is None else init_std
        super().__init__(SupernetEmbedding(spec, ranks=ranks, init_std=std), bias)

    @torch.no_grad()
    def copy_to(self, layer: MultiSizeLinear) -> None:
        """Give a multi-size layer of the same feature the weights that its rows have here.

        Raises:
            ValueError: If the layer is of another feature or table, or only one has a bias.
        """
        if (layer.bias is None) != (self.bias is None):
            raise ValueError(
                f"`layer` must have a bias as this layer has, or neither, got {layer}."
            )
        for table in supernet_layers(self).values():
            for sized in sized_layers(layer):
                table.copy_to(sized)
        if layer.bias is not None and self.bias is not None:
            layer.bias.copy_(self.bias)


class MultiSizeLinear(_Linear):
    """An output layer whose rows have the widths of an allocation.

    In place of :class:`torch.nn.Linear` to many items. Vectors are projected to the width of each
    tier and multiplied by its rows: the full weight is never made. Besides the bias it holds
    exactly :attr:`TableAllocation.num_parameters <optuna_nis.TableAllocation.num_parameters>`
    numbers.

    Args:
        table: The tiers.
        bias: Whether each item has a bias, which is the logit of those that have no row.
        ranks: As in :class:`MultiSizeEmbedding`.
        init_std: As in :class:`SupernetLinear`.

    Raises:
        ValueError: If ``ranks`` is not a permutation; in the forward pass if the vectors are of
            another width.

    Shapes:
        - vectors: ``(batch, *, in_features)``
        - output: ``(batch, *, out_features)``, in the order of ids

    Example:
        >>> from optuna_nis import Tier
        >>> table = TableAllocation("items", 100, 16, (Tier(10, 16), Tier(30, 4)))
        >>> layer = MultiSizeLinear(table)
        >>> layer(torch.randn(2, 16)).shape
        torch.Size([2, 100])
        >>> torch.equal(layer(torch.zeros(16)), layer.bias)
        True
    """

    def __init__(
        self,
        table: TableAllocation,
        *,
        bias: bool = True,
        ranks: Tensor | None = None,
        init_std: float | None = None,
    ) -> None:
        std = linear_std(table.embedding_dim) if init_std is None else init_std
        super().__init__(MultiSizeEmbedding(table, ranks=ranks, init_std=std), bias)


def linear_std(width: int) -> float:
    """Standard deviation of the weights that :class:`torch.nn.Linear` draws."""
    return float((3 * width) ** -0.5)


def output_features(model: nn.Module) -> set[str]:
    """The features of a model whose tables are of output layers alone: nothing looks them up.

    Example:
        >>> from optuna_nis.nn import make_searchable
        >>> model = nn.ModuleDict({"user": nn.Embedding(100, 8), "item": nn.Linear(8, 500)})
        >>> space = make_searchable(model, outputs=["item"])
        >>> output_features(model)
        {'item'}
    """
    outputs, others = set(), set()
    lists: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, OfFields):
            lists.add(id(layer.fields))
            names = {field.name for field in layer.field_layers()}
            if isinstance(layer, OutputLayer) and not layer.tied:
                outputs |= names
            else:
                others |= names
        elif id(layer) not in lists:
            others |= {each.name for each in layer.children() if isinstance(each, TableLayer)}
    return outputs - others
