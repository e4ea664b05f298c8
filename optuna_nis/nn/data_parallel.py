"""Sparse gradients of processes that train together."""

import torch
from torch import Tensor, distributed
from torch.distributed import GradBucket, ProcessGroup  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future

# DDP looks at the annotations of hooks: they must be types.


def sparse_allreduce_hook(
    process_group: ProcessGroup | None, bucket: GradBucket
) -> Future[Tensor]:
    """Take the mean of gradients over the processes, of sparse ones by gathering their rows.

    A communication hook of :class:`torch.nn.parallel.DistributedDataParallel`, for models with
    sparse gradients on CPUs. Without it torch reduces them by an operation that, beside others,
    corrupts the memory of the process in time (torch 2.13, with gloo). Searches and trainings
    of this package in several processes have it already.

    Args:
        process_group: The processes; all of them if it is None.
        bucket: The gradients, a sparse one alone.

    Returns:
        Their mean.

    Example:
        >>> from torch.nn.parallel import DistributedDataParallel
        >>> store = torch.distributed.HashStore()
        >>> torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        >>> model = DistributedDataParallel(torch.nn.Embedding(9, 4, sparse=True))
        >>> model.register_comm_hook(None, sparse_allreduce_hook)
        >>> model(torch.tensor([1, 5])).sum().backward()
        >>> model.module.weight.grad.coalesce().indices().tolist()
        [[1, 5]]
        >>> torch.distributed.destroy_process_group()
    """
    gradient = bucket.buffer()
    if not gradient.is_sparse:
        return allreduce_hook(process_group, bucket)  # type: ignore[arg-type]
    # The threads of a gloo group note what has ended in one string, none waiting for the other.
    # Of all names that DDP has in it, that of a sparse reduction alone is too long to be held in
    # place: the string has memory of its own then, which both free.
    gradient = gradient.coalesce()
    rows, values = gradient.indices().t().contiguous(), gradient.values()
    counts = [int(each) for each in _gathered(torch.tensor([len(rows)]), process_group)]
    mean: Tensor = torch.sparse_coo_tensor(
        torch.cat(_gathered_rows(rows, counts, process_group)).t(),
        torch.cat(_gathered_rows(values, counts, process_group)) / len(counts),
        gradient.shape,
        check_invariants=False,
    ).coalesce()
    found: Future[Tensor] = torch.futures.Future()
    found.set_result(mean)
    return found


def _gathered(tensor: Tensor, process_group: ProcessGroup | None) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(distributed.get_world_size(process_group))]
    distributed.all_gather(parts, tensor, group=process_group)
    return parts


def _gathered_rows(
    rows: Tensor, counts: list[int], process_group: ProcessGroup | None
) -> list[Tensor]:
    """The rows of all processes, of which each has another number."""
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    return [part[:n] for part, n in zip(_gathered(padded, process_group), counts)]
