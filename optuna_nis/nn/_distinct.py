"""The distinct ids of a batch, sorted, so that what is done for a row is done once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

from optuna_nis.nn import _native


@dataclass
class Distinct:
    """The distinct rows of a batch, from the first table to the last, then those beyond all.

    Attributes:
        rows: For each table which of its rows are among them.
        sizes: How many are in each table; at last how many are beyond all.
        order: Where in the batch they are, one after the other, of shape ``(n,)``.
        starts: Where in ``order`` each of them starts.
    """

    rows: Sequence[Tensor]
    sizes: list[int]
    order: Tensor
    starts: Tensor

    @cached_property
    def inverse(self) -> Tensor:
        """Which of them each place of the batch has, of shape ``(n,)``."""
        if self.order.device.type != "cpu":
            numbers = torch.zeros_like(self.order)
            numbers[self.starts[1:]] = 1
            return torch.empty_like(self.order).scatter_(0, self.order, numbers.cumsum(0))
        order, starts = self.order.numpy(), self.starts.numpy()
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(starts)).repeat(np.diff(starts, append=len(order)))
        return torch.from_numpy(inverse)


def distinct(ranks: Tensor, tables: Sequence[int], highest: int) -> Distinct:
    """Find the distinct rows of a batch, and which of some tables they are in.

    Args:
        ranks: Shape ``(n,)``, int64 from 0 on.
        tables: Number of rows of each table, one after the other; at least one.
        highest: The highest rank there may be; what is given beyond it may raise an IndexError.

    Example:
        >>> found = distinct(torch.tensor([7, 2, 9, 2]), [3, 5], 9)
        >>> found.rows, found.sizes, found.inverse.tolist()
        ([tensor([2]), tensor([4])], [1, 1, 1], [1, 0, 2, 0])
        >>> found.order.tolist(), found.starts.tolist()
        ([1, 3, 0, 2], [0, 2, 3])
    """
    ends = list(accumulate(tables))
    if ranks.device.type != "cpu":
        return _on_device(ranks, ends)
    if (compiled := _native.distinct(ranks, tables, highest)) is not None:
        rows = [*torch.split(compiled.rows, compiled.sizes)[:-1]]
        found = Distinct(rows, *compiled[1:4])
        found.inverse = compiled.inverse
        return found
    # An operation of numpy takes less time than one of torch before it does something.
    ordered, order = _sorted(ranks.numpy(), highest)
    new = np.ones(ordered.shape, dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    starts = new.nonzero()[0]
    values = ordered[starts]
    cuts = [0, *values.searchsorted(ends).tolist()]
    rows = []
    for start, end, first in zip(cuts, cuts[1:], [0, *ends]):
        values[start:end] -= first
        rows.append(torch.from_numpy(values[start:end]))
    sizes = np.diff(cuts, append=len(values)).tolist()
    return Distinct(rows, sizes, *map(torch.from_numpy, (order, starts)))


def _sorted(keys: NDArray[np.int64], highest: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers from 0 to the highest in order, and where each of them was."""
    bits = len(keys).bit_length()
    if highest.bit_length() + bits > 63:
        order = keys.argsort(kind="stable")
        return keys[order], order
    # A number and its place in one: sorting values takes a fraction of the time of finding what
    # would sort them.
    both = keys << bits
    both |= np.arange(len(keys))
    both.sort()
    order = both & ((1 << bits) - 1)
    both >>= bits
    return both, order


def _on_device(ranks: Tensor, ends: Sequence[int]) -> Distinct:
    # The shapes depend on the data, so the device must be waited for: once for all.
    ranks, order = ranks.sort(stable=True)
    new = torch.ones_like(ranks, dtype=torch.bool)
    new[1:] = ranks[1:] != ranks[:-1]
    found = new.cumsum(0)
    counts = [(new & (ranks < end)).sum() for end in ends]
    cuts = [0, *torch.stack([*counts, new.sum()]).cpu().tolist()]
    sizes = np.diff(cuts).tolist()
    starts = torch.searchsorted(found, torch.arange(1, cuts[-1] + 1, device=ranks.device))
    parts = torch.split(ranks.index_select(0, starts), sizes)
    rows = [values - first for values, first in zip(parts, [0, *ends[:-1]])]
    return Distinct(rows, sizes, order, starts)
