"""Batches taken from rows that are held in memory, the same ones whenever they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler

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

    def whole(self) -> Loader:
        """The same for this process alone, which gets all rows."""
        sampler: Any = copy(self.sampler)
        sampler.is_whole = True
        return Loader(self.dataset, sampler=sampler, batch_size=None)

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
    """Which epoch is at work and how many of its batches have been given, for a checkpoint.

    Attributes:
        is_whole: Whether it is of this process alone, though there may be others.
    """

    def __init__(self) -> None:
        self.is_whole = False
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

    def rank_and_world(self) -> tuple[int, int]:
        """Which of how many processes that train together this is."""
        return (0, 1) if self.is_whole else _rank_and_world()

    def _begin(self) -> int:
        """Begin an epoch, perhaps where it was interrupted.

        Returns:
            Which one it is.
        """
        self._begun = self._epoch
        self._given = self._resumed[1] if self._resumed[0] == self._epoch else 0
        self._resumed = (-1, 0)
        return self._begun


class Batches(Epochs, DistributedSampler[Tensor]):
    """Rows of every batch, shuffled by a seed and the epoch, or in order without a seed.

    Of several processes that train together each gets every so many-th batch; without a seed each
    gets a run of the rows, see :func:`run_of`. It is a ``DistributedSampler`` for Lightning to
    see, which leaves those alone.
    """

    def __init__(self, num_rows: int, batch_size: int, seed: int | None) -> None:
        super().__init__()
        self._num_rows = num_rows
        self._batch_size = batch_size
        self._seed = seed

    def __len__(self) -> int:
        _, world = self.rank_and_world()
        if self._seed is None:
            return -(-rows_of_each(self._num_rows, world) // self._batch_size)
        return max(1, self._num_rows // (self._batch_size * world))

    def __iter__(self) -> Iterator[Tensor]:
        rank, world = self.rank_and_world()
        epoch, length = self._begin(), len(self)
        if self._seed is None:
            rows, step, first = run_of(np.arange(self._num_rows), rank, world), 1, 0
        else:
            rows = np.random.default_rng([self._seed, epoch]).permutation(self._num_rows)
            self._epoch += 1
            step, first = world, rank
        batches = torch.split(torch.from_numpy(rows), self._batch_size)
        for number in range(self._given, length):
            self._given += 1
            # Where there are fewer than processes, some have the same.
            yield batches[(number * step + first) % len(batches)]


def rows_of_each(num_rows: int, world: int) -> int:
    """How many rows each of several processes gets."""
    return -(-num_rows // world)


def run_of(rows: NDArray[np.int64], rank: int, world: int) -> NDArray[np.int64]:
    """The rows of a process, as many as each has: the last run ends with the first rows again.

    Args:
        rows: All rows.
        rank: Which process it is.
        world: How many they are.
    """
    if world == 1:
        return rows
    each = rows_of_each(len(rows), world)
    return rows[np.arange(rank * each, (rank + 1) * each) % len(rows)]


def _rank_and_world() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
