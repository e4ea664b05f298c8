"""Rows of one width: what a layer of chosen sizes is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from optuna_nis.nn._rounding import BEST_STEPS, has_tangent, rounded, spread_of, step_of
from optuna_nis.nn._tracing import is_scripted
from optuna_nis.space.precision import CODES

# Where the metadata of a state have the bits of a tier.
_BITS = "bits"


class _Spread(nn.Module):
    """What the step of codes comes from, apart from the rows.

    Its gradient is dense where theirs are sparse, and torch takes either for all that one module
    holds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Parameter(torch.empty(1))


class Tier(nn.Embedding):
    """Rows of one width and one precision.

    What is trained is ``weight``, in floats. In fewer bits than 32 the model sees its numbers as
    they will be stored, and gradients reach ``weight`` as if they were not rounded (Bengio et al.,
    2013, "Estimating or Propagating Gradients Through Stochastic Neurons"). Where they are codes,
    the step between their levels is trained with them.

    It is what torch looks for where gradients may be sparse, as its data parallelism does.

    Attributes:
        bits: Bits of a number.
    """

    bits: int = 32

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        bits: int = 32,
        init_std: float = 0.01,
        sparse: bool = False,
    ) -> None:
        rows = torch.empty(num_embeddings, embedding_dim)
        super().__init__(num_embeddings, embedding_dim, sparse=sparse, _weight=rows)
        self.bits = bits
        if bits in CODES:
            self._dense = _Spread()
        self.init_std = init_std
        self.reset_parameters()

    @property
    def spread(self) -> nn.Parameter | None:
        """What the step is found from, of shape ``(1,)``; None where numbers are floats."""
        return self._dense.spread if self.bits in CODES else None

    def stored_step(self) -> Tensor | None:
        """The step between levels, of shape ``(1,)``, in float16 as it is stored and used."""
        spread = self.spread
        return None if spread is None else step_of(spread, self.bits)

    def spread_scale(self) -> float | None:
        """What a gradient of the step is multiplied by to give that of the spread.

        It keeps the spread from being trained faster than the numbers that share it. None if the
        spread is not trained.
        """
        spread = self.spread
        gets_gradients = torch.is_grad_enabled() or is_scripted()
        is_trained = spread is not None and spread.requires_grad and gets_gradients
        if spread is None or not (is_trained or has_tangent(spread)):
            return None
        shared = self.num_embeddings * self.embedding_dim * 2 ** (self.bits - 1)
        return float(BEST_STEPS[self.bits] * shared**-0.5)

    def reset_parameters(self) -> None:
        """Draw rows of standard deviation ``init_std``."""
        nn.init.normal_(self.weight, std=self.init_std)
        self.fit_step()

    @torch.no_grad()
    def fit_step(self) -> None:
        """Start the step from the rows as they are now."""
        if self.spread is not None:
            self.spread.copy_(spread_of(self.weight))

    def table(self) -> Tensor:
        """All rows as the model sees them, not projected."""
        return self._rounded(self.weight)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows of ids, not projected."""
        return self._rounded(functional.embedding(ids, self.weight))

    def _rounded(self, rows: Tensor) -> Tensor:
        if self.bits == 32:
            return rows
        return rounded(rows, self.spread, self.bits, self.spread_scale())

    def pooled(self, ids: Tensor, starts: Tensor, weights: Tensor | None) -> Tensor:
        """The sums of the rows of bags, not projected.

        Args:
            ids: The rows of all bags, shape ``(n,)``.
            starts: Where each bag starts, shape ``(bags,)``.
            weights: What rows are multiplied by, shape ``(n,)``.

        Returns:
            Shape ``(bags, embedding_dim)``.
        """
        sparse = self.sparse
        if self.bits < 32 and (sparse or len(ids) < self.num_embeddings):
            # Of a larger table only these rows are rounded.
            rows = self._rounded(functional.embedding(ids, self.weight, sparse=sparse))
            ids, sparse = torch.arange(len(ids), dtype=ids.dtype, device=ids.device), False
        else:
            rows = self.table()
        return functional.embedding_bag(
            ids,
            rows,
            starts.to(ids.dtype),
            mode="sum",
            sparse=sparse,
            per_sample_weights=weights,
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Beside the version of the module: rows of any precision are alike as tensors.
        if (metadata := getattr(destination, "_metadata", None)) is not None:
            metadata[prefix[:-1]][_BITS] = self.bits

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *args: Any,
    ) -> None:
        before = local_metadata.get(_BITS, self.bits)
        # Of floats and codes, one has a step: it is missing, or more than is wanted.
        if before != self.bits and (before in CODES) == (self.bits in CODES):
            *_, error_msgs = args
            error_msgs.append(
                f"the rows of `{prefix[:-1]}` have {before} bits a number in the state, here "
                f"{self.bits}."
            )
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if f"{prefix}weight" in state_dict and f"{prefix}_dense.spread" not in state_dict:
            self.fit_step()

    def extra_repr(self) -> str:
        """Show the shape and the precision."""
        return super().extra_repr() + ("" if self.bits == 32 else f", bits={self.bits}")


def rows_of_all(ranks: Tensor, tiers: Sequence[Tier]) -> Iterator[Tensor]:
    """For every tier its rows for all ids, zeros for those of other tiers.

    Costs a row per tier and id, but no shape depends on the data: what tracing needs, and devices
    that would have to be waited for.
    """
    for tier, inside, ids in places(ranks, tiers):
        rows = tier.rows(ids)
        yield torch.where(inside.unsqueeze(-1), rows, torch.zeros_like(rows))


def places(ranks: Tensor, tiers: Sequence[Tier]) -> Iterator[tuple[Tier, Tensor, Tensor]]:
    """For every tier whether it has each of the ids, and which of its rows, any for others."""
    start = 0
    for tier in tiers:
        end = start + tier.num_embeddings
        inside = (ranks >= start) & (ranks < end)
        yield tier, inside, (ranks - start).clamp(0, tier.num_embeddings - 1)
        start = end
