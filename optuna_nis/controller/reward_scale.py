"""Where rewards lie and how far apart, as they come in."""

from __future__ import annotations

from dataclasses import dataclass
import math

import numpy as np

from optuna_nis.space.constraint import FloatArray

WINDOW = 256
# Rewards count as at most so many standard deviations from the center.
_OUTLIER = 5.0
_LARGEST_REWARD = 1e100
# Between the quartiles of a normal distribution, in standard deviations.
_QUARTILE_RANGE = 1.349


@dataclass(frozen=True)
class Observed:
    """Rewards of an update, and where rewards lie.

    Attributes:
        rewards: Those of single trials as they are, those of a group less their median.
        center: Median of single trials, 0 for a group.
        radius: Distance from the center beyond which a reward is an outlier.
        scale: Standard deviation.
    """

    rewards: FloatArray
    center: float
    radius: float
    scale: float


class RewardScale:
    """Running location and scale of the rewards, which outliers cannot move."""

    def __init__(self) -> None:
        self._worst = np.inf
        self._best = -np.inf
        self._singles = np.empty(0)
        self._differences = np.empty(0)

    def observe(self, rewards: FloatArray) -> Observed | None:
        """Take notice of rewards; nothing comes back while only infinite ones are known."""
        known = np.isfinite(rewards)
        finite = clip(rewards[known], -_LARGEST_REWARD, _LARGEST_REWARD)
        if finite.size:
            self._worst = min(self._worst, float(finite.min()))
            self._best = max(self._best, float(finite.max()))
        if self._worst > self._best:
            return None
        rewards = clip(rewards, self._worst, self._best)
        k = len(rewards)
        center = 0.0
        if k == 1:
            self._singles = np.concatenate([self._singles, rewards])[-WINDOW:]
            center = _quantile(np.sort(self._singles), 0.5)
        else:
            rewards = rewards - _quantile(np.sort(rewards), 0.5)
            unbiased = (rewards - rewards.mean()) * math.sqrt(k / (k - 1))
            self._differences = np.concatenate([self._differences, unbiased])[-WINDOW:]
        spread = self._differences
        if len(self._singles):
            middle = center if k == 1 else _quantile(np.sort(self._singles), 0.5)
            spread = np.concatenate([self._singles - middle, spread])
        ordered = np.sort(spread)
        deviation = (_quantile(ordered, 0.75) - _quantile(ordered, 0.25)) / _QUARTILE_RANGE
        if deviation <= 0:
            deviation = math.sqrt(float(np.square(spread).mean()))
        radius = _OUTLIER * deviation
        clipped = clip(spread, -radius, radius)
        scale = math.sqrt(float(np.square(clipped).mean()))
        return Observed(rewards, center, radius, scale or 1.0)


def clip(array: FloatArray, low: float, high: float) -> FloatArray:
    """What `numpy.clip` does, several times faster on a few numbers."""
    return np.asarray(np.minimum(np.maximum(array, low), high))


def _quantile(ordered: FloatArray, q: float) -> float:
    """A quantile between two numbers is the outer one; the median is their mean."""
    last = len(ordered) - 1
    low, high = math.floor(q * last), math.ceil(q * last)
    if q < 0.5:
        return float(ordered[low])
    return float(ordered[high]) if q > 0.5 else float(ordered[low] / 2 + ordered[high] / 2)
