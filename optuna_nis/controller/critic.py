"""What each option is worth, learned from rewards."""

from __future__ import annotations

from collections.abc import Sequence
import copy
from itertools import pairwise
import math

import numpy as np

from optuna_nis.controller.reward_scale import Observed, clip
from optuna_nis.space.constraint import Choice, FloatArray, IntArray

_MAX_ADVANTAGE = 3.0
# Scale and location of the first rewards are guesses: their targets are made anew with every
# trial until there are this many.
_EARLY = 32
_INTERCEPT_VARIANCE = 100.0
_NEIGHBOUR_CORRELATION = 0.9
# Numbers of an intermediate result that fits the processor's cache.
_BLOCK = 65_536
# Gains whose outer products are subtracted together.
_DEFERRED = 16


class Critic:
    """Ridge regression of rewards on options, one trial at a time (recursive least squares).

    Args:
        choices: The options of every parameter.
        ridge: Strength with which the weight of an option is pulled to 0, in trials.

    Attributes:
        weights: What each option is worth, parameter after parameter, and at last the intercept
            of single trials.
    """

    def __init__(self, choices: Sequence[Sequence[Choice]], ridge: float) -> None:
        sizes = np.array([len(options) for options in choices])
        self._offsets = np.cumsum(sizes) - sizes
        size = int(sizes.sum())
        self.weights = np.zeros(size + 1)
        self._covariance = np.zeros((size + 1, size + 1))
        self._priors = [_prior_covariance(options) / ridge for options in choices]
        for start, before in zip(self._offsets, self._priors):
            own = slice(start, start + len(before))
            self._covariance[own, own] = before
        self._covariance[-1, -1] = _INTERCEPT_VARIANCE
        self._variances = self._covariance.diagonal().copy()
        # The covariance lags behind by the outer products of the latest gains: to subtract several
        # at once costs a third.
        self._gains = np.zeros((_DEFERRED, size + 1))
        self._pending = 0
        self._early: list[tuple[FloatArray, float]] = []
        self._origin: float | None = None
        self._squares = 0.0
        self._count = 0

    def copy(self) -> Critic:
        """A critic that learns on its own from here."""
        other = copy.copy(self)
        other.weights = self.weights.copy()
        other._covariance = self._covariance.copy()
        other._variances = self._variances.copy()
        other._gains = self._gains.copy()
        other._early = self._early.copy()
        return other

    def standard_errors(self) -> FloatArray:
        """Uncertainty of the weight of every option, in units of the reward's scale."""
        noise = math.sqrt(self._squares / max(self._count, 1))
        return np.asarray(noise * np.sqrt(np.maximum(self._variances[:-1], 0.0)))

    def refined(self, priors: FloatArray) -> FloatArray:
        """What each option is worth if it was thought to be worth something before any reward.

        Args:
            priors: What was thought of each option, shape ``(n, options)``, each row in any unit:
                it is multiplied by the factor that fits the rewards best, 0 if that is negative.

        Returns:
            The weights that would have been learned with each of them, of the same shape.
        """
        recent = self._gains[: self._pending]
        covariance = self._covariance - np.einsum("ki,kj->ij", recent, recent)
        thought = np.pad(priors, ((0, 0), (0, 1)))
        certain = np.zeros_like(thought)
        for start, before in zip(self._offsets, self._priors):
            own = slice(start, start + len(before))
            certain[:, own] = np.linalg.solve(before, thought[:, own].T).T
        # What is known now, less what was known before, is what the rewards have taught.
        known = np.linalg.solve(covariance, np.vstack([thought, self.weights]).T).T
        squares = ((known[:-1] - certain) * thought).sum(1)
        products = thought @ known[-1]
        factors = np.maximum(products / np.where(squares > 0, squares, np.inf), 0.0)
        refined = self.weights + factors[:, None] * (certain @ covariance)
        return np.asarray(refined[:, :-1])

    def learn(self, options: IntArray, observed: Observed) -> FloatArray:
        """Learn from the options of a trial or of a group of trials.

        Returns:
            By how much the reward of each surprised, in units of the reward's scale.
        """
        k = len(options)
        rows = np.zeros((k, len(self.weights)))
        rows[np.arange(k)[:, None], self._offsets + options] = 1.0
        if k == 1:
            rows[:, -1] = 1.0
        else:
            rows -= rows.mean(axis=0)
        early = len(self._early) < _EARLY
        low, high = observed.center - observed.radius, observed.center + observed.radius
        targets = clip(observed.rewards, low, high)
        if k > 1:
            targets -= targets.mean()
        else:
            if early or self._origin is None:
                self._origin = observed.center
            targets -= self._origin
        surprise: FloatArray = targets - np.einsum("ij,j->i", rows, self.weights)
        for row, target in zip(rows, targets):
            gain = self._times_covariance(row)
            error = target - float((row * self.weights).sum())
            root = math.sqrt(1.0 + float((row * gain).sum()))
            gain /= root
            self.weights += gain * (error / root)
            self._variances -= np.square(gain)
            self._gains[self._pending] = gain
            self._pending += 1
            if self._pending == len(self._gains):
                self._settle()
        if early:
            self._early += zip(rows, observed.rewards.tolist())
            self._relearn(observed)
        advantage = clip(surprise / observed.scale, -_MAX_ADVANTAGE, _MAX_ADVANTAGE)
        self._squares += float(np.square(advantage).sum())
        self._count += k
        return advantage

    def _relearn(self, observed: Observed) -> None:
        moment = np.zeros(len(self.weights))
        middle = self._origin or 0.0
        for row, reward in self._early:
            offset = middle if row[-1] else 0.0
            moment += row * min(max(reward - offset, -observed.radius), observed.radius)
        self.weights = self._times_covariance(moment)

    # Not `@` in the following: the order of summation in BLAS may change with the number of
    # threads, and the policy must be the same to the bit.

    def _times_covariance(self, vector: FloatArray) -> FloatArray:
        used = vector.nonzero()[0]
        product = np.zeros(len(vector))
        height = max(_BLOCK // len(vector), 1)
        for start in range(0, len(used), height):
            rows = used[start : start + height]
            product += np.einsum("i,ij->j", vector[rows], self._covariance[rows])
        recent = self._gains[: self._pending]
        product -= np.einsum("k,ki->i", np.einsum("ki,i->k", recent, vector), recent)
        return np.asarray(product)

    def _settle(self) -> None:
        """Subtract the outer products of the gains, in blocks that fit the processor's cache."""
        height = max(_BLOCK // len(self.weights), 1)
        for start in range(0, len(self.weights), height):
            rows = slice(start, start + height)
            self._covariance[rows] -= np.einsum("ki,kj->ij", self._gains[:, rows], self._gains)
        self._pending = 0


def _prior_covariance(options: Sequence[Choice]) -> FloatArray:
    """How alike the values of a parameter's options are thought to be beforehand.

    Neighbours among numbers in ascending order, such as widths, are worth about the same; nothing
    is known of other options.
    """
    numbers = [o for o in options if isinstance(o, (int, float)) and not isinstance(o, bool)]
    places = np.arange(len(options))
    if len(numbers) == len(options) and all(a < b for a, b in pairwise(numbers)):
        distance = np.abs(places[:, None] - places)
        return np.asarray(_NEIGHBOUR_CORRELATION**distance, dtype=np.float64)
    return np.eye(len(options))
