"""Batches taken from rows that are held in memory, the same ones whenever they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from optuna_nis.data.keys import LABEL

Batch = dict[str, Tensor]

# 4,096 rows keep the processor busy. An epoch of few steps teaches a model little, and a search
# scores choices step by step: data too small for 50 steps get smaller batches, down to 64 rows,
# below which a step is mostly overhead.
_LARGEST, _SMALLEST = 4096, 64
_MIN_STEPS_PER_EPOCH = 50


def default_batch_size(num_rows: int) -> int:
    """Rows in a training batch that suit so many training rows.

    It is 4,096, halved until an epoch has 50 steps, and at least 64.

    Args:
        num_rows: Number of training rows.

    Example:
        >>> [default_batch_size(rows) for rows in (1_000_000, 80_004, 1_600)]
        [4096, 1024, 64]
    """
    size = _LARGEST
    while size > _SMALLEST and num_rows < size * _MIN_STEPS_PER_EPOCH:
        size //= 2
    return size


class Loader(DataLoader[Batch]):
    """Lets Lightning keep in a checkpoint how far an epoch has come."""

    def state_dict(self) -> dict[str, Any]:
        """The epoch at work and how many of its batches have been given."""
        return self.sampler.state_dict() if isinstance(self.sampler, Batches) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what :meth:`state_dict` said."""
        if state_dict and isinstance(self.sampler, Batches):
            self.sampler.load_state_dict(state_dict)


class Rows(Dataset[Batch]):
    """Rows of which a whole batch is taken at once."""

    def __init__(self, tensors: Batch) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors[LABEL])

    def __getitem__(self, rows: Any) -> Batch:
        rows = torch.as_tensor(rows).reshape(-1)
        return {name: tensor[rows] for name, tensor in self._tensors.items()}


class Epochs:
    """Which epoch is at work and how many of its batches have been given, for a checkpoint."""

    def __init__(self) -> None:
        self._epoch = 0
        # The epoch at work and its batches so far; those of a checkpoint.
        self._begun, self._given = 0, 0
        self._resumed = (-1, 0)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning, so that a resumed training goes on with the right order."""
        self._epoch = epoch

    def state_dict(self) -> dict[str, Any]:
        """The epoch at work and how many of its batches have been given."""
        return {"epoch": self._begun, "batches": self._given}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what :meth:`state_dict` said."""
        self._resumed = (state_dict["epoch"], state_dict["batches"])

    def _begin(self) -> int:
        """Begin an epoch, perhaps where it was interrupted.

        Returns:
            Which one it is.
        """
        self._begun = self._epoch
        self._given = self._resumed[1] if self._resumed[0] == self._epoch else 0
        self._resumed = (-1, 0)
        return self._begun


class Batches(Epochs, Sampler[Tensor]):
    """Rows of every batch, shuffled by a seed and the epoch, or in order without a seed."""

    def __init__(self, num_rows: int, batch_size: int, seed: int | None) -> None:
        super().__init__()
        self._num_rows = num_rows
        self._batch_size = batch_size
        self._seed = seed
        full = num_rows // batch_size
        self._length = full if seed is not None and full else -(-num_rows // batch_size)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Tensor]:
        rows = np.arange(self._num_rows)
        epoch = self._begin()
        if self._seed is not None:
            rows = np.random.default_rng([self._seed, epoch]).permutation(rows)
            self._epoch += 1
        batches = torch.split(torch.from_numpy(rows), self._batch_size)[: self._length]
        for batch in batches[self._given :]:
            self._given += 1
            yield batch
