"""How uncertain weights are, and together: what was thought beforehand less what was learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import copy

import numpy as np

from optuna_nis.space.constraint import FloatArray

# Numbers of an intermediate result that fits the processor's cache.
_BLOCK = 65_536
# Gains whose outer products are subtracted together.
_DEFERRED = 16


class Covariance:
    """A covariance from which an outer product is subtracted for each trial.

    Args:
        priors: Covariances beforehand of weights that follow each other; those of different arrays
            are independent.
        dense: Whether all is written out at once. If not, the outer products are kept as they are
            until there are as many as weights: few trials take little memory.
    """

    # Not `@` in the following: the order of summation in BLAS may change with the number of
    # threads, and the policy must be the same to the bit.

    def __init__(self, priors: Sequence[FloatArray], dense: bool) -> None:
        self._priors = priors
        self.size = sum(map(len, priors))
        # What is written out lags behind by the outer products of the latest gains: to subtract
        # several at once costs a third.
        self._recent = np.zeros((_DEFERRED, self.size))
        self._pending = 0
        # Full arrays of earlier gains that nobody writes to again: copies share them.
        self._earlier: list[FloatArray] = []
        self._dense = self._written_out() if dense else None

    def copy(self) -> Covariance:
        """One that changes on its own from here."""
        other = copy.copy(self)
        other._recent = self._recent.copy()
        other._earlier = self._earlier.copy()
        other._dense = None if self._dense is None else self._dense.copy()
        return other

    @property
    def num_copied(self) -> int:
        """How many numbers a copy takes."""
        return self._recent.size + (0 if self._dense is None else self._dense.size)

    def arrays(self) -> list[FloatArray]:
        """All that was learned, to tell whether two are the same."""
        dense = [] if self._dense is None else [self._dense]
        return [*dense, *self._earlier, self._recent[: self._pending]]

    def blocks(self) -> Iterator[tuple[slice, FloatArray]]:
        """The covariances beforehand, and where they stand."""
        start = 0
        for prior in self._priors:
            yield slice(start, start + len(prior)), prior
            start += len(prior)

    def full(self) -> FloatArray:
        """The covariance, written out."""
        dense = self._written_out() if self._dense is None else self._dense
        for gains in (*self._earlier, self._recent[: self._pending]):
            dense = dense - np.einsum("ki,kj->ij", gains, gains)
        return dense

    def times(self, vector: FloatArray) -> FloatArray:
        """The product with a vector."""
        product = np.zeros(self.size)
        if self._dense is None:
            for own, prior in self.blocks():
                product[own] = np.einsum("i,ij->j", vector[own], prior)
        else:
            used = vector.nonzero()[0]
            height = max(_BLOCK // self.size, 1)
            for start in range(0, len(used), height):
                rows = used[start : start + height]
                product += np.einsum("i,ij->j", vector[rows], self._dense[rows])
        for gains in (*self._earlier, self._recent[: self._pending]):
            product -= np.einsum("k,ki->i", np.einsum("ki,i->k", gains, vector), gains)
        return product

    def subtract(self, gain: FloatArray) -> None:
        """Subtract the outer product of a vector with itself."""
        self._recent[self._pending] = gain
        self._pending += 1
        if self._pending < len(self._recent):
            return
        if self._dense is not None:
            self._settle(self._dense, self._recent)
        else:
            self._earlier.append(self._recent)
            self._recent = np.zeros_like(self._recent)
            if len(self._earlier) * len(self._recent) >= self.size:
                self._dense = self._written_out()
                for gains in self._earlier:
                    self._settle(self._dense, gains)
                self._earlier = []
        self._pending = 0

    def _written_out(self) -> FloatArray:
        """What was thought beforehand."""
        dense = np.zeros((self.size, self.size))
        for own, prior in self.blocks():
            dense[own, own] = prior
        return dense

    def _settle(self, dense: FloatArray, gains: FloatArray) -> None:
        """Subtract outer products, in blocks that fit the processor's cache."""
        height = max(_BLOCK // self.size, 1)
        for start in range(0, self.size, height):
            rows = slice(start, start + height)
            dense[rows] -= np.einsum("ki,kj->ij", gains[:, rows], gains)
