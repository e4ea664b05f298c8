"""What all embedding layers of the package do with ids before they look them up."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from optuna_nis.nn._tracing import is_traced


def check_ranks(ranks: Tensor | None, num_embeddings: int, name: str) -> Tensor | None:
    """Check a permutation from id to rank, and extend it by the out-of-vocabulary id.

    Raises:
        ValueError: If it is not a permutation of ``0 .. num_embeddings - 1``.
    """
    if ranks is None:
        return None
    ranks = torch.as_tensor(ranks, dtype=torch.int64, device="cpu")
    if not torch.equal(ranks.sort().values, torch.arange(num_embeddings, device="cpu")):
        raise ValueError(
            f"`ranks` of {name!r} must be a permutation of 0 to {num_embeddings - 1}, got a "
            f"tensor of shape {tuple(ranks.shape)}."
        )
    return functional.pad(ranks, (0, 1), value=num_embeddings)


def check_ids(ids: Tensor, num_embeddings: int, name: str) -> None:
    """Check ids before they are looked up.

    Raises:
        TypeError: If the ids are not integers.
        ValueError: If an id is out of range. Not checked off the CPU, where it would stall the
            device, nor in compiled, exported or traced models.
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"`ids` of {name!r} must be a tensor, got a {type(ids).__name__}.")
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"`ids` of {name!r} must be int64 or int32, got {ids.dtype}.")
    if ids.device.type == "cpu" and not is_traced() and ids.numel():
        low, high = (int(bound) for bound in ids.aminmax())
        if low < 0 or high > num_embeddings:
            wrong = low if low < 0 else high
            raise ValueError(
                f"`ids` of {name!r} must be between 0 and {num_embeddings} (the id out of "
                f"vocabulary), got {wrong}."
            )


def check_bags(ids: Tensor, offsets: Tensor | None, name: str) -> None:
    """Check bags of ids, given as :class:`torch.nn.EmbeddingBag` takes them.

    Raises:
        ValueError: If 2-D ids come with offsets, 1-D ids without, or ids of another shape, or
            offsets do not begin with 0, fall, or are beyond the ids. The latter is not checked off
            the CPU, where it would stall the device, nor in compiled, exported or traced models.
    """
    if ids.dim() == 2:
        if offsets is not None:
            raise ValueError(f"`offsets` of {name!r} must be None for ids of two dimensions.")
    elif ids.dim() != 1 or offsets is None:
        raise ValueError(
            f"`ids` of {name!r} must be of shape (batch, length), or flat with `offsets`, got "
            f"shape {tuple(ids.shape)} and offsets {offsets}."
        )
    if offsets is None or is_traced() or offsets.device.type != "cpu":
        return
    starts = offsets.detach().numpy()
    if len(starts) and (
        starts[0] != 0 or starts[-1] > len(ids) or (starts[1:] < starts[:-1]).any()
    ):
        raise ValueError(
            f"`offsets` of {name!r} must begin with 0, not fall, and be at most the number of "
            f"ids, {len(ids)}, got {starts[:20].tolist()}{' ...' if len(starts) > 20 else ''}."
        )


def check_weights(per_sample_weights: Tensor | None, ids: Tensor, name: str) -> None:
    """Check that there is a weight for each id of some bags.

    Raises:
        ValueError: If their shape is not that of the ids. Not checked in compiled, exported or
            traced models.
    """
    if per_sample_weights is None or is_traced():
        return
    if per_sample_weights.shape != ids.shape:
        raise ValueError(
            f"`per_sample_weights` of {name!r} must have the shape of the ids, "
            f"{tuple(ids.shape)}, got {tuple(per_sample_weights.shape)}."
        )


def get_gradients(per_sample_weights: Tensor | None) -> bool:
    """Whether the weights of the ids of bags are to get gradients."""
    return (
        per_sample_weights is not None
        and per_sample_weights.requires_grad
        and torch.is_grad_enabled()
    )


def no_offsets(name: str, filler: str | None) -> str:
    """Why bags given by offsets are refused where what data decides cannot be traced."""
    filled = "" if filler is None else f", filled up with {filler}"
    return (
        f"Bags of {name!r} given by `offsets` cannot be exported, compiled, traced or "
        f"transformed; pass ids of shape (batch, length){filled}."
    )


def flat_bags(ids: Tensor, offsets: Tensor | None, name: str) -> tuple[Tensor, Tensor]:
    """The ids of all bags in a row, and where each bag starts.

    Raises:
        ValueError: As :func:`check_bags`.
    """
    check_bags(ids, offsets, name)
    if offsets is None:
        starts = torch.arange(ids.shape[0], device=ids.device) * ids.shape[1]
        return ids.reshape(-1), starts
    return ids, offsets


def without_rest(
    ids: Tensor, offsets: Tensor, per_sample_weights: Tensor | None, num_embeddings: int, name: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Leave out the ids behind the last of offsets that are one more than there are bags.

    Bags of torch end there in some cases, such as sums of 32 bits without padding on CPUs. In
    others the rest is in the last bag, or counts in its mean alone (issue 191965 of pytorch).

    Args:
        ids: All ids, flat.
        offsets: Where each bag starts, and where the last one ends.
        per_sample_weights: The weight of each id, if they have weights.
        num_embeddings: The id out of vocabulary.
        name: What messages call the layer.

    Returns:
        Ids, where each bag starts, and weights. On CPUs the rest is cut off and need not be ids.
        Elsewhere, where the device would be waited for, it is out of vocabulary, with weights of
        zero.

    Raises:
        ValueError: As :func:`check_bags`, or if there are no offsets.
    """
    check_bags(ids, offsets, name)
    if not len(offsets):
        raise ValueError(f"`offsets` of {name!r} must hold where the last bag ends, got none.")
    starts, end = offsets[:-1], offsets[-1]
    if offsets.device.type == "cpu":
        length = int(end)
        weights = None if per_sample_weights is None else per_sample_weights[:length]
        return ids[:length], starts, weights
    rest = torch.arange(len(ids), device=ids.device) >= end
    if per_sample_weights is not None:
        # Also zero times what is no number would be none.
        per_sample_weights = per_sample_weights.masked_fill(rest, 0.0)
    return ids.masked_fill(rest, num_embeddings), starts, per_sample_weights


def bags_of(ids: Tensor, offsets: Tensor | None, name: str) -> tuple[Tensor, Tensor, int]:
    """Flatten bags of ids.

    Returns:
        The flat ids, the bag of each, and the number of bags.

    Raises:
        ValueError: As :func:`check_bags`.
    """
    flat, starts = flat_bags(ids, offsets, name)
    ends = functional.pad(starts[1:], (0, 1), value=flat.numel())
    # Told how many there are, the device need not be waited for.
    bags = torch.arange(len(starts), device=ids.device).repeat_interleave(
        ends - starts, output_size=flat.numel()
    )
    return flat, bags, len(starts)


def mean_of(sums: Tensor, ids: Tensor, offsets: Tensor | None, num_embeddings: int) -> Tensor:
    """What bags add up to, divided by the number of known ids in each, at least one."""
    known = ids != num_embeddings
    if offsets is None:
        sizes = known.sum(1)
    else:
        before = functional.pad(known.cumsum(0), (1, 0))
        ends = functional.pad(offsets[1:], (0, 1), value=ids.numel())
        sizes = before[ends] - before[offsets]
    return sums / sizes.clamp(min=1).unsqueeze(1).to(sums.dtype)
