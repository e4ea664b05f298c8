"""Numbers among the inputs of a reference model."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from optuna_nis.data.keys import NUMERIC
from optuna_nis.models.embeddings import Batch

#: Width of the hidden layer.
HIDDEN: Final = 64


class NumericField(nn.Module):
    """One more field, made of the numbers of each example by a small network.

    This is the bottom network of DLRM (Naumov et al., 2019,
    `arXiv 1906.00091 <https://arxiv.org/abs/1906.00091>`__): the field is as wide as the
    embeddings and crossed with them as they are with each other. Its last layer has no ReLU, so
    that a product with it may have either sign.

    Args:
        num_numeric: Number of the numbers of an example.
        embedding_dim: Width of the field.

    Shapes:
        - numbers: ``(batch, num_numeric)``, standardised
        - output: ``(batch, embedding_dim)``

    Example:
        >>> import torch
        >>> NumericField(3, 8)(torch.randn(2, 3)).shape
        torch.Size([2, 8])
    """

    def __init__(self, num_numeric: int, embedding_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_numeric, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, embedding_dim)
        )

    def forward(self, numbers: Tensor) -> Tensor:
        """The field."""
        field: Tensor = self.layers(numbers)
        return field


def numbers_of(batch: Batch, num_numeric: int) -> Tensor:
    """The numbers of a batch.

    Raises:
        TypeError: If they are integers.
        ValueError: If there are none, or not so many for each example.
    """
    if NUMERIC not in batch:
        raise ValueError(
            f"`batch` must hold {NUMERIC!r}, of shape (batch, {num_numeric}), for a model with "
            f"`num_numeric={num_numeric}`; it holds {sorted(batch)}."
        )
    numbers = batch[NUMERIC]
    if numbers.dim() != 2 or numbers.shape[1] != num_numeric:
        raise ValueError(
            f"`batch[{NUMERIC!r}]` must have the shape (batch, {num_numeric}), `num_numeric` "
            f"being {num_numeric}, got {tuple(numbers.shape)}."
        )
    if not numbers.is_floating_point():
        raise TypeError(
            f"`batch[{NUMERIC!r}]` must be floating-point numbers, got {numbers.dtype}."
        )
    return numbers
