"""The controller: a distribution over categorical choices that learns from rewards.

An actor and a critic, as in A3C (Mnih et al., 2016), for problems with one step:

* The *actor* is one categorical distribution per parameter. Parameters are drawn one after the
  other; options that a constraint rules out after the earlier draws are masked, so that every
  draw is feasible and its log-probability exact.
* The *critic* is a ridge regression of the reward on the chosen options, in which neighbouring
  numbers are taken to be worth about the same. It estimates the advantage of every option, also of
  those not drawn this time, and serves as a control variate: the sampled policy gradient has to
  account only for what the critic cannot explain.

The critic's part of the policy gradient is taken as a natural gradient step with entropy
regularisation, which has a closed form (Cen et al., 2022): logits move a fraction of the way
towards ``initial + advantage / temperature``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import copy
from dataclasses import dataclass, fields
from itertools import pairwise
import json
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from optuna_nis.space.constraint import BoolArray, Choice, Constraint, IntArray

FloatArray = NDArray[np.float64]
Pick = Callable[[FloatArray, slice], IntArray]

_WINDOW = 256
_OUTLIER = 5.0
_MAX_ADVANTAGE = 3.0
# Scale and location of the first rewards are guesses: their targets are made anew with every
# trial until there are this many.
_EARLY = 32
_INTERCEPT_VARIANCE = 100.0
_NEIGHBOUR_CORRELATION = 0.9
_LARGEST_REWARD = 1e100
_MIN_LOGIT = -12.0
_MARGINAL_DRAWS = 256
# Numbers of an intermediate result that fits the processor's cache.
_BLOCK = 65_536
_DEFERRED = 16


@dataclass(frozen=True)
class PolicySettings:
    """How fast a :class:`Policy` learns and how long it explores.

    Rewards are divided by their running standard deviation, so none of these depends on the scale
    of the rewards.

    Args:
        learning_rate: Step of the logits along the critic's advantages, for a single trial; for a
            group it is multiplied by the square root of its size.
        temperature: Weight of the entropy bonus, for a single trial; for a group it is multiplied
            by the square root of its size. It is divided by the number of parameters plus one,
            which keeps the total cost of exploring about the same in spaces of any size.
        optimism: Standard errors of the critic added to the advantage of an option, which favours
            options seen seldom.
        sampled_learning_rate: The same along the sampled policy gradient, which learns what the
            critic cannot express: interactions, and what a choice leaves of a budget.
        ridge: Strength with which the critic pulls the advantage of an option to 0, in trials.
        max_importance: Upper bound on the importance weight of a trial that was drawn from an
            older policy.

    Raises:
        ValueError: If a setting is negative or not finite, or if one that must be positive is 0.

    Example:
        >>> PolicySettings(learning_rate=0.5).temperature
        1.0
    """

    learning_rate: float = 1.0
    temperature: float = 1.0
    optimism: float = 0.5
    sampled_learning_rate: float = 0.05
    ridge: float = 2.0
    max_importance: float = 2.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"`{field.name}` must be finite and not negative, got {value!r}.")
        for name in ("temperature", "ridge"):
            if getattr(self, name) == 0:
                raise ValueError(f"`{name}` must be positive, got {getattr(self, name)!r}.")


class Policy:
    """A learned distribution over categorical choices.

    Args:
        choices: For every parameter, its options. May be left out with a constraint, or name
            further parameters that the constraint does not know.
        constraint: A hard limit, such as a :class:`~optuna_nis.SearchSpace` or an
            :class:`~optuna_nis.AdditiveBudget`; no draw ever breaks it.
        settings: How to learn.

    Raises:
        ValueError: If there is no parameter, a parameter has no option, or the options of a
            parameter are not those of the constraint.

    Example:
        >>> policy = Policy({"dim": (4, 8, 16), "pool": ("sum", "mean")})
        >>> rng = np.random.default_rng(0)
        >>> for _ in range(30):
        ...     options, log_probs = policy.sample(8, rng)
        ...     rewards = [params["dim"] / 16 for params in policy.params(options)]
        ...     policy.update(options, rewards, log_probs)
        >>> policy.params(policy.mode())[0]["dim"]
        16
    """

    def __init__(
        self,
        choices: Mapping[str, Sequence[Choice]] | None = None,
        constraint: Constraint | None = None,
        settings: PolicySettings | None = None,
    ) -> None:
        self.settings = settings or PolicySettings()
        self._constraint = constraint
        self._choices: dict[str, tuple[Choice, ...]] = {}
        if constraint is not None:
            self._choices.update((n, tuple(options)) for n, options in constraint.choices.items())
        self._num_constrained = len(self._choices)
        for name, options in (choices or {}).items():
            if self._choices.setdefault(name, tuple(options)) != tuple(options):
                raise ValueError(
                    f"`choices[{name!r}]` must be those of the constraint, "
                    f"{list(self._choices[name])}, got {list(options)}."
                )
        if not self._choices:
            raise ValueError("`choices` must name at least one parameter, got none.")
        for name, known in self._choices.items():
            if not known:
                raise ValueError(f"`choices[{name!r}]` must hold at least one option, got none.")
        self._num_options = np.array([len(options) for options in self._choices.values()])
        self._valid = np.arange(self._num_options.max()) < self._num_options[:, None]
        self._offsets = np.cumsum(self._num_options) - self._num_options
        self._initial = self._initial_logits()
        self._logits = self._initial.copy()
        self._temperature = self.settings.temperature / (len(self._choices) + 1)
        self._scale = _RewardScale()
        self._advantages = np.empty(0)
        self._critic = _Critic(
            [
                _prior_covariance(options) / self.settings.ridge
                for options in self._choices.values()
            ]
        )

    def _initial_logits(self) -> FloatArray:
        logits = np.zeros(self._valid.shape)
        if self._constraint is not None:
            weights = self._constraint.initial_log_weights()
            for row, name in enumerate(self._constraint.choices):
                logits[row, : self._num_options[row]] = weights[name]
        return _bounded(logits, self._valid)

    @property
    def choices(self) -> Mapping[str, tuple[Choice, ...]]:
        """The options of every parameter, in the order in which they are drawn."""
        return self._choices

    def copy(self) -> Policy:
        """A policy that learns on its own from here."""
        other = copy.copy(self)
        other._logits = self._logits.copy()
        other._scale = copy.copy(self._scale)
        other._critic = self._critic.copy()
        return other

    def under(self, constraint: Constraint) -> Policy:
        """The policy that is nearest to this one and expects to keep to a tighter limit.

        What has been learned under one budget serves smaller ones: the distribution is tilted by
        the cost of the options, which changes it least (in the sense of Kullback and Leibler).

        Args:
            constraint: A limit over the parameters and options of this policy's constraint.

        Returns:
            A policy that has learned nothing but its distribution, to which the entropy bonus
            holds it.

        Raises:
            ValueError: If the parameters or options differ.

        Example:
            >>> from optuna_nis import AdditiveBudget
            >>> costs = {"x": {0: 0, 1: 1, 2: 2}, "y": {0: 0, 1: 1, 2: 2}}
            >>> policy = Policy(constraint=AdditiveBudget(4, costs))
            >>> small = policy.under(AdditiveBudget(1, costs))
            >>> small.params(small.mode())
            [{'x': 0, 'y': 0}]
        """
        names = list(self._choices)[: self._num_constrained]
        if list(constraint.choices) != names:
            raise ValueError(
                f"`constraint` must be over the parameters {names} in this order, got "
                f"{list(constraint.choices)}."
            )
        other = Policy(self._choices, constraint, self.settings)
        logits = {
            name: self._logits[row, : self._num_options[row]]
            for row, name in enumerate(constraint.choices)
        }
        other._logits = self._logits.copy()
        for row, weights in enumerate(constraint.tilt(logits).values()):
            other._logits[row, : self._num_options[row]] = weights
        other._logits = _bounded(other._logits, self._valid)
        other._initial = other._logits.copy()
        return other

    def params(self, options: ArrayLike) -> list[dict[str, Choice]]:
        """The choices that options stand for.

        Args:
            options: Indices of options, shape ``(n, number of parameters)``.

        Returns:
            For every row, a choice for every parameter.
        """
        checked = self._checked(options)
        return [
            {name: known[option] for (name, known), option in zip(self._choices.items(), row)}
            for row in checked.tolist()
        ]

    def options(self, params: Iterable[Mapping[str, Any]]) -> IntArray:
        """The inverse of :meth:`params`.

        Args:
            params: Mappings with a choice for every parameter; further entries are ignored.

        Raises:
            ValueError: If a parameter is missing or has a value that is not one of its choices.
        """
        rows = []
        for index, row in enumerate(params):
            for name, known in self._choices.items():
                if name not in row:
                    raise ValueError(f"`params[{index}]` must hold a choice for {name!r}.")
                option = find_choice(known, row[name])
                if option is None:
                    raise ValueError(
                        f"`params[{index}][{name!r}]` must be one of {list(known)}, "
                        f"got {row[name]!r}."
                    )
                rows.append(option)
        return np.array(rows, dtype=np.int64).reshape(-1, len(self._choices))

    def sample(
        self, n: int, rng: np.random.Generator, fixed: Mapping[str, Any] | None = None
    ) -> tuple[IntArray, FloatArray]:
        """Draw choices.

        Args:
            n: Number of draws.
            rng: Source of randomness.
            fixed: Choices already made. A draw that cannot keep to all of them within the
                constraint has a log-probability of minus infinity.

        Returns:
            Indices of the options, shape ``(n, number of parameters)``, and the log-probability
            of each draw, shape ``(n,)``.
        """
        uniform = rng.random((n, len(self._choices)))

        def pick(probabilities: FloatArray, columns: slice) -> IntArray:
            return _pick(probabilities, uniform[:, columns])

        pinned = {
            row: find_choice(known, fixed[name])
            for row, (name, known) in enumerate(self._choices.items())
            if fixed is not None and name in fixed
        }
        options, masks = self._draw(n, pick, pinned)
        log_prob = _log_prob(options, self._probabilities(masks))
        for row, option in pinned.items():
            log_prob[options[:, row] != option] = -np.inf
        return options, log_prob

    def mode(self) -> IntArray:
        """The greedy choice: the likeliest option of every parameter, one after the other.

        Returns:
            Indices of the options, shape ``(1, number of parameters)``.
        """
        options, _ = self._draw(
            1, lambda p, columns: np.broadcast_to(p.argmax(-1), (1, p.shape[-2]))
        )
        return options

    def _draw(
        self, n: int, pick: Pick, pinned: Mapping[int, int | None] | None = None
    ) -> tuple[IntArray, BoolArray]:
        pinned = pinned or {}
        masks = np.repeat(self._valid[None], n, axis=0)

        def pin(row: int) -> None:
            option = pinned.get(row)
            if option is not None:
                only = np.arange(masks.shape[2]) == option
                masks[:, row] = np.where(masks[:, row, option, None], only, masks[:, row])

        for row in pinned:
            if row >= self._num_constrained:
                pin(row)
        options = np.empty((n, len(self._choices)), dtype=np.int64)
        free = slice(self._num_constrained, None)
        if self._num_constrained < len(self._choices):
            options[:, free] = pick(self._probabilities(masks[:, free], free), free)
        if self._constraint is not None:
            walk = self._constraint.walk(n)
            for row, name in enumerate(self._constraint.choices):
                masks[:, row, : self._num_options[row]] = walk.allowed(name)
                pin(row)
                column = slice(row, row + 1)
                options[:, column] = pick(self._probabilities(masks[:, column], column), column)
                walk.take(name, options[:, row])
        return options, masks

    def masks(self, options: ArrayLike) -> BoolArray:
        """Options that were open when each parameter was drawn.

        Args:
            options: Indices of the options taken, shape ``(n, number of parameters)``.

        Returns:
            Shape ``(n, number of parameters, largest number of options)``.
        """
        checked = self._checked(options)
        masks = np.repeat(self._valid[None], len(checked), axis=0)
        if self._constraint is not None:
            walk = self._constraint.walk(len(checked))
            for row, name in enumerate(self._constraint.choices):
                masks[:, row, : self._num_options[row]] = walk.allowed(name)
                walk.take(name, checked[:, row])
        return masks

    def feasible(self, options: ArrayLike, masks: BoolArray | None = None) -> BoolArray:
        """Whether each row of options keeps to the constraint."""
        checked = self._checked(options)
        masks = self.masks(checked) if masks is None else masks
        taken = np.take_along_axis(masks, checked[:, :, None], axis=2)[:, :, 0]
        return np.asarray(taken.all(axis=1))

    def log_prob(self, options: ArrayLike) -> FloatArray:
        """Log-probability of drawing each row of options, minus infinity if infeasible."""
        checked = self._checked(options)
        return _log_prob(checked, self._probabilities(self.masks(checked)))

    def probabilities(self) -> dict[str, FloatArray]:
        """Probability of every option of every parameter.

        Exact without a constraint. With one, what is left for a parameter depends on the earlier
        draws: the probabilities are then averages over a fixed set of draws.
        """
        probabilities, _ = self.summaries(self._logits[None])
        return {name: array[0] for name, array in probabilities.items()}

    def entropy(self) -> float:
        """Entropy of a draw in nats, with a constraint as an average over a fixed set of draws."""
        return float(self.summaries(self._logits[None])[1][0])

    @property
    def advantages(self) -> FloatArray:
        """How much better the trials learned last were than the critic had expected.

        In standard deviations of the reward, at most 3 either way; of 256 trials at most.
        """
        return self._advantages.copy()

    @property
    def logits(self) -> FloatArray:
        """What the distribution is made from, shape ``(number of parameters, options)``."""
        return self._logits.copy()

    @property
    def initial_logits(self) -> FloatArray:
        """The :attr:`logits` before anything was learned."""
        return self._initial.copy()

    def summaries(self, logits: ArrayLike) -> tuple[dict[str, FloatArray], FloatArray]:
        """Probabilities and entropy of this policy at several moments, for less than one by one.

        Args:
            logits: :attr:`logits` at each moment, shape ``(moments, number of parameters,
                options)``.

        Returns:
            For every parameter what :meth:`probabilities` was, shape ``(moments, options)``, and
            what :meth:`entropy` was, shape ``(moments,)``.
        """
        weights = np.exp(np.asarray(logits, dtype=np.float64)) * self._valid
        moments = len(weights)
        probabilities: dict[str, FloatArray] = {}
        entropy = np.zeros(moments)
        if self._constraint is not None:
            walk = self._constraint.walk(moments * _MARGINAL_DRAWS)
            uniform = np.random.default_rng(0).random((_MARGINAL_DRAWS, len(self._choices)))
        for row, name in enumerate(self._choices):
            p = weights[:, None, row, : self._num_options[row]]
            if row < self._num_constrained:
                p = p * walk.allowed(name).reshape(moments, _MARGINAL_DRAWS, -1)
            p = p / p.sum(axis=2, keepdims=True)
            if row < self._num_constrained:
                walk.take(name, _pick(p, uniform[:, row]).ravel())
            probabilities[name] = p.mean(axis=1)
            entropy -= (p * np.log(np.where(p > 0, p, 1.0))).sum(axis=2).mean(axis=1)
        return probabilities, entropy

    def update(
        self,
        options: ArrayLike,
        rewards: ArrayLike,
        log_probs: ArrayLike | None = None,
        masks: BoolArray | None = None,
    ) -> None:
        """Learn from one trial, or from a group of trials scored on the same examples.

        The baseline of a group is its mean: only differences within the group count. The baseline
        of a single trial is the running average that the critic keeps. Infinite rewards count as
        the worst or best finite one so far, and outliers are clipped.

        Args:
            options: Indices of the options taken, shape ``(k, number of parameters)``.
            rewards: Reward of each trial, larger is better, shape ``(k,)``.
            log_probs: Log-probability with which each trial was drawn, shape ``(k,)``. NaN, or
                :obj:`None` for all, stands for a trial from elsewhere; it weighs as if it had been
                drawn uniformly among the feasible options, and at most like a trial of the
                policy's own.
            masks: What :meth:`masks` returns for the options, if they are known to be feasible.

        Raises:
            ValueError: If shapes do not fit, a reward is NaN, or options are infeasible.
        """
        options = self._checked(options)
        k = len(options)
        rewards = np.asarray(rewards, dtype=np.float64)
        drawn = np.full(k, np.nan) if log_probs is None else np.asarray(log_probs, np.float64)
        for argument, values in (("rewards", rewards), ("log_probs", drawn)):
            if values.shape != (k,):
                raise ValueError(
                    f"`{argument}` must have one number for each of {k} trials, "
                    f"got shape {values.shape}."
                )
        if np.isnan(rewards).any():
            raise ValueError(f"`rewards` must not be NaN, got {rewards.tolist()}.")
        if masks is None:
            masks = self.masks(options)
            if not self.feasible(options, masks).all():
                raise ValueError("`options` must keep to the constraint; check with `feasible`.")

        observed = self._scale.observe(rewards)
        if observed is None or k == 0:
            return
        chosen = options[:, :, None] == np.arange(masks.shape[2])
        rows = np.zeros((k, len(self._critic.weights)))
        rows[np.arange(k)[:, None], self._offsets + options] = 1.0
        if k == 1:
            rows[:, -1] = 1.0
        else:
            rows -= rows.mean(axis=0)
        surprise = self._critic.learn(rows, observed)
        advantage = _clip(surprise / observed.scale, -_MAX_ADVANTAGE, _MAX_ADVANTAGE)
        self._advantages = np.concatenate([self._advantages, advantage])[-_WINDOW:]
        self._step(chosen, masks, advantage, drawn, observed.scale)

    def _step(
        self,
        chosen: BoolArray,
        masks: BoolArray,
        advantage: FloatArray,
        drawn: FloatArray,
        scale: float,
    ) -> None:
        settings = self.settings
        probabilities = self._probabilities(masks)
        log_prob = np.log(probabilities[chosen]).reshape(len(chosen), -1).sum(axis=1)
        foreign = np.isnan(drawn)
        if foreign.any():
            drawn = np.where(foreign, -np.log(masks.sum(axis=2)).sum(axis=1), drawn)
        ratio = log_prob - drawn
        importance = np.minimum(
            np.exp(_clip(ratio, -50.0, 50.0)), np.where(foreign, 1.0, settings.max_importance)
        )
        sampled = np.einsum("k,kpo->po", importance * advantage, chosen - probabilities)

        values = np.zeros(self._valid.shape)
        spread = np.zeros(self._valid.shape)
        values[self._valid] = self._critic.weights[:-1] / scale
        spread[self._valid] = self._critic.standard_errors()
        # A group tells less than as many trials that are each drawn by a better policy, and
        # is drawn where trials are cheap: there is time to explore.
        steps = math.sqrt(len(chosen))
        temperature = self._temperature * steps
        target = self._initial + (values + settings.optimism * spread) / temperature
        way = -math.expm1(-settings.learning_rate * temperature * steps)
        self._logits = _bounded(
            self._logits
            + way * (target - self._logits)
            + settings.sampled_learning_rate * sampled / steps,
            self._valid,
        )

    def _probabilities(self, masks: BoolArray, columns: slice = slice(None)) -> FloatArray:
        # Logits are between `_MIN_LOGIT` and 0: their exponentials neither overflow nor vanish.
        weights = masks * np.exp(self._logits[columns])
        # Past the first forbidden option of an infeasible row nothing may be left to take.
        return np.asarray(weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300))

    def _checked(self, options: ArrayLike) -> IntArray:
        array = np.asarray(options)
        if array.ndim != 2 or array.shape[1] != len(self._choices):
            raise ValueError(
                f"`options` must have shape (n, {len(self._choices)}), got {array.shape}."
            )
        if not np.issubdtype(array.dtype, np.integer) and array.size:
            raise ValueError(f"`options` must be integers, got {array.dtype}.")
        if ((array < 0) | (array >= self._num_options)).any():
            raise ValueError("`options` must be indices of choices, got one out of range.")
        return array.astype(np.int64, copy=False)


@dataclass(frozen=True)
class _Observed:
    """Rewards of an update, and how to bring them to the critic's scale."""

    rewards: FloatArray
    center: float
    radius: float
    scale: float


