"""A softmax over many items: losses and ranks whose memory does not grow with the batch.

Items are a :class:`torch.nn.Linear`, or a layer of :mod:`optuna_nis.nn` in its place, which shows
each run of a batch that is shared among several choices other weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from optuna_nis.models.weights import weight_sum
from optuna_nis.nn import MultiSizeLinear, SupernetLinear
from optuna_nis.nn._look_up import full_precision

Items: TypeAlias = nn.Linear | SupernetLinear | MultiSizeLinear

# Logits held at a time. Few enough to stay in the cache, which makes the loss about twice as fast
# as that of a whole batch.
_CHUNK_LOGITS = 2**21
_MIN_CHUNK_ROWS = 32


def softmax_loss(
    vectors: Tensor, items: Items, labels: Tensor, weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy of a softmax over all items.

    The value of ``functional.cross_entropy(items(vectors), labels)`` and its gradients, in the
    memory of a few rows of logits: the gradients are made together with the loss, so it can be
    differentiated once.

    Args:
        vectors: Of the examples, shape ``(batch, in_features)``.
        items: The layer that gives the logits, with a bias.
        labels: Index of the target of each example, shape ``(batch,)``; examples of which it is
            negative are left out.
        weights: How much each example counts in the mean, shape ``(batch,)``; None if all count
            alike.
    """
    number = _number(labels, weights)
    with full_precision(vectors):
        losses = [
            _SoftmaxLoss.apply(  # type: ignore[no-untyped-call]
                own, *every, labels[rows], number, None if weights is None else weights[rows]
            )
            for rows, own, every in _all(vectors, items)
        ]
    return torch.stack(losses).sum()


