"""The distinct ids of a batch, sorted, so that what is done for a row is done once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor


@dataclass
class Distinct:
    """The distinct rows of a batch, in the order of some tables.

    Attributes:
        rows: Which row of its table each of them is, of shape ``(m,)``; those beyond all tables
            come last.
        order: Where in the batch they are, one after the other, of shape ``(n,)``.
        starts: Where in ``order`` each of them starts, of shape ``(m,)``.
        inverse: Which of them each place of the batch has, of shape ``(n,)``.
        parts: For each table which of them are in it.
        beyond: Which of them are in none.
    """

    rows: Tensor
    order: Tensor
    starts: Tensor
    inverse: Tensor
    parts: list[slice]
    beyond: slice

    def places(self, part: slice) -> tuple[int, int]:
        """Where in ``order`` the rows of a part start and end."""
        bounds = (part.start, part.stop)
        first, end = (
            int(self.starts[at]) if at < len(self.starts) else len(self.order) for at in bounds
        )
        return first, end


def distinct(ranks: Tensor, sizes: Sequence[int], highest: int) -> Distinct:
    """Find the distinct rows of a batch, and which of some tables they are in.

    Args:
        ranks: Shape ``(n,)``, int64 from 0 on.
        sizes: Number of rows of each table, one after the other; at least one.
        highest: The highest rank there may be.

    Example:
        >>> found = distinct(torch.tensor([7, 2, 9, 2]), [3, 5], 9)
        >>> found.rows.tolist(), found.parts, found.inverse.tolist()
        ([2, 4, 9], [slice(0, 1, None), slice(1, 2, None)], [1, 0, 2, 0])
        >>> found.order.tolist(), found.starts.tolist()
        ([1, 3, 0, 2], [0, 2, 3])
    """
    ends = list(accumulate(sizes))
    find = _on_cpu if ranks.device.type == "cpu" else _on_device
    rows, order, starts, inverse, cuts = find(ranks, ends, highest)
    parts = [slice(start, end) for start, end in zip([0, *cuts], cuts)]
    for part, end in zip(parts[1:], ends):
        rows[part] -= end
    return Distinct(rows, order, starts, inverse, parts, slice(cuts[-1], None))


def _on_cpu(ranks: Tensor, ends: Sequence[int], highest: int) -> tuple[Any, ...]:
    # An operation of numpy takes less time than one of torch before it does something.
    keys = ranks.numpy()
    order = _order(keys, highest)
    ordered = keys[order]
    new = np.ones(ordered.shape, dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    starts = new.nonzero()[0]
    rows = ordered[starts]
    numbers = new.cumsum()
    numbers -= 1
    inverse = np.empty_like(order)
    inverse[order] = numbers
    cuts = rows.searchsorted(ends).tolist()
    return (*map(torch.from_numpy, (rows, order, starts, inverse)), cuts)


def _order(keys: NDArray[np.int64], highest: int) -> NDArray[np.int64]:
    """What sorts numbers from 0 to the highest."""
    # Numbers of 16 bits are sorted by radix, several times as fast as wider ones.
    order = keys.astype(np.uint16).argsort(kind="stable")
    for shift in range(16, highest.bit_length(), 16):
        digits = (keys >> shift).astype(np.uint16)
        order = order[digits[order].argsort(kind="stable")]
    return order


def _on_device(ranks: Tensor, ends: Sequence[int], highest: int) -> tuple[Any, ...]:
    # The shapes depend on the data, so the device must be waited for: once for all.
    ranks, order = ranks.sort(stable=True)
    new = torch.ones_like(ranks, dtype=torch.bool)
    new[1:] = ranks[1:] != ranks[:-1]
    found = new.cumsum(0)
    counts = [(new & (ranks < end)).sum() for end in ends]
    *cuts, total = torch.stack([*counts, new.sum()]).cpu().tolist()
    starts = torch.searchsorted(found, torch.arange(1, total + 1, device=ranks.device))
    inverse = torch.empty_like(order).scatter_(0, order, found - 1)
    return ranks.index_select(0, starts), order, starts, inverse, cuts
