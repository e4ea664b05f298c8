"""Embedding layers of rivals: hashed tables, tables with a learned step."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from optuna_nis.nn import sized_layers

_Module = TypeVar("_Module", bound=nn.Module)

_HALF = 2
_LEAST_STEP = 1e-10


class HashedEmbedding(nn.Module):
    """A table with fewer rows than ids.

    Ids are ranks by frequency and share a row with those of the same remainder, so that no two of
    the most frequent ones do. With quotients each id has the product of two rows, of its remainder
    and of its quotient (Shi et al., 2020, "Compositional Embeddings Using Complementary
    Partitions").

    Args:
        num_embeddings: Number of ids; the next one, of what is unknown, gives zeros.
        remainders: Rows of the table of remainders.
        embedding_dim: Their width.
        quotients: Whether there is a table of quotients.
        is_bag: Whether ids come as bags, which are pooled by their mean.
        init_std: Standard deviation of the initial rows; quotients begin around 1.
    """

    def __init__(
        self,
        num_embeddings: int,
        remainders: int,
        embedding_dim: int,
        *,
        quotients: bool = False,
        is_bag: bool = False,
        init_std: float,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.remainders, self.is_bag = num_embeddings, remainders, is_bag
        self.rows = nn.Parameter(torch.randn(remainders, embedding_dim) * init_std)
        number = -(-num_embeddings // remainders)
        quotient = 1.0 + torch.randn(number, embedding_dim) * init_std
        self.quotient = nn.Parameter(quotient) if quotients and number > 1 else None

    def forward(self, ids: Tensor) -> Tensor:
        """Look up ids, of shape ``(batch,)`` or ``(batch, length)``."""
        known = ids < self.num_embeddings
        some = ids.clamp(max=self.num_embeddings - 1)
        rows = functional.embedding(some % self.remainders, self.rows)
        if self.quotient is not None:
            rows = rows * functional.embedding(some // self.remainders, self.quotient)
        rows = rows * known.unsqueeze(-1)
        return mean_of_known(rows, known) if self.is_bag else rows


def mean_of_known(rows: Tensor, known: Tensor) -> Tensor:
    """The mean of the rows of each bag, of which those of unknown ids are zeros."""
    return rows.sum(1) / known.sum(1, keepdim=True).clamp(min=1)


def remainders_of(num_embeddings: int, most_rows: int, quotients: bool) -> int:
    """How many rows of remainders a table of so many rows at most has.

    Where quotients take as many rows themselves, it has as few rows in all as it can.
    """
    if num_embeddings <= most_rows:
        return num_embeddings
    if not quotients:
        return most_rows
    fewest = math.isqrt(num_embeddings - 1) + 1
    for remainders in range(most_rows - 1, fewest, -1):
        if remainders + -(-num_embeddings // remainders) <= most_rows:
            return remainders
    return fewest


def hashed_nbytes(num_embeddings: int, remainders: int, width: int, quotients: bool) -> int:
    """Bytes of a hashed table in float16."""
    number = -(-num_embeddings // remainders)
    return _HALF * width * (remainders + (number if quotients and number > 1 else 0))


class LearnedStep(nn.Module):
    """Rows rounded to multiples of a step that is learned (Esser et al., 2020, "LSQ").

    A parametrisation of a weight. The gradient of the step is scaled as there; its sign does not
    count, so that no update can take it beyond zero.

    Args:
        weight: The rows as they are at first, of which the first step is made.
        bits: Bits of a number.
    """

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        self.low, self.high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.gradient_scale = 1.0 / math.sqrt(weight.numel() * self.high)
        self.step = nn.Parameter(2.0 * weight.detach().abs().mean() / math.sqrt(self.high))

    def forward(self, weight: Tensor) -> Tensor:
        """The rows as they are stored."""
        step = self.step.abs() + _LEAST_STEP
        step = (step - step * self.gradient_scale).detach() + step * self.gradient_scale
        codes = (weight / step).clamp(self.low, self.high)
        return ((codes.round() - codes).detach() + codes) * step


def learn_steps(model: _Module, bits: int) -> _Module:
    """Round each tier of a model to a learned step, from now on."""
    for layer in sized_layers(model):
        for tier in layer.tier_modules():
            step = LearnedStep(tier.weight, bits)
            parametrize.register_parametrization(tier, "weight", step)
    return model


@torch.no_grad()
def halve_steps(model: nn.Module) -> None:
    """Give the steps the numbers that they have as float16."""
    for module in model.modules():
        if isinstance(module, LearnedStep):
            module.step.copy_(module.step.half())


def learned_step_nbytes(rows: int, width: int, bits: int) -> int:
    """Bytes of a tier with a learned step, which is stored in float16."""
    return rows * -(-width * bits // 8) + _HALF if rows else 0
