"""Rows that ids without a row of their own share, by a hash of their rank."""

from __future__ import annotations

import torch
from torch import Tensor

from optuna_nis.space.allocation import TableAllocation

# Multiplicative hashing (Knuth, TAOCP 3, section 6.4): near the golden ratio of 2**32, then modulo
# a prime. With a rank below 2**31 nothing is beyond int64, and every runtime has these operators.
_MULTIPLIER = 2_654_435_761
_PRIME = 2**31 - 1


def hashed(ranks: Tensor, num_shared: int | Tensor) -> Tensor:
    """Which of some shared rows each rank has.

    For two numbers of which one is a multiple of the other, such as powers of two, ranks that
    share a row of many also share one of few.

    Args:
        ranks: Integers from 0.
        num_shared: Number of shared rows, one for all or one for each rank.

    Returns:
        int64, of the shape of the ranks.

    Example:
        >>> hashed(torch.arange(6), 4).tolist()
        [0, 2, 0, 2, 0, 3]
    """
    return ranks.long() * _MULTIPLIER % _PRIME % num_shared


def places(ranks: Tensor, table: TableAllocation) -> Tensor:
    """Where the rows of ranks are stored, one tier after the other.

    Args:
        ranks: Integers up to ``num_embeddings``, the id that stands for unknown, missing and
            padding. That one shares no row.
        table: The tiers.

    Returns:
        The ranks of ids that have a row of their own, or none; after all of them the places of
        shared rows.

    Example:
        >>> from optuna_nis.space.allocation import Tier
        >>> table = TableAllocation("user", 10, 4, (Tier(2, 4),), num_shared=3)
        >>> places(torch.tensor([0, 1, 2, 9, 10]), table).tolist()
        [0, 1, 2, 3, 10]
    """
    if not table.num_shared:
        return ranks
    shared = table.kept + hashed(ranks, table.num_shared)
    sharing = (ranks >= table.kept) & (ranks < table.num_embeddings)
    return torch.where(sharing, shared, ranks.long())


def shared_means(rows: Tensor, table: TableAllocation) -> Tensor:
    """What shared rows start from: the mean of the rows that the ids had which share one.

    Args:
        rows: The rows of the ids without one of their own, by rank, of shape
            ``(num_embeddings - kept, columns)``.
        table: The tiers.

    Returns:
        Shape ``(num_shared, columns)``; zeros where nothing shares.
    """
    ranks = torch.arange(table.kept, table.num_embeddings, device=rows.device)
    where = hashed(ranks, table.num_shared)
    # In half precision sums of many lose what each has.
    exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
    sums = exact.new_zeros(table.num_shared, rows.shape[1]).index_add_(0, where, exact)
    ones = torch.ones_like(exact[:, :1])
    counts = exact.new_zeros(table.num_shared, 1).index_add_(0, where, ones).clamp_(min=1)
    return (sums / counts).to(rows.dtype)
