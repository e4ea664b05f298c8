"""A softmax over many items: losses and ranks whose memory does not grow with the batch."""

from __future__ import annotations

from collections.abc import Iterator
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from optuna_nis.nn._look_up import full_precision

# Logits held at a time. Few enough to stay in the cache, which makes the loss about twice as fast
# as that of a whole batch.
_CHUNK_LOGITS = 2**21
_MIN_CHUNK_ROWS = 32


def softmax_loss(vectors: Tensor, items: nn.Linear, labels: Tensor) -> Tensor:
    """Mean cross-entropy of a softmax over all items.

    The value of ``functional.cross_entropy(items(vectors), labels)`` and its gradients, in the
    memory of a few rows of logits: the gradients are made together with the loss, so it can be
    differentiated once.

    Args:
        vectors: Of the examples, shape ``(batch, in_features)``.
        items: The layer that gives the logits, with a bias.
        labels: Index of the target of each example, shape ``(batch,)``.
    """
    with full_precision(vectors):
        loss: Tensor = _SoftmaxLoss.apply(  # type: ignore[no-untyped-call]
            *_precise(vectors, items), labels
        )
    return loss


def sampled_softmax_loss(
    vectors: Tensor, items: nn.Linear, labels: Tensor, num_sampled: int
) -> Tensor:
    """Estimate of :func:`softmax_loss` from some of the items.

    All examples share ``num_sampled`` items, drawn with replacement from the log-uniform
    distribution over ranks, so items must be sorted by falling frequency. The sum over all items
    but the target is estimated by importance sampling (Bengio and Senécal, 2008, "Adaptive
    Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model"): the
    logit of an item drawn is lowered by the log of the expected number of its draws.

    Args:
        vectors: As in :func:`softmax_loss`.
        items: As in :func:`softmax_loss`.
        labels: As in :func:`softmax_loss`.
        num_sampled: Number of items drawn, with torch's generator.
    """
    span = math.log(items.out_features + 1)
    drawn = torch.rand(num_sampled, device=labels.device).mul_(span).exp_().long() - 1
    # Rounding may reach one past the last item.
    drawn.clamp_(max=items.out_features - 1)
    expected = num_sampled * ((drawn + 2) / (drawn + 1)).log() / span
    with full_precision(vectors):
        vectors, weight, bias = _precise(vectors, items)
        logits = vectors @ weight[drawn].T + (bias[drawn] - expected.log())
        logits = logits.masked_fill(drawn == labels.unsqueeze(1), -math.inf)
        target = (vectors * weight[labels]).sum(1, keepdim=True) + bias[labels, None]
        loss = torch.cat([target, logits], 1).logsumexp(1) - target.squeeze(1)
    return loss.sum() / max(1, len(labels))


def target_ranks(vectors: Tensor, items: nn.Linear, labels: Tensor) -> Tensor:
    """Number of items whose logit is at least that of the target: 0 if the target is the best.

    Args:
        vectors: As in :func:`softmax_loss`.
        items: As in :func:`softmax_loss`.
        labels: As in :func:`softmax_loss`; a negative one is a target that is no item and ranks
            after all of them.

    Returns:
        Shape ``(batch,)``, integers.
    """
    ranks = []
    for rows, logits in _logits(vectors, items):
        target = logits.gather(1, labels[rows].clamp(min=0).unsqueeze(1))
        # Comparing into floats is many times as fast as summing booleans.
        lower = torch.lt(logits, target, out=torch.empty_like(logits)).sum(1)
        ranks.append(items.out_features - 1 - lower.long())
    return torch.cat(ranks).masked_fill(labels < 0, items.out_features)


def estimated_ranks(vectors: Tensor, items: nn.Linear, labels: Tensor, num_ranked: int) -> Tensor:
    """Estimate of :func:`target_ranks` from some of the items.

    Items are cut by their index into at most ``num_ranked`` runs whose lengths grow with it, so
    items must be sorted by falling frequency; the middle of each stands for all of it. The most
    frequent ones stand for themselves.

    Args:
        vectors: As in :func:`target_ranks`.
        items: As in :func:`target_ranks`.
        labels: As in :func:`target_ranks`.
        num_ranked: Largest number of items that each target is compared with.

    Returns:
        Shape ``(batch,)``, floats.
    """
    total = items.out_features
    cuts = np.expm1(np.linspace(0, math.log1p(total), num_ranked + 1))
    edges = torch.from_numpy(np.unique(np.rint(cuts).astype(np.int64)))
    middle = ((edges[:-1] + edges[1:] - 1) // 2).to(labels.device)
    ranks = []
    with full_precision(vectors):
        vectors, all_weight, all_bias = _precise(vectors, items)
        weight, bias = all_weight[middle], all_bias[middle]
        lengths = edges.diff().to(weight)
        for rows in _chunks(len(vectors), len(middle)):
            known = labels[rows].clamp(min=0)
            target = (vectors[rows] * all_weight[known]).sum(1) + all_bias[known]
            logits = torch.addmm(bias, vectors[rows], weight.T)
            below = torch.lt(logits, target[:, None], out=torch.empty_like(logits))
            below.masked_fill_(middle == known[:, None], 1.0)
            ranks.append(total - below @ lengths)
    return torch.cat(ranks).masked_fill(labels < 0, total)


def top_items(vectors: Tensor, items: nn.Linear, k: int) -> Tensor:
    """The ``k`` items with the largest logits, best first.

    Returns:
        Indices of shape ``(batch, k)``.
    """
    return torch.cat([logits.topk(k).indices for _, logits in _logits(vectors, items)])


def _precise(vectors: Tensor, items: nn.Linear) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors, weight and bias in 32 bits or more: fewer do for no sum over many items."""
    dtype = torch.promote_types(items.weight.dtype, torch.float32)
    return vectors.to(dtype), items.weight.to(dtype), items.bias.to(dtype)


def _logits(vectors: Tensor, items: nn.Linear) -> Iterator[tuple[slice, Tensor]]:
    """The logits of some rows at a time, and which these are."""
    with full_precision(vectors):
        vectors, weight, bias = _precise(vectors, items)
        for rows in _chunks(len(vectors), items.out_features):
            yield rows, functional.linear(vectors[rows], weight, bias)


class _SoftmaxLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
        loss = vectors.new_zeros(())
        gradients = torch.empty_like(vectors), torch.zeros_like(weight), torch.zeros_like(bias)
        for rows in _chunks(len(vectors), len(weight)):
            target = labels[rows].unsqueeze(1)
            logits = torch.addmm(bias, vectors[rows], weight.T)
            total = logits.logsumexp(1, keepdim=True)
            loss += (total - logits.gather(1, target)).sum()
            # The gradient of the logits: the probabilities, less one for the target.
            logits.sub_(total).exp_()
            logits.scatter_add_(1, target, -torch.ones_like(target, dtype=logits.dtype))
            logits /= len(vectors)
            torch.mm(logits, weight, out=gradients[0][rows])
            gradients[1].addmm_(logits.T, vectors[rows])
            gradients[2].add_(logits.sum(0))
        ctx.save_for_backward(*gradients)
        return loss / max(1, len(vectors))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        vectors, weight, bias = ctx.saved_tensors
        return outer * vectors, outer * weight, outer * bias, None


def _chunks(num_rows: int, num_items: int) -> Iterator[slice]:
    size = max(_MIN_CHUNK_ROWS, _CHUNK_LOGITS // num_items)
    for start in range(0, max(1, num_rows), size):
        yield slice(start, start + size)
