"""The policy as a function of a study's finished trials.

Finished trials are replayed in the order of their completion. Nothing else enters: any process
that opens the study arrives at the same policy, and a lost process loses nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
import math
from typing import Any, NamedTuple
import zlib

import numpy as np
from optuna import Study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_nis._logging import get_logger
from optuna_nis.controller.policy import (
    FloatArray,
    Policy,
    PolicySettings,
    find_choice,
    is_plain,
    same_choices,
)
from optuna_nis.space.budget import BoolArray, Choice, Constraint, IntArray
from optuna_nis.study.keys import GROUP_KEY, GROUP_SIZE_KEY, LOG_PROB_KEY, PROPOSAL_KEY

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

_MAX_CHOICES = 256
_MAX_NUMERIC_VALUES = 32
_MAX_GROUP_SIZE = 10_000
_SNAPSHOT_INTERVAL = 64
_MAX_SNAPSHOTS = 8
_SNAPSHOT_CELLS = 4_000_000
_CHUNK = 1024

_logger = get_logger(__name__)


class _Member(NamedTuple):
    """What a finished trial teaches; nothing if its options are unknown."""

    options: IntArray | None
    masks: BoolArray | None
    reward: float
    log_prob: float


_Groups = dict[tuple[str, int], list[_Member]]


@dataclass(frozen=True)
class _Snapshot:
    position: int
    policy: Policy
    groups: _Groups


class Replay:
    """Learns a policy from the finished trials of one study.

    Trials may come in any pieces and in any order: the policy is always, bit for bit, the one that
    a single replay of all of them would give.

    Completed and pruned trials are learned, the latter by their last intermediate value. Failed
    trials, NaN, trials without one of the parameters or with an unknown choice, and trials that
    break the constraint teach nothing. A group is learned once all of its trials have finished.

    Args:
        direction: Direction of the study.
        constraint: Hard limit on the choices.
        settings: How the policy learns.
    """

    def __init__(
        self,
        direction: StudyDirection,
        constraint: Constraint | None = None,
        settings: PolicySettings | None = None,
    ) -> None:
        self._sign = -1.0 if direction == StudyDirection.MINIMIZE else 1.0
        self._constraint = constraint
        self._settings = settings
        self._warned: set[str] = set()
        self._constrained: dict[str, BaseDistribution] = {}
        if constraint is not None:
            self._constrained.update(
                (name, CategoricalDistribution(options))
                for name, options in constraint.choices.items()
            )
        self._forget()

    def _forget(self) -> None:
        self._trials: list[FrozenTrial] = []
        # Trials of the study looked at so far, finished or not.
        self.num_followed = 0
        # Trials that had finished unseen when the study was last looked at and any had.
        self.lag = 0
        # How many trials had finished when a moment of the policy was last noted.
        self.last_moment = 0
        self._unfinished: list[int] = []
        self._seen: dict[int, datetime | None] = {}
        self._common: dict[str, BaseDistribution] | None = None
        self.distributions: dict[str, BaseDistribution] = {}
        # Parameters whose choices a storage may give back in another form, such as tuples.
        self.containers: frozenset[str] = frozenset()
        self.policy: Policy | None = None
        self._restart()

    @property
    def num_trials(self) -> int:
        """Number of finished trials."""
        return len(self._trials)

    @property
    def trial_numbers(self) -> list[int]:
        """Numbers of the finished trials, in the order of the replay."""
        return [trial.number for trial in self._trials]

    def follow(self, trials: Sequence[FrozenTrial]) -> None:
        """Bring the policy up to date; the cost grows with the new trials only.

        Args:
            trials: All trials of the study by number, finished or not. Part of them are taken as
                well, at the cost of looking at each.
        """
        if trials and trials[-1].number != len(trials) - 1:
            self.learn(trials)
            return
        if not self._continues(trials):
            self._forget()
        news = [trials[number] for number in self._unfinished]
        news += trials[self.num_followed :]
        self.num_followed = len(trials)
        self._unfinished = [trial.number for trial in news if trial.state not in FINISHED]
        self.learn(news)

    def _continues(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether these are the trials followed so far and more, not a study made anew."""
        if len(trials) < self.num_followed:
            return False
        if not self._trials:
            return True
        last = self._trials[-1]
        if last.number >= len(trials):
            return False
        return trials[last.number].datetime_complete == last.datetime_complete

    def learn(self, trials: Iterable[FrozenTrial]) -> None:
        """Bring the policy up to date.

        Args:
            trials: Trials of the study; unfinished ones and those already known are passed over.
        """
        finished = [trial for trial in trials if trial.state in FINISHED]
        new = [t for t in finished if self._seen.get(t.number, ...) != t.datetime_complete]
        if any(trial.number in self._seen for trial in new):
            # The same number finished at another time: a study deleted and made anew.
            self._forget()
            new = finished
        if not new:
            return
        self.lag = len(new)
        self._seen.update((trial.number, trial.datetime_complete) for trial in new)
        if self._narrow(new):
            self._restart()
        new.sort(key=_order)
        first = _order(new[0])
        if self._trials and first < _order(self._trials[-1]):
            late = bisect_left(self._trials, first, key=_order)
            self._roll_back(late)
            self._trials[late:] = sorted(self._trials[late:] + new, key=_order)
        else:
            self._trials += new
        while self._position < len(self._trials):
            self._replay(self._trials[self._position : self._position + _CHUNK])

    def _narrow(self, trials: Sequence[FrozenTrial]) -> bool:
        """Restrict the space to what all trials have in common; whether that changed it."""
        common = self._common
        for trial in trials:
            if trial.state != TrialState.FAIL and trial.distributions:
                common = _intersection(common, trial.distributions)
        if common is self._common:
            return False
        self._common = common
        distributions = dict(self._constrained)
        for name, distribution in sorted((common or {}).items()):
            if name not in distributions and enumerate_choices(distribution) is not None:
                distributions[name] = distribution
        if distributions.keys() == self.distributions.keys():
            return False
        self.distributions = distributions
        return True

    def _restart(self) -> None:
        self._position = 0
        self._groups: _Groups = {}
        self.distributions = self.distributions or dict(self._constrained)
        self.containers = frozenset(
            name
            for name, distribution in self.distributions.items()
            if isinstance(distribution, CategoricalDistribution)
            and not all(map(is_plain, distribution.choices))
        )
        self.policy = None
        cells = 1
        if self.distributions:
            choices = {n: enumerate_choices(d) or () for n, d in self.distributions.items()}
            for name in self._constrained:
                del choices[name]
            self.policy = Policy(choices, self._constraint, self._settings)
            cells = sum(len(options) for options in self.policy.choices.values()) ** 2
        # A policy of many options is large: keep fewer copies of it.
        self._snapshots: deque[_Snapshot] = deque(
            maxlen=min(max(_SNAPSHOT_CELLS // cells, 1), _MAX_SNAPSHOTS)
        )

    def _roll_back(self, position: int) -> None:
        while self._snapshots and self._snapshots[-1].position > position:
            self._snapshots.pop()
        if not self._snapshots:
            self._restart()
            return
        snapshot = self._snapshots[-1]
        self._position = snapshot.position
        self.policy = snapshot.policy.copy()
        self._groups = _copy(snapshot.groups)

    def _replay(self, trials: Sequence[FrozenTrial]) -> None:
        members = self._members(trials)
        for trial, member in zip(trials, members):
            group = self._group(trial)
            if group is None:
                self._update([member])
            else:
                waiting = self._groups.setdefault(group, [])
                waiting.append(member)
                if len(waiting) == group[1]:
                    self._update(waiting, grouped=True)
                    del self._groups[group]
            self._position += 1
            if self.policy is not None and self._position % _SNAPSHOT_INTERVAL == 0:
                self._snapshots.append(
                    _Snapshot(self._position, self.policy.copy(), _copy(self._groups))
                )

    def _members(self, trials: Sequence[FrozenTrial]) -> list[_Member]:
        nothing = _Member(None, None, math.nan, math.nan)
        if self.policy is None:
            return [nothing] * len(trials)
        find = _finder(self.policy)
        rows = []
        taught = []
        for index, trial in enumerate(trials):
            row = None if math.isnan(_value(trial)) else find(trial.params)
            if row is not None:
                rows.append(row)
                taught.append(index)
        options = np.array(rows, dtype=np.int64).reshape(-1, len(self.policy.choices))
        # One walk for all of them: what was open depends on the choices, not on the policy.
        masks = self.policy.masks(options)
        feasible = self.policy.feasible(options, masks)
        if self._constraint is not None and not feasible.all():
            # Another sampler may have said the same in a way in which the policy never says it.
            for place in np.flatnonzero(~feasible).tolist():
                row = find(self._constraint.canonical(trials[taught[place]].params))
                if row is not None:
                    options[place] = row
            masks = self.policy.masks(options)
            feasible = self.policy.feasible(options, masks)
        members = [nothing] * len(trials)
        for row_index, index in enumerate(taught):
            if feasible[row_index]:
                trial = trials[index]
                one = slice(row_index, row_index + 1)
                members[index] = _Member(
                    options[one],
                    masks[one],
                    self._sign * _value(trial),
                    self._log_prob(trial, options[one]),
                )
        return members

    def _update(self, members: Sequence[_Member], grouped: bool = False) -> None:
        known = [m for m in members if m.options is not None]
        if self.policy is None or not known or (grouped and len(known) < 2):
            return
        self.policy.update(
            np.concatenate([m.options for m in known if m.options is not None]),
            np.array([m.reward for m in known]),
            np.array([m.log_prob for m in known]),
            np.concatenate([m.masks for m in known if m.masks is not None]),
        )

    def _log_prob(self, trial: FrozenTrial, options: IntArray) -> float:
        value = trial.system_attrs.get(LOG_PROB_KEY)
        if value is None:
            return math.nan
        if not _is_number(value) or not -1e6 < value <= 1e-6:
            self._warn(trial, LOG_PROB_KEY, value)
            return math.nan
        proposal = trial.system_attrs.get(PROPOSAL_KEY)
        if proposal is not None and not isinstance(proposal, str):
            self._warn(trial, PROPOSAL_KEY, proposal)
        assert self.policy is not None
        if proposal is not None and proposal != fingerprint(self.policy, options):
            return math.nan
        return float(value)

    def _group(self, trial: FrozenTrial) -> tuple[str, int] | None:
        attrs = trial.system_attrs
        if GROUP_KEY not in attrs and GROUP_SIZE_KEY not in attrs:
            return None
        name, size = attrs.get(GROUP_KEY), attrs.get(GROUP_SIZE_KEY)
        if not isinstance(name, str):
            self._warn(trial, GROUP_KEY, name)
            return None
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _MAX_GROUP_SIZE:
            self._warn(trial, GROUP_SIZE_KEY, size)
            return None
        return (name, size) if size > 1 else None

    def _warn(self, trial: FrozenTrial, key: str, value: object) -> None:
        if key not in self._warned:
            self._warned.add(key)
            _logger.warning(
                f"The system attribute `{key}` of Trial#{trial.number} is malformed and was "
                f"ignored, got {str(value)[:80]!r}. No further warning is given for `{key}`."
            )


@dataclass(frozen=True)
class PolicyHistory:
    """A policy at several moments of a study.

    Attributes:
        trial_numbers: Number of the trial that was learned last at each moment.
        choices: Options of every parameter.
        probabilities: For every parameter, the probability of each option at each moment, shape
            ``(moments, options)``.
        entropy: Entropy of the policy in nats at each moment.
    """

    trial_numbers: list[int] = field(default_factory=list)
    choices: dict[str, tuple[Choice, ...]] = field(default_factory=dict)
    probabilities: dict[str, FloatArray] = field(default_factory=dict)
    entropy: list[float] = field(default_factory=list)


def policy_history(
    study: Study,
    budget: Constraint | None = None,
    num_points: int = 50,
    settings: PolicySettings | None = None,
) -> PolicyHistory:
    """How the policy of a study came about, by replay of its finished trials.

    Args:
        study: The study, whatever sampler it used.
        budget: The ``budget`` of the study's :class:`~optuna_nis.NISSampler`.
        num_points: Largest number of moments, spread evenly over the trials; the last is today.
        settings: The ``settings`` of the study's sampler.

    Returns:
        The history; it is empty while no trial has finished.

    Raises:
        TypeError: If the budget is not a constraint.
        ValueError: If the study has several objectives or ``num_points`` is not positive.

    Example:
        >>> import optuna
        >>> from optuna_nis.controller.sampler import NISSampler
        >>> study = optuna.create_study(sampler=NISSampler(seed=0))
        >>> study.optimize(lambda trial: trial.suggest_categorical("x", [1, 2, 3]), n_trials=20)
        >>> history = policy_history(study, num_points=5)
        >>> history.trial_numbers
        [0, 5, 9, 14, 19]
        >>> history.probabilities["x"].shape
        (5, 3)
    """
    if isinstance(num_points, bool) or not isinstance(num_points, int) or num_points < 1:
        raise ValueError(f"`num_points` must be a positive integer, got {num_points!r}.")
    check_budget(budget)
    if len(study.directions) > 1:
        raise ValueError(
            f"`study` must have a single objective, got {len(study.directions)} directions."
        )
    trials = sorted(study.get_trials(deepcopy=False, states=FINISHED), key=_order)
    replay = Replay(study.direction, budget, settings)
    replay._narrow(trials)
    replay._restart()
    if replay.policy is None or not trials:
        return PolicyHistory()
    ends = np.unique(np.linspace(1, len(trials), min(num_points, len(trials))).round().astype(int))
    logits = []
    start = 0
    for end in ends.tolist():
        replay.learn(trials[start:end])
        start = end
        logits.append(replay.policy.logits)
    probabilities, entropy = replay.policy.summaries(logits)
    return PolicyHistory(
        trial_numbers=[trials[end - 1].number for end in ends.tolist()],
        choices=dict(replay.policy.choices),
        probabilities=probabilities,
        entropy=entropy.tolist(),
    )


def check_budget(budget: object) -> None:
    """Refuse what is not a constraint.

    Raises:
        TypeError: If the budget is not a constraint.
    """
    if budget is None or all(
        hasattr(budget, member)
        for member in ("choices", "walk", "initial_log_weights", "canonical")
    ):
        return
    raise TypeError(
        "`budget` must be a `SearchSpace`, which knows the cost of every choice, or an "
        f"`AdditiveBudget`, got {budget!r}; pass a number to the space: "
        "`NISSampler(budget=SearchSpace(specs, budget=...))`."
    )


def keeps_to(constraint: Constraint, params: Mapping[str, Any]) -> bool:
    """Whether params keep to a constraint; unknown and missing ones break nothing."""
    if any(name not in params for name in constraint.choices):
        return True
    params = constraint.canonical(params)
    walk = constraint.walk(1)
    for name, choices in constraint.choices.items():
        option = find_choice(choices, params[name])
        if option is None:
            return True
        if not walk.allowed(name)[0, option]:
            return False
        walk.take(name, np.array([option]))
    return True


def enumerate_choices(distribution: BaseDistribution) -> tuple[Choice, ...] | None:
    """The values of a distribution, or :obj:`None` if there is only one or too many to learn.

    Example:
        >>> enumerate_choices(IntDistribution(2, 6, step=2))
        (2, 4, 6)
    """
    if isinstance(distribution, CategoricalDistribution):
        values = tuple(distribution.choices)
        return values if 2 <= len(values) <= _MAX_CHOICES else None
    if isinstance(distribution, (IntDistribution, FloatDistribution)) and distribution.step:
        low, high, step = distribution.low, distribution.high, distribution.step
        count = round((high - low) / step) + 1
        if 2 <= count <= _MAX_NUMERIC_VALUES:
            return tuple(low + index * step for index in range(count))
    return None


def fingerprint(policy: Policy, options: IntArray) -> str:
    """A short text that tells proposals apart, the same in every process."""
    names = "\n".join(policy.choices)
    return f"{zlib.crc32(names.encode() + options.astype('<i4').tobytes()):08x}"


def _order(trial: FrozenTrial) -> tuple[datetime, int]:
    return (trial.datetime_complete or datetime.min, trial.number)


def _value(trial: FrozenTrial) -> float:
    if trial.state == TrialState.COMPLETE:
        return float(trial.values[0])
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        return float(trial.intermediate_values[max(trial.intermediate_values)])
    return math.nan


def _finder(policy: Policy) -> Callable[[Mapping[str, Any]], list[int] | None]:
    """A function from params to options, if they have a known choice for every parameter."""
    known = [
        (
            name,
            options,
            {o: place for place, o in reversed(list(enumerate(options))) if _hashable(o)},
        )
        for name, options in policy.choices.items()
    ]

    def find(params: Mapping[str, Any]) -> list[int] | None:
        row = []
        for name, options, places in known:
            if name not in params:
                return None
            value = params[name]
            try:
                option = places.get(value)
            except TypeError:  # A list or a dictionary.
                option = None
            if option is None and (option := find_choice(options, value)) is None:
                return None
            row.append(option)
        return row

    return find


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _intersection(
    common: dict[str, BaseDistribution] | None, other: Mapping[str, BaseDistribution]
) -> dict[str, BaseDistribution]:
    if common is None:
        return dict(other)
    if all(n in other and same_distribution(d, other[n]) for n, d in common.items()):
        return common
    return {n: d for n, d in common.items() if n in other and same_distribution(d, other[n])}


def same_distribution(a: BaseDistribution, b: BaseDistribution) -> bool:
    """Whether two distributions are equal."""
    # Optuna compares choice by choice; thousands of replayed trials are almost always equal.
    if a is b or (type(a) is type(b) and (a.__dict__ == b.__dict__ or a == b)):
        return True
    if isinstance(a, CategoricalDistribution) and isinstance(b, CategoricalDistribution):
        return same_choices(a.choices, b.choices)
    return False


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _copy(groups: _Groups) -> _Groups:
    return {key: list(members) for key, members in groups.items()}
