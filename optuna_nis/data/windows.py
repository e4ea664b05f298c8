"""Batches of rows that stay on disk, shuffled by reading far-apart blocks together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import copy

import numpy as np
from numpy.typing import NDArray
import torch
from torch.utils.data import DataLoader, Dataset

from optuna_nis.data.batches import Batch, Epochs, Loader, rows_of_each, run_of
from optuna_nis.data.encoding import Encoder
from optuna_nis.data.keys import LABEL
from optuna_nis.data.source import CodedSource

_BLOCK = 2048
_WINDOW = 1 << 18


class WindowLoader(Epochs):
    """Batches of rows of which only some are in memory at a time.

    Rows are read in blocks of 2,048 neighbours. Each epoch draws an order of all blocks; about
    128 of them, from anywhere in the data, make a window of 262,144 rows, whose rows are shuffled
    and cut into batches. So a batch of 4,096 rows has some from nearly all of 128 places; rows
    that are neighbours come within one window, in different batches, and windows come in another
    composition in each epoch. Without a seed rows come in their order.

    The order depends on the seed and the epoch alone. A training that is resumed in the middle of
    an epoch goes on with the batches left; where several processes train together, each takes
    a run of that order of blocks, all equally many rows. Rows that are not shuffled are shared in
    runs too, of which the last one ends with some of the first rows once more.

    Args:
        source: All rows.
        rows: Positions of those to use, rising.
        encoder: Makes their tensors.
        batch_size: Rows in a batch.
        seed: Seed of the order, or :obj:`None` for that of the rows.
        num_workers: Processes that read ahead.
    """

    def __init__(
        self,
        source: CodedSource,
        rows: NDArray[np.int64],
        encoder: Encoder,
        batch_size: int,
        seed: int | None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        # Lightning looks whether it shuffles what is tested on.
        self.batch_sampler = None
        self.num_workers = num_workers
        self._windows = _Windows(source, rows, encoder, batch_size, seed)

    def whole(self) -> WindowLoader:
        """The same for this process alone, which gets all rows."""
        found = copy(self)
        found.is_whole = True
        return found

    @property
    def sampler(self) -> WindowLoader:
        """Where Lightning looks for what it tells the epoch to."""
        return self

    def __len__(self) -> int:
        _, world = self.rank_and_world()
        return self._windows.num_batches(world)

    def __iter__(self) -> Iterator[Batch]:
        rank, world = self.rank_and_world()
        epoch = self._begin()
        self._epoch += 1
        length = self._windows.num_batches(world)
        each = self._windows.batches_of_a_window
        begun, left_out = divmod(self._given, each)
        wanted = [(epoch, index) for index in range(begun, -(-length // each))]
        loader: DataLoader[Batch] = DataLoader(
            self._windows.of_process(rank, world),
            batch_size=None,
            sampler=wanted,
            num_workers=self.num_workers,
        )
        for window in loader:
            for start in range(left_out, -(-len(window[LABEL]) // self.batch_size)):
                if self._given == length:
                    return
                rows = slice(start * self.batch_size, (start + 1) * self.batch_size)
                self._given += 1
                yield {name: tensor[rows] for name, tensor in window.items()}
            left_out = 0


def whole(loader: Iterable[Batch]) -> Iterable[Batch]:
    """What a dataloader gives before several processes share it."""
    return loader.whole() if isinstance(loader, Loader | WindowLoader) else loader


class _Windows(Dataset[Batch]):
    """Rows of a window, shuffled."""

    def __init__(
        self,
        source: CodedSource,
        rows: NDArray[np.int64],
        encoder: Encoder,
        batch_size: int,
        seed: int | None,
    ) -> None:
        self._source, self._rows, self._encoder = source, rows, encoder
        self._batch_size, self._seed = batch_size, seed
        self._block = _BLOCK
        self.batches_of_a_window = max(1, _WINDOW // batch_size)
        self._size = self.batches_of_a_window * batch_size
        # The run of all rows, in the order of an epoch, that this process gets, and which it is.
        self._run = (0, len(rows))
        self._rank: tuple[int, ...] = ()

    def num_batches(self, world: int) -> int:
        """Number of batches that each of so many processes gets."""
        rows = len(self._rows)
        if self._seed is None:
            return -(-rows_of_each(rows, world) // self._batch_size)
        return max(1, rows // world // self._batch_size)

    def of_process(self, rank: int, world: int) -> _Windows:
        """The windows of a process.

        Args:
            rank: Which process it is.
            world: How many they are.
        """
        if world == 1:
            return self
        own = copy(self)
        if self._seed is None:
            own._rows = run_of(self._rows, rank, world)
            own._run = (0, len(own._rows))
        else:
            each = len(self._rows) // world
            own._run = (rank * each, (rank + 1) * each)
            own._rank = (rank,)
        return own

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Batch:
        epoch, index = epoch_and_index
        first, last = self._run
        start = first + index * self._size
        stop = min(start + self._size, last)
        if self._seed is None:
            return self._encoder.batch(self._source.take(self._rows[start:stop]))
        places = _places(len(self._rows), self._block, start, stop, [self._seed, epoch])
        window = self._encoder.batch(self._source.take(self._rows[places]))
        rng = np.random.default_rng([self._seed, epoch, index, *self._rank])
        order = torch.from_numpy(rng.permutation(len(places)))
        return {name: tensor[order] for name, tensor in window.items()}


def _places(num_rows: int, size: int, start: int, stop: int, seed: list[int]) -> NDArray[np.int64]:
    """Those from ``start`` to ``stop`` of all rows in an order of their blocks of a size."""
    blocks = np.random.default_rng(seed).permutation(-(-num_rows // size))
    # The last block may be shorter than the others, and be anywhere.
    ends = np.cumsum(np.minimum(num_rows - blocks * size, size))
    first, last = np.searchsorted(ends, [start, stop - 1], side="right")
    parts = []
    for place in range(first, last + 1):
        block, end = int(blocks[place]) * size, int(ends[place])
        begin = end - min(num_rows - block, size)
        parts.append(np.arange(block + max(start - begin, 0), block + min(stop, end) - begin))
    return np.concatenate(parts)
