"""Rows of a supernet in few bits, each choice and row block as it will be stored.

In the final model the steps are learned, one for a tier. Here tiers differ from choice to choice:
each has the step that it would start from, by the spread of its numbers. Numbers of 16 bits are
left as they are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, nn

from optuna_nis.nn._rounding import BEST_STEPS, stored_steps
from optuna_nis.space.precision import CODES
from optuna_nis.space.spec import EmbeddingSpec

if TYPE_CHECKING:
    from typing_extensions import Self

# Lookups in training after which the spread of the rows is measured again.
_EVERY = 16
# Rows of a block that it is measured on, at equal distances in those of more: enough for three
# digits, and a step costs the same however large the table is.
_MEASURED = 2**16


class Spread(nn.Module):
    """How far the numbers of each row block are spread around zero, for each of its widths.

    It changes slowly, and going over a table takes longer than looking a batch up: while the rows
    are trained it is measured now and then, and on a part of the rows where they are many.
    """

    spread: Tensor
    _widths: Tensor

    def __init__(self, spec: EmbeddingSpec) -> None:
        super().__init__()
        self._cuts = [0, *spec.row_cuts]
        # The last row is that of ids out of vocabulary.
        blocks = len(spec.row_blocks) + 1
        self.register_buffer("spread", torch.zeros(blocks, spec.embedding_dim))
        widths = torch.arange(1, spec.embedding_dim + 1)
        self.register_buffer("_widths", widths, persistent=False)
        self._lookups = 0

    @torch.no_grad()
    def measure(self, weight: Tensor) -> None:
        """Measure it."""
        for block, (start, end) in enumerate(pairwise(self._cuts)):
            distance = -(-(end - start) // _MEASURED)
            squares = weight[start:end:distance].detach().float().square().mean(0)
            self.spread[block] = (squares.cumsum(0) / self._widths).sqrt()

    def of(self, layer: nn.Embedding) -> Tensor:
        """That of the rows of a layer that looks ids up.

        Returns:
            Shape ``(row blocks + 1, columns)``: of the first column, the first two and so on.
        """
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
        last: The last column of each choice and row block, of the same shape.
        tiers: Of the rows of the tier that each row block is in, the share that is in each row
            block, shape ``(choices, row blocks + 1, row blocks + 1)``.
    """

    def __init__(self, scales: Tensor, limits: Tensor, last: Tensor, tiers: Tensor) -> None:
        self.scales, self.limits, self.last, self.tiers = scales, limits, last, tiers

    @classmethod
    def of(
        cls, spec: EmbeddingSpec, widths: NDArray[np.int64], bits: NDArray[np.int64] | None
    ) -> Self | None:
        """From the sizes of each choice and row block; None if nothing is rounded."""
        # For every batch and layer, so nothing dearer than this.
        if bits is None or bits.min() > max(CODES):
            return None
        scales = np.zeros((len(bits), bits.shape[1] + 1, 1), dtype=np.float32)
        limits, last = np.ones_like(scales), np.zeros(scales.shape, dtype=np.int64)
        for own in CODES:
            scales[:, :-1, 0][bits == own] = BEST_STEPS[own]
            limits[:, :-1, 0][bits == own] = 2 ** (own - 1)
        last[:, :-1, 0] = np.maximum(widths - 1, 0)
        # Sizes never rise with the rank, so row blocks of one size are a tier.
        alike = (widths[:, :, None] == widths[:, None]) & (bits[:, :, None] == bits[:, None])
        rows = alike * np.array(spec.row_blocks)
        size = bits.shape[1] + 1
        tiers = np.zeros((len(bits), size, size), dtype=np.float32)
        tiers[:, :-1, :-1] = rows / rows.sum(-1, keepdims=True)
        return cls(*(torch.from_numpy(each) for each in (scales, limits, last, tiers)))

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
        steps, limits = self._on(rows, spread)
        return _rounded(
            rows,
            steps[choices].index_select(1, blocks),
            limits[choices].index_select(1, blocks),
        )

    def some(self, rows: Tensor, spread: Tensor, where: Tensor) -> Tensor:
        """Rows, each as one of the choices has it.

        Args:
            rows: Shape ``(*, columns)``.
            spread: Of each row block.
            where: Choice and row block of each row, as one number.
        """
        steps, limits = self._on(rows, spread)
        return _rounded(rows, steps.view(-1, 1)[where], limits.view(-1, 1)[where])

    def _on(self, rows: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
        """Steps and limits of each choice and row block, where and as the rows are."""
        if self.scales.device != rows.device or self.scales.dtype != rows.dtype:
            self.scales, self.limits = self.scales.to(rows), self.limits.to(rows)
            self.last, self.tiers = self.last.to(rows.device), self.tiers.to(rows.device)
        spreads = spread.expand(len(self.last), -1, -1).gather(2, self.last)
        of_tiers = (self.tiers.to(spread.dtype) @ spreads.square()).sqrt()
        steps = self.scales * of_tiers
        steps = torch.where(steps > 0, stored_steps(steps), 0.0)  # Zeros stay so.
        return steps.to(rows.dtype), self.limits


def _rounded(rows: Tensor, steps: Tensor, limits: Tensor) -> Tensor:
    """Rows at the nearest levels, where there are steps; gradients as if they were not rounded."""
    with torch.no_grad():
        # Of a column of zeros nothing is rounded either.
        codes = (rows / steps.clamp(min=1e-12)).floor_()
        codes = torch.minimum(torch.maximum(codes, -limits), limits - 1)
        difference = torch.where(steps > 0, codes.add_(0.5).mul_(steps).sub_(rows), 0.0)
    return rows + difference