class _RewardScale:
    """Running location and scale of the rewards, which outliers cannot move."""

    def __init__(self) -> None:
        self._worst = np.inf
        self._best = -np.inf
        self._singles = np.empty(0)
        self._differences = np.empty(0)

    def observe(self, rewards: FloatArray) -> _Observed | None:
        """Take notice of rewards; nothing comes back while only infinite ones are known."""
        known = np.isfinite(rewards)
        finite = _clip(rewards[known], -_LARGEST_REWARD, _LARGEST_REWARD)
        if finite.size:
            self._worst = min(self._worst, float(finite.min()))
            self._best = max(self._best, float(finite.max()))
        if self._worst > self._best:
            return None
        rewards = _clip(rewards, self._worst, self._best)
        k = len(rewards)
        center = 0.0
        if k == 1:
            self._singles = np.concatenate([self._singles, rewards])[-_WINDOW:]
            center = _quantile(np.sort(self._singles), 0.5)
        else:
            rewards = rewards - _quantile(np.sort(rewards), 0.5)
            unbiased = (rewards - rewards.mean()) * math.sqrt(k / (k - 1))
            self._differences = np.concatenate([self._differences, unbiased])[-_WINDOW:]
        spread = self._differences
        if len(self._singles):
            middle = center if k == 1 else _quantile(np.sort(self._singles), 0.5)
            spread = np.concatenate([self._singles - middle, spread])
        ordered = np.sort(spread)
        deviation = (_quantile(ordered, 0.75) - _quantile(ordered, 0.25)) / 1.349
        if deviation <= 0:
            deviation = math.sqrt(float(np.square(spread).mean()))
        radius = _OUTLIER * deviation
        clipped = _clip(spread, -radius, radius)
        scale = math.sqrt(float(np.square(clipped).mean()))
        return _Observed(rewards, center, radius, scale or 1.0)


