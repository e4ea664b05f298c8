"""Rows of a supernet that ids without one share, as many as each choice has of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

from optuna_nis.nn._shared import hashed
from optuna_nis.space.spec import EmbeddingSpec

if TYPE_CHECKING:
    from typing_extensions import Self


class Sharing:
    """Which ids share rows under each choice, and which.

    The rows of all choices are the same weights, of which a choice has the first ones. They are as
    wide and as precise as those of the last row block that it keeps.

    Attributes:
        numbers: For each choice the number of its rows, the first rank that shares one, and the
            last row block that it keeps, shape ``(choices, 3, 1)``.
    """

    def __init__(self, numbers: Tensor, num_embeddings: int) -> None:
        self.numbers = numbers
        self._num_embeddings = num_embeddings

    @classmethod
    def of(
        cls, spec: EmbeddingSpec, widths: NDArray[np.int64], shared: Sequence[int] | None
    ) -> Self | None:
        """From the widths of each choice; None for features whose ids never share rows."""
        if len(spec.shares) == 1:
            return None
        counts = np.zeros(len(widths), dtype=np.int64) if shared is None else np.array(shared)
        kept = np.count_nonzero(widths, axis=1)
        first = np.where(counts > 0, np.append(0, spec.row_cuts)[kept], spec.num_embeddings)
        numbers = np.stack([np.maximum(counts, 1), first, np.maximum(kept - 1, 0)], 1)
        return cls(torch.from_numpy(numbers).unsqueeze(-1), spec.num_embeddings)

    def places(self, ranks: Tensor, blocks: Tensor, choices: slice) -> tuple[Tensor, ...]:
        """Where the rows of some ranks are.

        Args:
            ranks: Those that each of some choices looks up, shape ``(choices or 1, n)``.
            blocks: Their row blocks.
            choices: The choices.

        Returns:
            Three tensors of shape ``(choices, n)``: whether a rank shares a row, which one, and in
            which row block its row is.
        """
        if self.numbers.device != ranks.device:
            self.numbers = self.numbers.to(ranks.device)
        counts, first, last = self.numbers[choices].unbind(1)
        is_shared = (ranks >= first) & (ranks < self._num_embeddings)
        return is_shared, hashed(ranks, counts), torch.where(is_shared, last, blocks)
