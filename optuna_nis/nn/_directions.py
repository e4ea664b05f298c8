"""The principal directions of a table: what narrow rows keep of rows that mean something."""

from __future__ import annotations

import torch
from torch import Tensor

# Random rows have no directions that stand out. So many times the largest share that random
# numbers give to one is taken for a sign that a table was trained.
_STANDS_OUT = 1.5
_SAMPLE = 4096
_CHUNK = 65536


def principal_directions(rows: Tensor, *, frozen: bool) -> Tensor | None:
    """The directions in which the rows of a table vary most, about zero.

    Rows times the first ``d`` of them are the best that ``d`` numbers a row can say of the table:
    times their transpose they differ least from it (Eckart and Young, 1936). The first of them are
    the same for every ``d``, as a choice of a supernet and the tiers of a table need it.

    A table that was trained and one of random numbers are told apart by the share of the first
    direction, which in random numbers is bounded (Marchenko and Pastur, 1967). A random table has
    nothing to keep.

    Args:
        rows: The table.
        frozen: Whether its rows are never trained: then they are kept whatever they look like.

    Returns:
        Shape ``(embedding_dim, embedding_dim)``, orthonormal columns, most important first, in
        64-bit floats on the CPU; None if there is nothing to keep or the rows are not numbers.

    Example:
        >>> rows = torch.arange(12.0).unsqueeze(1) * torch.tensor([3.0, 4.0])
        >>> directions = principal_directions(rows, frozen=True)
        >>> directions[:, 0].abs()
        tensor([0.6000, 0.8000], dtype=torch.float64)
    """
    # What has no numbers, on the device "meta" or in a trace, can neither stand out nor be turned.
    if rows.numel() == 0 or type(rows.data) is not Tensor or rows.is_meta:
        return None
    if not frozen and not _stand_out(rows[:: -(-len(rows) // _SAMPLE)]):
        return None
    moments = _moments(rows)
    if not bool(moments.isfinite().all()):
        return None
    directions: Tensor = torch.linalg.eigh(moments).eigenvectors.flip(1)
    return directions


def _stand_out(rows: Tensor) -> bool:
    moments = _moments(rows)
    if not bool(moments.isfinite().all()):
        return False
    number, dim = rows.shape
    variance = float(moments.trace()) / (number * dim)
    largest = float(torch.linalg.eigvalsh(moments)[-1])
    bound: float = _STANDS_OUT * variance * (number**0.5 + dim**0.5) ** 2
    return largest > bound


def _moments(rows: Tensor) -> Tensor:
    """The products of all pairs of columns."""
    dim = rows.shape[1]
    moments = torch.zeros(dim, dim, dtype=torch.float64)
    for chunk in torch.split(rows.detach(), _CHUNK):
        numbers = chunk.cpu().double()
        moments.addmm_(numbers.T, numbers)
    return moments