class _Critic:
    """Ridge regression of rewards on options, one trial at a time (recursive least squares)."""

    def __init__(self, priors: Sequence[FloatArray]) -> None:
        size = sum(map(len, priors))
        self.weights = np.zeros(size + 1)
        self._covariance = np.zeros((size + 1, size + 1))
        start = 0
        for prior in priors:
            end = start + len(prior)
            self._covariance[start:end, start:end] = prior
            start = end
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

    def copy(self) -> _Critic:
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

    def learn(self, rows: FloatArray, observed: _Observed) -> FloatArray:
        """Learn from rows of options; returns by how much the rewards surprised."""
        early = len(self._early) < _EARLY
        low, high = observed.center - observed.radius, observed.center + observed.radius
        targets = _clip(observed.rewards, low, high)
        if len(rows) > 1:
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
        clipped = _clip(surprise / observed.scale, -_MAX_ADVANTAGE, _MAX_ADVANTAGE)
        self._squares += float(np.square(clipped).sum())
        self._count += len(rows)
        return surprise

    def _relearn(self, observed: _Observed) -> None:
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


def find_choice(choices: Sequence[Choice], value: Any) -> int | None:
    """Index of a value among choices, or :obj:`None`.

    Floats may differ by rounding, and lists, tuples and dictionaries by what a storage makes of
    them.
    """
    try:
        return choices.index(value)
    except ValueError:
        pass
    if not is_plain(value) and (text := _written(value)) is not None:
        for index, choice in enumerate(choices):
            if not is_plain(choice) and _written(choice) == text:
                return index
    if isinstance(value, float):
        for index, choice in enumerate(choices):
            if isinstance(choice, float) and (
                math.isclose(value, choice, rel_tol=1e-9, abs_tol=1e-12)
                or (math.isnan(value) and math.isnan(choice))
            ):
                return index
    return None