def sampled_softmax_loss(
    vectors: Tensor,
    items: Items,
    labels: Tensor,
    num_sampled: int,
    certain: Tensor | None = None,
    weights: Tensor | None = None,
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
        certain: Index of an item that each example is compared with for certain, shape
            ``(batch,)``, negative for none: one that the model is prone to take for the target
            and that is seldom drawn.
        weights: As in :func:`softmax_loss`.
    """
    span = math.log(items.out_features + 1)
    drawn = torch.rand(num_sampled, device=labels.device).mul_(span).exp_().long() - 1
    # Rounding may reach one past the last item.
    drawn.clamp_(max=items.out_features - 1)
    expected = num_sampled * ((drawn + 2) / (drawn + 1)).log() / span
    each = [labels] if certain is None else [labels, certain]
    losses = []
    with full_precision(vectors):
        for rows, own, others, targets, *more in _some(vectors, items, drawn, *each):
            logits = own @ others.weight.T + (others.bias - expected.log())
            logits = logits.masked_fill(drawn == labels[rows].unsqueeze(1), -math.inf)
            target = _one_each(own, targets)
            compared = [target, logits]
            if certain is not None:
                ids = certain[rows].unsqueeze(1)
                compared[1] = logits.masked_fill(drawn == ids, -math.inf)
                left_out = (ids < 0) | (ids == labels[rows].unsqueeze(1))
                compared.append(_one_each(own, *more).masked_fill(left_out, -math.inf))
            losses.append(torch.cat(compared, 1).logsumexp(1) - target.squeeze(1))
    found = torch.cat(losses).where(labels >= 0, 0.0)
    return (found if weights is None else found * weights).sum() / _number(labels, weights)


def target_ranks(
    vectors: Tensor, items: Items, labels: Tensor, left_out: Tensor | None = None
) -> Tensor:
    """Number of items whose logit is at least that of the target: 0 if the target is the best.

    Args:
        vectors: As in :func:`softmax_loss`.
        items: As in :func:`softmax_loss`.
        labels: As in :func:`softmax_loss`; a negative one is a target that is no item and ranks
            after all of them.
        left_out: As in :func:`without`.

    Returns:
        Shape ``(batch,)``, integers.
    """
    labels = _asked_for(labels, left_out)
    ranks = []
    for rows, logits in _logits(vectors, items, left_out):
        target = logits.gather(1, labels[rows].clamp(min=0).unsqueeze(1))
        # Comparing into floats is many times as fast as summing booleans.
        lower = torch.lt(logits, target, out=torch.empty_like(logits)).sum(1)
        ranks.append(items.out_features - 1 - lower.long())
    return torch.cat(ranks).masked_fill(labels < 0, items.out_features)


def estimated_ranks(
    vectors: Tensor,
    items: Items,
    labels: Tensor,
    num_ranked: int,
    left_out: Tensor | None = None,
) -> Tensor:
    """Estimate of :func:`target_ranks` from some of the items.

    Items are cut by their index into at most ``num_ranked`` runs whose lengths grow with it, so
    items must be sorted by falling frequency; the middle of each stands for all of it. The most
    frequent ones stand for themselves.

    Args:
        vectors: As in :func:`target_ranks`.
        items: As in :func:`target_ranks`.
        labels: As in :func:`target_ranks`.
        num_ranked: Largest number of items that each target is compared with.
        left_out: As in :func:`without`.

    Returns:
        Shape ``(batch,)``, floats.
    """
    labels = _asked_for(labels, left_out)
    total = items.out_features
    cuts = np.expm1(np.linspace(0, math.log1p(total), num_ranked + 1))
    edges = torch.from_numpy(np.unique(np.rint(cuts).astype(np.int64)))
    middle = ((edges[:-1] + edges[1:] - 1) // 2).to(labels.device)
    ranks = []
    with full_precision(vectors):
        for run, own, others, targets in _some(vectors, items, middle, labels):
            lengths = edges.diff().to(own)
            known = labels[run].clamp(min=0)
            target = _one_each(own, targets).squeeze(1)
            for rows in _chunks(len(own), len(middle)):
                logits = torch.addmm(others.bias, own[rows], others.weight.T)
                below = torch.lt(logits, target[rows, None], out=torch.empty_like(logits))
                below.masked_fill_(middle == known[rows, None], 1.0)
                if left_out is not None:
                    seen = left_out[run][rows].unsqueeze(2) == middle
                    below.masked_fill_(seen.any(1), 1.0)
                ranks.append(total - below @ lengths)
    return torch.cat(ranks).masked_fill(labels < 0, total)


def top_items(vectors: Tensor, items: Items, k: int, left_out: Tensor | None = None) -> Tensor:
    """The ``k`` items with the largest logits, best first.

    Returns:
        Indices of shape ``(batch, k)``.
    """
    return torch.cat([logits.topk(k).indices for _, logits in _logits(vectors, items, left_out)])


def without(logits: Tensor, left_out: Tensor | None) -> Tensor:
    """Logits that are minus infinity for some items of each example.

    Args:
        logits: Shape ``(batch, items)``.
        left_out: Indices of items, shape ``(batch, n)``; their number is none. None leaves
            nothing out.
    """
    if left_out is None:
        return logits
    none = left_out == logits.shape[1]
    lowest = torch.where(none, math.inf, -math.inf).to(logits.dtype)
    return logits.scatter_reduce(1, left_out.masked_fill(none, 0), lowest, "amin")


class _Rows(NamedTuple):
    """Weights of some items, of shape ``(items, in_features)``, and their biases."""

    weight: Tensor
    bias: Tensor


def _asked_for(labels: Tensor, left_out: Tensor | None) -> Tensor:
    """Labels, those that are left out as of no item: they are never found."""
    if left_out is None:
        return labels
    return labels.masked_fill((left_out == labels.unsqueeze(1)).any(1), -1)


def _some(
    vectors: Tensor, items: Items, shared: Tensor, *each: Tensor
) -> Iterator[tuple[Any, ...]]:
    """For each run of a batch which it is, its vectors, and rows: shared ones, of each example."""
    bias = _precise_bias(items)
    if isinstance(items, nn.Linear):
        runs, look_up = 1, items.weight.to(bias.dtype).__getitem__
    else:
        table = items.field_layers()[0]
        table.check_runs(len(vectors))
        runs, look_up = table.num_choices, table
    size = len(vectors) // runs
    rows = [
        map(_Rows, look_up(ids).to(bias.dtype), bias[ids])
        for ids in (shared.expand(runs, -1), *(ids.clamp(min=0).view(runs, size) for ids in each))
    ]
    for run, found in enumerate(zip(*rows)):
        where = slice(run * size, (run + 1) * size)
        yield where, vectors[where].to(bias.dtype), *found


def _one_each(vectors: Tensor, rows: _Rows) -> Tensor:
    """The logit of one item for each vector, of shape ``(batch, 1)``."""
    return (vectors * rows.weight).sum(1, keepdim=True) + rows.bias.unsqueeze(1)


def _all(vectors: Tensor, items: Items) -> Iterator[tuple[slice, Tensor, _Rows]]:
    """For each run of a batch which it is, its vectors, and the rows of all items."""
    bias = _precise_bias(items)
    parts: Iterable[tuple[slice, Tensor, Tensor | None]]
    if isinstance(items, nn.Linear):
        parts = [(slice(0, len(vectors)), items.weight, bias)]
    else:
        parts = items.parts(len(vectors))
    for rows, weight, _ in parts:
        yield rows, vectors[rows].to(bias.dtype), _Rows(weight.to(bias.dtype), bias)


def _number(labels: Tensor, weights: Tensor | None) -> Tensor:
    """How many examples there are whose target is known, or what their weights add up to."""
    known = labels >= 0
    return known.sum().clamp(min=1) if weights is None else weight_sum(weights * known)


def _precise_bias(items: Items) -> Tensor:
    """The biases in 32 bits or more: fewer do for no sum over many items."""
    assert items.bias is not None
    return items.bias.to(torch.promote_types(items.bias.dtype, torch.float32))


def _logits(
    vectors: Tensor, items: Items, left_out: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """The logits of some rows at a time, and which these are."""
    with full_precision(vectors):
        for run, own, every in _all(vectors, items):
            for rows in _chunks(len(own), items.out_features):
                where = slice(run.start + rows.start, min(run.start + rows.stop, run.stop))
                hidden = None if left_out is None else left_out[where]
                yield where, without(functional.linear(own[rows], *every), hidden)


class _SoftmaxLoss(torch.autograd.Function):
    """The sum of the cross-entropies of examples, divided by a number."""

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        number: Tensor,
        weights: Tensor | None,
    ) -> Tensor:
        loss = vectors.new_zeros(())
        gradients = torch.empty_like(vectors), torch.zeros_like(weight), torch.zeros_like(bias)
        for rows in _chunks(len(vectors), len(weight)):
            label = labels[rows].unsqueeze(1)
            known, target = label >= 0, label.clamp(min=0)
            logits = torch.addmm(bias, vectors[rows], weight.T)
            total = logits.logsumexp(1, keepdim=True)
            losses = (total - logits.gather(1, target)).where(known, 0.0)
            if weights is not None:
                losses *= weights[rows].unsqueeze(1)
            loss += losses.sum()
            # The gradient of the logits: the probabilities, less one for the target.
            logits.sub_(total).exp_()
            logits.scatter_add_(1, target, -torch.ones_like(target, dtype=logits.dtype))
            logits /= number.to(logits.dtype).where(known, math.inf)
            if weights is not None:
                logits *= weights[rows].unsqueeze(1)
            torch.mm(logits, weight, out=gradients[0][rows])
            gradients[1].addmm_(logits.T, vectors[rows])
            gradients[2].add_(logits.sum(0))
        ctx.save_for_backward(*gradients)
        return loss / number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        vectors, weight, bias = ctx.saved_tensors
        return outer * vectors, outer * weight, outer * bias, None, None, None


def _chunks(num_rows: int, num_items: int) -> Iterator[slice]:
    size = max(_MIN_CHUNK_ROWS, _CHUNK_LOGITS // num_items)
    for start in range(0, max(1, num_rows), size):
        yield slice(start, start + size)
