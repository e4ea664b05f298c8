"""What all embedding layers of the package do with ids before they look them up."""

from __future__ import annotations

import torch
from torch import Tensor


def check_ranks(ranks: Tensor | None, num_embeddings: int, name: str) -> Tensor | None:
    """Check a permutation from id to rank, and extend it by the out-of-vocabulary id.

    Raises:
        ValueError: If it is not a permutation of ``0 .. num_embeddings - 1``.
    """
    if ranks is None:
        return None
    ranks = torch.as_tensor(ranks, dtype=torch.int64)
    if not torch.equal(ranks.sort().values, torch.arange(num_embeddings)):
        raise ValueError(
            f"`ranks` of {name!r} must be a permutation of 0 to {num_embeddings - 1}, got a "
            f"tensor of shape {tuple(ranks.shape)}."
        )
    return torch.cat([ranks, torch.tensor([num_embeddings])])


def to_ranks(ids: Tensor, ranks: Tensor | None, num_embeddings: int, name: str) -> Tensor:
    """Check ids and map them to ranks by frequency.

    Raises:
        TypeError: If the ids are not integers.
        ValueError: If an id is out of range. Not checked off the CPU, where it would stall the
            device.
    """
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"`ids` of {name!r} must be int64 or int32, got {ids.dtype}.")
    if ids.device.type == "cpu" and ids.numel():
        low, high = ids.aminmax()
        if low < 0 or high > num_embeddings:
            wrong = int(low) if low < 0 else int(high)
            raise ValueError(
                f"`ids` of {name!r} must be between 0 and {num_embeddings} (the id out of "
                f"vocabulary), got {wrong}."
            )
    return ids if ranks is None else ranks[ids]


def bags_of(ids: Tensor, offsets: Tensor | None, name: str) -> tuple[Tensor, Tensor, int]:
    """Flatten bags of ids, given as :class:`torch.nn.EmbeddingBag` takes them.

    Returns:
        The flat ids, the bag of each, and the number of bags.

    Raises:
        ValueError: If 2-D ids come with offsets, 1-D ids without, or ids of another shape.
    """
    device = ids.device
    if ids.dim() == 2:
        if offsets is not None:
            raise ValueError(f"`offsets` of {name!r} must be None for ids of two dimensions.")
        bags = torch.arange(ids.shape[0], device=device).repeat_interleave(ids.shape[1])
        return ids.reshape(-1), bags, ids.shape[0]
    if ids.dim() != 1 or offsets is None:
        raise ValueError(
            f"`ids` of {name!r} must be of shape (batch, length), or flat with `offsets`, got "
            f"shape {tuple(ids.shape)} and offsets {offsets}."
        )
    ends = torch.cat([offsets[1:], torch.tensor([ids.numel()], device=device)])
    bags = torch.arange(len(offsets), device=device).repeat_interleave(ends - offsets)
    return ids, bags, len(offsets)


def bag_sizes(ids: Tensor, bags: Tensor, num_bags: int, num_embeddings: int) -> Tensor:
    """Number of known ids in each bag, at least one, of shape ``(num_bags, 1)``."""
    known = (ids != num_embeddings).to(torch.get_default_dtype())
    sizes = known.new_zeros(num_bags).index_add_(0, bags, known)
    return sizes.clamp_(min=1.0).unsqueeze(1)
