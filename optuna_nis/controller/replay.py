"""The policy as a function of a study's finished trials.

Finished trials are replayed in the order of their completion. Nothing else enters: any process
that opens the study arrives at the same policy, and a lost process loses nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
import math
from typing import NamedTuple
import zlib

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from optuna_nis._logging import get_logger
from optuna_nis.controller.choices import (
    common_distributions,
    enumerate_choices,
    is_plain,
    option_finder,
)
from optuna_nis.controller.policy import Policy
from optuna_nis.controller.settings import PolicySettings
from optuna_nis.space.constraint import BoolArray, Constraint, IntArray
from optuna_nis.study.keys import GROUP_KEY, GROUP_SIZE_KEY, LOG_PROB_KEY, PROPOSAL_KEY

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

_MIN_LOG_PROB = -1e6
_MAX_LOG_PROB = 1e-6  # Of a certain draw, by rounding.
_MAX_GROUP_SIZE = 10_000
# The policy is kept so often, for trials that come late; at most so many times, and so many
# numbers of covariances.
_SNAPSHOT_INTERVAL = 64
_MAX_SNAPSHOTS = 8
_SNAPSHOT_CELLS = 4_000_000
# Trials replayed together.
_CHUNK = 1024

_logger = get_logger(__name__)


class _Member(NamedTuple):
    """What a finished trial teaches."""

    options: IntArray
    masks: BoolArray
    reward: float
    log_prob: float


_Groups = dict[tuple[str, int], list[_Member | None]]


@dataclass(frozen=True)
class _Snapshot:
    position: int
    policy: Policy
    groups: _Groups


class Replay:
    """Learns a policy from the finished trials of one study.

    Trials may come in any pieces and in any order: the policy is always, bit for bit, the one that
    a single replay of all of them would give.

    Completed and pruned trials are learned, the latter by their last intermediate value, or by
    their value if they have none. Failed trials, NaN, trials without one of the parameters or with
    an unknown choice, and trials that break the constraint teach nothing. A group is learned once
    all of its trials have finished.

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
        self.expect(new)
        new.sort(key=replay_order)
        first = replay_order(new[0])
        if self._trials and first < replay_order(self._trials[-1]):
            late = bisect_left(self._trials, first, key=replay_order)
            self._roll_back(late)
            self._trials[late:] = sorted(self._trials[late:] + new, key=replay_order)
        else:
            self._trials += new
        while self._position < len(self._trials):
            self._replay(self._trials[self._position : self._position + _CHUNK])

    def expect(self, trials: Sequence[FrozenTrial]) -> None:
        """Restrict the space to what trials have in common, before they are learned."""
        common = self._common
        for trial in trials:
            # A trial that was pruned before it had a value teaches nothing: it may not have come
            # to suggest everything.
            nothing = trial.state == TrialState.PRUNED and math.isnan(_value(trial))
            if trial.state != TrialState.FAIL and trial.distributions and not nothing:
                common = common_distributions(common, trial.distributions)
        if common is self._common:
            return
        self._common = common
        distributions = dict(self._constrained)
        for name, distribution in sorted((common or {}).items()):
            if name not in distributions and enumerate_choices(distribution) is not None:
                distributions[name] = distribution
        if distributions.keys() != self.distributions.keys():
            self.distributions = distributions
            self._restart()

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
        if self.distributions:
            choices = {n: enumerate_choices(d) or () for n, d in self.distributions.items()}
            for name in self._constrained:
                del choices[name]
            self.policy = Policy(choices, self._constraint, self._settings)
            self._find = option_finder(self.policy.choices)
        self._snapshots: deque[_Snapshot] = deque(maxlen=_MAX_SNAPSHOTS)

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
                # Where a copy is large, fewer are kept.
                while len(self._snapshots) > max(_SNAPSHOT_CELLS // self.policy.num_copied, 1):
                    self._snapshots.popleft()

    def _members(self, trials: Sequence[FrozenTrial]) -> list[_Member | None]:
        members: list[_Member | None] = [None] * len(trials)
        if self.policy is None:
            return members
        rows = []
        taught = []
        for index, trial in enumerate(trials):
            row = None if math.isnan(_value(trial)) else self._find(trial.params)
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
                row = self._find(self._constraint.canonical(trials[taught[place]].params))
                if row is not None:
                    options[place] = row
            masks = self.policy.masks(options)
            feasible = self.policy.feasible(options, masks)
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

    def _update(self, members: Sequence[_Member | None], grouped: bool = False) -> None:
        known = [member for member in members if member is not None]
        if self.policy is None or not known or (grouped and len(known) < 2):
            return
        self.policy.update(
            np.concatenate([m.options for m in known]),
            np.array([m.reward for m in known]),
            np.array([m.log_prob for m in known]),
            np.concatenate([m.masks for m in known]),
        )

    def _log_prob(self, trial: FrozenTrial, options: IntArray) -> float:
        value = trial.system_attrs.get(LOG_PROB_KEY)
        if value is None:
            return math.nan
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not _MIN_LOG_PROB < value <= _MAX_LOG_PROB:
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


def fingerprint(policy: Policy, options: IntArray) -> str:
    """A short text that tells proposals apart, the same in every process."""
    names = "\n".join(policy.choices).encode(errors="surrogatepass")
    return f"{zlib.crc32(names + options.astype('<i4').tobytes()):08x}"


def replay_order(trial: FrozenTrial) -> tuple[datetime, int]:
    """Key of the order in which finished trials are replayed, that of their completion."""
    return (trial.datetime_complete or datetime.min, trial.number)


def _value(trial: FrozenTrial) -> float:
    if trial.state == TrialState.PRUNED and trial.intermediate_values:
        return float(trial.intermediate_values[max(trial.intermediate_values)])
    if trial.state != TrialState.FAIL and trial.values:
        return float(trial.values[0])
    return math.nan


def _copy(groups: _Groups) -> _Groups:
    return {key: list(members) for key, members in groups.items()}
