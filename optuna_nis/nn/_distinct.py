"""The distinct ids of a batch, sorted, so that what is done for a row is done once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor


@dataclass
class Distinct:
    """The distinct rows of a batch, from the first table to the last, then those beyond all.

    Attributes:
        rows: For each table which of its rows are among them.
        sizes: How many are in each table; at last how many are beyond all.
        order: Where in the batch they are, one after the other, of shape ``(n,)``.
        starts: Where in ``order`` each of them starts.
        inverse: Which of them each place of the batch has, of shape ``(n,)``.
    """

    rows: Sequence[Tensor]
    sizes: list[int]
    order: Tensor
    starts: Tensor
    inverse: Tensor


def distinct(ranks: Tensor, tables: Sequence[int], highest: int) -> Distinct:
    """Find the distinct rows of a batch, and which of some tables they are in.

    Args:
        ranks: Shape ``(n,)``, int64 from 0 on.
        tables: Number of rows of each table, one after the other; at least one.
        highest: The highest rank there may be.

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
    # An operation of numpy takes less time than one of torch before it does something.
    keys = ranks.numpy()
    order = _order(keys, highest)
    ordered = keys[order]
    new = np.ones(ordered.shape, dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    starts = new.nonzero()[0]
    values = ordered[starts]
    numbers = new.cumsum()
    numbers -= 1
    inverse = np.empty_like(order)
    inverse[order] = numbers
    cuts = [0, *values.searchsorted(ends).tolist()]
    rows = []
    for start, end, first in zip(cuts, cuts[1:], [0, *ends]):
        values[start:end] -= first
        rows.append(torch.from_numpy(values[start:end]))
    sizes = np.diff(cuts, append=len(values)).tolist()
    return Distinct(rows, sizes, *map(torch.from_numpy, (order, starts, inverse)))


def _order(keys: NDArray[np.int64], highest: int) -> NDArray[np.int64]:
    """What sorts numbers from 0 to the highest."""
    # Numbers of 16 bits are sorted by radix, several times as fast as wider ones.
    order = keys.astype(np.uint16).argsort(kind="stable")
    for shift in range(16, highest.bit_length(), 16):
        digits = (keys >> shift).astype(np.uint16)
        order = order[digits[order].argsort(kind="stable")]
    return order


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
    inverse = torch.empty_like(order).scatter_(0, order, found - 1)
    parts = torch.split(ranks.index_select(0, starts), sizes)
    rows = [values - first for values, first in zip(parts, [0, *ends[:-1]])]
    return Distinct(rows, sizes, order, starts, inverse)
