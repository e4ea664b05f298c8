"""Rows of a supernet in few bits, each choice and row block as it will be stored.

In the final model the steps are those of a tier, here those of a row block, since tiers differ
from choice to choice. Numbers of 16 bits are left as they are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn

from optuna_nis.nn._rounding import BEST_STEPS
from optuna_nis.space.precision import CODES
from optuna_nis.space.spec import EmbeddingSpec

if TYPE_CHECKING:
    from typing_extensions import Self

# Lookups in training after which the spread of the rows is measured again.
_EVERY = 16


class Spread(nn.Module):
    """How far the numbers of each column of each row block are spread around zero.

    It changes slowly, and going over a table takes longer than looking a batch up: while the rows
    are trained it is measured now and then.
    """

    spread: Tensor

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__()
        self._cuts = [0, *spec.row_cuts]
        # The last row is that of ids out of vocabulary.
        blocks = len(spec.row_blocks) + 1
        self.register_buffer("spread", torch.zeros(blocks, spec.embedding_dim))
        self._lookups = 0

    @torch.no_grad()
    def measure(self, weight: Tensor) -> None:
        """Measure it."""
        for block, (start, end) in enumerate(pairwise(self._cuts)):
            rows = weight[start:end].detach().float()
            self.spread[block] = rows.square().mean(0).sqrt()

    def of(self, layer: nn.Embedding) -> Tensor:
        """That of the rows of a layer that looks ids up, shape ``(row blocks + 1, columns)``."""
        if layer.training and torch.is_grad_enabled():
            if self._lookups % _EVERY == 0:
                self.measure(layer.weight)
            self._lookups += 1
        return self.spread

    def get_extra_state(self) -> int:
        """The number of lookups: a training that is resumed measures when it would have."""
        return self._lookups

    def set_extra_state(self, state: int) -> None:
        """Go on from there."""
        self._lookups = state


class Rounding:
    """In how many bits each choice has the numbers of each row block.

    Attributes:
        scales: The best step of numbers with a spread of 1, 0 where nothing is rounded, shape
            ``(choices, row blocks + 1, 1)``.
        limits: Half the number of levels, of the same shape.
    """

    def __init__(self, scales: Tensor, limits: Tensor) -> None:
        self.scales, self.limits = scales, limits

    @classmethod
    def of(cls, bits: NDArray[np.int64] | None) -> Self | None:
        """From the bits of each choice and row block; None if nothing is rounded."""
        if bits is None or not np.isin(bits, CODES).any():
            return None
        scales = np.zeros((len(bits), bits.shape[1] + 1, 1), dtype=np.float32)
        limits = np.ones_like(scales)
        for own in CODES:
            scales[:, :-1, 0][bits == own] = BEST_STEPS[own]
            limits[:, :-1, 0][bits == own] = 2 ** (own - 1)
        return cls(torch.from_numpy(scales), torch.from_numpy(limits))

    def every(self, rows: Tensor, spread: Tensor, blocks: Tensor, choices: slice) -> Tensor:
        """Rows as each of some choices has them.

        Args:
            rows: Shape ``(1, rows, columns)``.
            spread: Of each row block.
            blocks: The row block of each row.
            choices: The choices.

        Returns:
            Shape ``(choices, rows, columns)``.
        """
        scales, limits = self._on(rows)
        steps = (scales[choices] * spread.to(rows.dtype)).index_select(1, blocks)
        return _rounded(rows, steps, limits[choices].index_select(1, blocks))

    def some(self, rows: Tensor, spread: Tensor, where: Tensor) -> Tensor:
        """Rows, each as one of the choices has it.

        Args:
            rows: Shape ``(*, columns)``.
            spread: Of each row block.
            where: Choice and row block of each row, as one number.
        """
        scales, limits = self._on(rows)
        steps = (scales * spread.to(rows.dtype)).view(-1, rows.shape[-1])
        return _rounded(rows, steps[where], limits.view(-1, 1)[where])

    def _on(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        if self.scales.device != rows.device or self.scales.dtype != rows.dtype:
            self.scales, self.limits = self.scales.to(rows), self.limits.to(rows)
        return self.scales, self.limits


def _rounded(rows: Tensor, steps: Tensor, limits: Tensor) -> Tensor:
    """Rows at the nearest levels, where there are steps; gradients as if they were not rounded."""
    with torch.no_grad():
        # Of a column of zeros nothing is rounded either.
        codes = (rows / steps.clamp(min=1e-12)).floor_()
        codes = torch.minimum(torch.maximum(codes, -limits), limits - 1)
        difference = torch.where(steps > 0, codes.add_(0.5).mul_(steps).sub_(rows), 0.0)
    return rows + difference
