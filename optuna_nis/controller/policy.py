"""The controller: a distribution over categorical choices that learns from rewards.

An actor and a critic, as in A3C (Mnih et al., 2016), for problems with one step:

* The *actor* is one categorical distribution per parameter. Parameters are drawn one after the
  other; options that a constraint rules out after the earlier draws are masked, so that every
  draw is feasible and its log-probability exact.
* The *critic* is a ridge regression of the reward on the chosen options, in which neighbouring
  numbers are taken to be worth about the same, and sizes what their width and bits are. It
  estimates the advantage of every option, also of those not drawn this time, and is a control
  variate: the sampled policy gradient accounts only for what the critic cannot explain.

The critic's part of the policy gradient is taken as a natural gradient step with entropy
regularisation, which has a closed form (Cen et al., 2022): logits move a fraction of the way
towards ``initial + advantage / temperature``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import copy
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from optuna_nis.controller import actor
from optuna_nis.controller.choices import find_choice
from optuna_nis.controller.critic import Critic
from optuna_nis.controller.reward_scale import WINDOW, RewardScale
from optuna_nis.controller.settings import PolicySettings
from optuna_nis.space.constraint import BoolArray, Choice, Constraint, FloatArray, IntArray

# From the options that are open, shape ``(n, columns, options)``, the one taken of each.
Pick = Callable[[BoolArray, slice], IntArray]

_MARGINAL_DRAWS = 256


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
        weights = {} if constraint is None else constraint.initial_log_weights()
        self._initial = self._replaced(np.zeros(self._valid.shape), weights)
        self._logits = self._initial.copy()
        self._temperature = self.settings.temperature / (len(self._choices) + 1)
        self._scale = RewardScale()
        self._advantages = np.empty(0)
        self._critic = Critic(list(self._choices.values()), self.settings.ridge)

    def _replaced(self, logits: FloatArray, log_weights: Mapping[str, FloatArray]) -> FloatArray:
        for row, name in enumerate(self._choices):
            if name in log_weights:
                logits[row, : self._num_options[row]] = log_weights[name]
        return actor.bounded(logits, self._valid)

    @property
    def choices(self) -> Mapping[str, tuple[Choice, ...]]:
        """The options of every parameter, in the order in which they are drawn."""
        return self._choices

    @property
    def num_copied(self) -> int:
        """How many numbers :meth:`copy` takes, about."""
        return self._critic.num_copied

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
        other._logits = self._replaced(self.logits, constraint.tilt(logits))
        other._initial = other._logits.copy()
        return other

    def worth(self, priors: Sequence[Mapping[str, FloatArray]]) -> list[dict[str, FloatArray]]:
        """What each option is worth by the rewards so far, and by what was thought before them.

        Args:
            priors: What each option was thought to be worth, in any unit, in one way or several.

        Example:
            >>> policy = Policy({"dim": (4, 8, 16)})
            >>> policy.update([[0], [2]], [0.1, 0.9])
            >>> (worth,) = policy.worth([{}])
            >>> int(worth["dim"].argmax())
            2
        """
        nothing = {name: np.zeros(len(known)) for name, known in self._choices.items()}
        thought = [np.concatenate([*(nothing | {**each}).values()]) for each in priors]
        cuts = np.cumsum(self._num_options)[:-1]
        refined = self._critic.refined(np.stack(thought))
        return [dict(zip(self._choices, np.split(own, cuts))) for own in refined]

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

        def pick(masks: BoolArray, columns: slice) -> IntArray:
            return actor.pick(self._probabilities(masks, columns), uniform[:, columns])

        pinned = {
            row: find_choice(known, fixed[name])
            for row, (name, known) in enumerate(self._choices.items())
            if fixed is not None and name in fixed
        }
        options, masks = self._draw(n, pick, pinned)
        log_prob = actor.log_prob(options, self._probabilities(masks))
        for row, option in pinned.items():
            log_prob[options[:, row] != option] = -np.inf
        return options, log_prob

    def mode(self) -> IntArray:
        """The greedy choice: the likeliest option of every parameter, one after the other.

        Returns:
            Indices of the options, shape ``(1, number of parameters)``.
        """
        return self._draw(1, lambda masks, at: self._probabilities(masks, at).argmax(-1))[0]

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
            options[:, free] = pick(masks[:, free], free)
        if self._constraint is not None:
            walk = self._constraint.walk(n)
            if pinned and (reserve := getattr(walk, "reserve", None)):
                rows = enumerate(self._constraint.choices)
                held = {name: pinned.get(row) for row, name in rows}
                reserve({name: own for name, own in held.items() if own is not None})
            for row, name in enumerate(self._constraint.choices):
                masks[:, row, : self._num_options[row]] = walk.allowed(name)
                pin(row)
                column = slice(row, row + 1)
                options[:, column] = pick(masks[:, column], column)
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
        return self._draw(len(checked), lambda _, columns: checked[:, columns])[1]

    def feasible(self, options: ArrayLike, masks: BoolArray | None = None) -> BoolArray:
        """Whether each row of options keeps to the constraint."""
        checked = self._checked(options)
        masks = self.masks(checked) if masks is None else masks
        taken = np.take_along_axis(masks, checked[:, :, None], axis=2)[:, :, 0]
        return np.asarray(taken.all(axis=1))

    def log_prob(self, options: ArrayLike) -> FloatArray:
        """Log-probability of drawing each row of options, minus infinity if infeasible."""
        checked = self._checked(options)
        return actor.log_prob(checked, self._probabilities(self.masks(checked)))

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
                walk.take(name, actor.pick(p, uniform[:, row]).ravel())
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

        if k == 0 or (observed := self._scale.observe(rewards)) is None:
            return
        advantage = self._critic.learn(options, observed)
        self._advantages = np.concatenate([self._advantages, advantage])[-WINDOW:]
        settings = self.settings
        sampled = actor.sampled_gradient(
            self._logits, options, masks, advantage, drawn, settings.max_importance
        )
        values, spread = np.zeros((2, *self._valid.shape))
        values[self._valid] = self._critic.weights[:-1] / observed.scale
        spread[self._valid] = self._critic.standard_errors()
        # A group tells less than as many trials that are each drawn by a better policy, and
        # is drawn where trials are cheap: there is time to explore.
        steps = math.sqrt(k)
        temperature = self._temperature * steps
        target = self._initial + (values + settings.optimism * spread) / temperature
        way = -math.expm1(-settings.learning_rate * temperature * steps)
        self._logits = actor.bounded(
            self._logits
            + way * (target - self._logits)
            + settings.sampled_learning_rate * sampled / steps,
            self._valid,
        )

    def _probabilities(self, masks: BoolArray, columns: slice = slice(None)) -> FloatArray:
        return actor.open_probabilities(self._logits[columns], masks)

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
