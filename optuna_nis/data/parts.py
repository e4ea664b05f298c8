"""The rows of a part of a data set: in memory as tensors, or on disk."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from optuna_nis.data.batches import Batch, Batches, Loader, Rows
from optuna_nis.data.encoding import Encoder
from optuna_nis.data.source import CodedSource
from optuna_nis.data.windows import WindowLoader


class Part(Protocol):
    """The rows of a part."""

    def loader(
        self,
        batch_size: int,
        seed: int | None,
        shard: tuple[int, int] = (0, 1),
        most: int | None = None,
    ) -> DataLoader[Batch] | WindowLoader:
        """Batches, shuffled if there is a seed.

        Args:
            batch_size: Rows in a batch.
            seed: Seed of the order.
            shard: Which share of the rows: the index and the count.
            most: How many of these at most, the first ones.
        """

    def update(self, digest: Any, name: str) -> None:
        """Feed a hash with all that the part holds."""


class MemoryPart:
    """Rows as tensors.

    Args:
        tensors: All rows.
    """

    def __init__(self, tensors: Batch) -> None:
        self._tensors = tensors

    def loader(
        self,
        batch_size: int,
        seed: int | None,
        shard: tuple[int, int] = (0, 1),
        most: int | None = None,
    ) -> DataLoader[Batch]:
        """As in :class:`Part`."""
        index, count = shard
        rows = Rows({name: each[index::count][:most] for name, each in self._tensors.items()})
        sampler: Any = Batches(len(rows), batch_size, seed)
        return Loader(rows, sampler=sampler, batch_size=None)

    def update(self, digest: Any, name: str) -> None:
        """As in :class:`Part`."""
        for key, tensor in sorted(self._tensors.items()):
            digest.update(f"{name} {key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)


class DiskPart:
    """Rows that are read when they are needed.

    Args:
        source: All rows of the data set.
        rows: Positions of those of the part, rising.
        encoder: Makes their tensors.
        num_workers: Processes that read ahead of a training.
    """

    def __init__(
        self, source: CodedSource, rows: NDArray[np.int64], encoder: Encoder, num_workers: int
    ) -> None:
        # What is sent to processes that read ahead.
        self._source, self._rows = source.without_values(), rows
        self._encoder = encoder.without_vocabularies()
        self._num_workers = num_workers

    def loader(
        self,
        batch_size: int,
        seed: int | None,
        shard: tuple[int, int] = (0, 1),
        most: int | None = None,
    ) -> WindowLoader:
        """As in :class:`Part`."""
        index, count = shard
        rows = self._rows[index::count][:most]
        workers = 0 if seed is None else self._num_workers
        return WindowLoader(self._source, rows, self._encoder, batch_size, seed, workers)

    def update(self, digest: Any, name: str) -> None:
        """As in :class:`Part`: by the name of what is on disk, which is that of its content."""
        digest.update(f"{name} {self._source.content} {self._encoder.digest} ".encode())
        digest.update(np.ascontiguousarray(self._rows).data)