def is_plain(choice: Any) -> bool:
    """Whether a choice comes back from every storage as it was."""
    return choice is None or isinstance(choice, (bool, int, float, str))


def same_choices(a: Sequence[Choice], b: Sequence[Choice]) -> bool:
    """Whether choices are the same, for a storage that writes them down at least.

    Example:
        >>> same_choices([(3, 3), None], [[3, 3], None])
        True
        >>> same_choices([[3, 3], None], [[3, 3], 0])
        False
    """
    return len(a) == len(b) and all(
        x == y or ((text := _written(x)) is not None and text == _written(y)) for x, y in zip(a, b)
    )


def _written(choice: Any) -> str | None:
    """What a storage writes for a choice: tuples become lists, and keys become text."""
    try:
        return json.dumps(json.loads(json.dumps(choice)), sort_keys=True)
    except (TypeError, ValueError):
        return None


def _clip(array: FloatArray, low: float, high: float) -> FloatArray:
    # Several times faster than `numpy.clip` on a few numbers.
    return np.asarray(np.minimum(np.maximum(array, low), high))


def _quantile(ordered: FloatArray, q: float) -> float:
    last = len(ordered) - 1
    low, high = math.floor(q * last), math.ceil(q * last)
    if q < 0.5:
        return float(ordered[low])
    return float(ordered[high]) if q > 0.5 else float(ordered[low] / 2 + ordered[high] / 2)


def _bounded(logits: FloatArray, valid: BoolArray) -> FloatArray:
    largest = np.where(valid, logits, -np.inf).max(axis=1, keepdims=True)
    return np.asarray(np.where(valid, np.maximum(logits - largest, _MIN_LOGIT), 0.0))


def _pick(probabilities: FloatArray, uniform: FloatArray) -> IntArray:
    cumulative = probabilities.cumsum(axis=-1)
    # The factor keeps rounding from reaching past the last option with a probability.
    level = uniform * cumulative[..., -1] * (1 - 1e-12)
    return np.asarray((cumulative <= level[..., None]).sum(axis=-1), dtype=np.int64)


def _log_prob(options: IntArray, probabilities: FloatArray) -> FloatArray:
    taken = np.take_along_axis(probabilities, options[:, :, None], axis=2)[:, :, 0]
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(taken).sum(axis=1))
