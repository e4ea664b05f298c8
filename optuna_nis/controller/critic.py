"""What each option is worth, learned from rewards."""

from __future__ import annotations

from collections.abc import Sequence
import copy
import math

import numpy as np

from optuna_nis.controller.covariance import Covariance
from optuna_nis.controller.design import Design
from optuna_nis.controller.reward_scale import Observed, clip
from optuna_nis.space.constraint import Choice, FloatArray, IntArray

_MAX_ADVANTAGE = 3.0
# Scale and location of the first rewards are guesses: their targets are made anew with every
# trial until there are this many.
_EARLY = 32
_INTERCEPT_VARIANCE = 100.0
# Weights up to which their covariance is written out from the start: 128 MiB.
_MOST_DENSE = 4096


class Critic:
    """Ridge regression of rewards on options, one trial at a time (recursive least squares).

    The value of an option is a weight of its own or, in spaces of several precisions, the sum of
    those of its width and its bits (:class:`Design`).

    Args:
        choices: The options of every parameter.
        ridge: Strength with which the value of an option is pulled to 0, in trials.
    """

    def __init__(self, choices: Sequence[Sequence[Choice]], ridge: float) -> None:
        self._design = Design(choices)
        priors = [prior / ridge for prior in self._design.priors]
        priors.append(np.full((1, 1), _INTERCEPT_VARIANCE))
        # Otherwise few trials take little memory, and are kept.
        self._is_dense = not self._design.is_additive and sum(map(len, priors)) <= _MOST_DENSE
        self._covariance = Covariance(priors, dense=self._is_dense)
        self._learned = np.zeros(self._covariance.size)
        # Weights that an option adds up are independent beforehand.
        self._variances = self._design.values(np.concatenate([p.diagonal() for p in priors]))
        self._early: list[tuple[FloatArray, float]] = []
        # Where it is not dense: what was taken, group after group, and the targets of all.
        self._taken: list[IntArray] = []
        self._targets: list[float] = []
        self._origin: float | None = None
        self._squares = 0.0
        self._count = 0

    @property
    def weights(self) -> FloatArray:
        """What each option is worth, and at last the intercept of single trials."""
        return self._design.values(self._learned)

    @property
    def num_copied(self) -> int:
        """How many numbers a copy takes, about."""
        return self._covariance.num_copied

    def arrays(self) -> list[FloatArray]:
        """All that was learned, to tell whether two critics are the same."""
        return [self._learned, *self._covariance.arrays()]

    def copy(self) -> Critic:
        """A critic that learns on its own from here."""
        other = copy.copy(self)
        other._learned = self._learned.copy()
        other._covariance = self._covariance.copy()
        other._variances = self._variances.copy()
        other._early = self._early.copy()
        other._taken = self._taken.copy()
        other._targets = self._targets.copy()
        return other

    def standard_errors(self) -> FloatArray:
        """Uncertainty of the value of every option, in units of the reward's scale."""
        noise = math.sqrt(self._squares / max(self._count, 1))
        return np.asarray(noise * np.sqrt(np.maximum(self._variances[:-1], 0.0)))

    def refined(self, priors: FloatArray) -> FloatArray:
        """What each option is worth if it was thought to be worth something before any reward.

        Args:
            priors: What was thought of each option, shape ``(n, options)``, each row in any unit:
                it is multiplied by the factor that fits the rewards best, 0 if that is negative.

        Returns:
            The values that would have been learned with each of them, of the same shape.
        """
        if not self._is_dense:
            return self._refined_by_trials(priors)
        covariance = self._covariance.full()
        thought = np.pad(priors, ((0, 0), (0, 1)))
        certain = np.zeros_like(thought)
        for own, before in self._covariance.blocks():
            certain[:, own] = np.linalg.solve(before, thought[:, own].T).T
        # What is known now, less what was known before, is what the rewards have taught.
        known = np.linalg.solve(covariance, np.vstack([thought, self._learned]).T).T
        squares = ((known[:-1] - certain) * thought).sum(1)
        products = thought @ known[-1]
        factors = np.maximum(products / np.where(squares > 0, squares, np.inf), 0.0)
        refined = self._learned + factors[:, None] * (certain @ covariance)
        return np.asarray(refined[:, :-1])

    def _refined_by_trials(self, priors: FloatArray) -> FloatArray:
        """The same from the trials that were kept, and where options share weights.

        These need not add up to what was thought. A value is taken to be the thought times its
        factor plus a sum of weights. What is learned of these is linear in the rewards, so it is
        what was learned without the thought, less the factor times what would have been learned
        of the thought's own rewards.
        """
        moments = np.zeros((len(priors), len(self._learned)))
        squares, products, trial = np.zeros(len(priors)), np.zeros(len(priors)), 0
        for options in self._taken:
            targets = np.array(self._targets[trial : trial + len(options)])
            trial += len(options)
            told = priors[:, self._design.starts + options].sum(axis=2)
            if len(options) > 1:
                told -= told.mean(axis=1, keepdims=True)
            squares += np.square(told).sum(axis=1)
            products += (told * targets).sum(axis=1)
            moments += np.einsum("nk,kj->nj", told, self._rows(options))
        factors = np.maximum(products / np.where(squares > 0, squares, np.inf), 0.0)
        return np.stack(
            [
                factor * prior
                + self._design.values(self._learned - factor * self._covariance.times(moment))[:-1]
                for factor, prior, moment in zip(factors, priors, moments)
            ]
        )

    def _rows(self, options: IntArray) -> FloatArray:
        rows = self._design.rows(options)
        if len(options) == 1:
            rows[:, -1] = 1.0
        else:
            rows -= rows.mean(axis=0)
        return rows

    def learn(self, options: IntArray, observed: Observed) -> FloatArray:
        """Learn from the options of a trial or of a group of trials.

        Returns:
            By how much the reward of each surprised, in units of the reward's scale.
        """
        k = len(options)
        rows = self._rows(options)
        early = len(self._early) < _EARLY
        low, high = observed.center - observed.radius, observed.center + observed.radius
        targets = clip(observed.rewards, low, high)
        if k > 1:
            targets -= targets.mean()
        else:
            if early or self._origin is None:
                self._origin = observed.center
            targets -= self._origin
        surprise: FloatArray = targets - np.einsum("ij,j->i", rows, self._learned)
        for row, target in zip(rows, targets):
            gain = self._covariance.times(row)
            error = target - float((row * self._learned).sum())
            root = math.sqrt(1.0 + float((row * gain).sum()))
            gain /= root
            self._learned += gain * (error / root)
            self._variances -= np.square(self._design.values(gain))
            self._covariance.subtract(gain)
        if not self._is_dense:
            self._taken.append(options.astype(np.int32))
            self._targets += targets.tolist()
        if early:
            self._early += zip(rows, observed.rewards.tolist())
            self._relearn(observed)
        advantage = clip(surprise / observed.scale, -_MAX_ADVANTAGE, _MAX_ADVANTAGE)
        self._squares += float(np.square(advantage).sum())
        self._count += k
        return advantage

    def _relearn(self, observed: Observed) -> None:
        moment = np.zeros(len(self._learned))
        middle = self._origin or 0.0
        targets = []
        for row, reward in self._early:
            offset = middle if row[-1] else 0.0
            targets.append(min(max(reward - offset, -observed.radius), observed.radius))
            moment += row * targets[-1]
        self._learned = self._covariance.times(moment)
        if self._targets:
            self._targets = targets
