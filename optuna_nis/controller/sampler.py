"""The controller as an ordinary Optuna sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
import threading
from typing import Any
import weakref
import zlib

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_nis._logging import get_logger
from optuna_nis.controller.choices import enumerate_choices, find_choice, same_distribution
from optuna_nis.controller.history import PolicyHistory, policy_history
from optuna_nis.controller.policy import Policy
from optuna_nis.controller.replay import (
    Replay,
    fingerprint,
)
from optuna_nis.controller.settings import PolicySettings
from optuna_nis.space.constraint import Constraint, check_budget
from optuna_nis.study.keys import (
    BUDGET_KEY,
    GROUP_KEY,
    GROUP_SIZE_KEY,
    LOG_PROB_KEY,
    PROPOSAL_KEY,
)
from optuna_nis.study.moments import is_due, note_policy

__all__ = [
    "GROUP_KEY",
    "GROUP_SIZE_KEY",
    "LOG_PROB_KEY",
    "NISSampler",
    "PolicyHistory",
    "policy_history",
]

_FIXED_DRAWS = 64

_logger = get_logger(__name__)


class NISSampler(BaseSampler):
    """A sampler that learns a policy over choices by reinforcement learning.

    It is the controller of Neural Input Search (`Joglekar et al., 2020
    <https://arxiv.org/abs/1907.04471>`__): an actor-critic over categorical parameters. It suits
    many categorical parameters whose effects mostly add up, such as the sizes of embedding
    tables, with tens to thousands of trials.

    It learns over categorical parameters of at most 256 choices, and over integers and floats with
    a step that have at most 32 values; all else is left to the independent sampler. Without a
    budget, the parameters learned are those that all finished trials have in common. Choices may
    be lists, tuples and dictionaries, too. Storages turn tuples into lists, and Optuna then
    refuses the tuples of a process that resumes the study: use lists there.

    The policy is a function of the finished trials alone. Studies resume where they stopped, and
    any number of processes may share a storage. Trials from elsewhere, enqueued ones included,
    are learned with bounded weight; pruned trials count with their last intermediate value, or
    with their value if they have none.

    Example:
        >>> import optuna
        >>> def objective(trial):
        ...     dim = trial.suggest_categorical("dim", [4, 8, 16, 32])
        ...     pool = trial.suggest_categorical("pool", ["sum", "mean"])
        ...     return abs(dim - 16) + (pool == "sum")
        >>> study = optuna.create_study(sampler=NISSampler(seed=0))
        >>> study.optimize(objective, n_trials=50)
        >>> study.best_params
        {'dim': 16, 'pool': 'mean'}

    Args:
        budget: A hard limit on the choices, a :class:`~optuna_nis.SearchSpace` or an
            :class:`~optuna_nis.AdditiveBudget`. No choice beyond it is ever proposed. Its
            parameters must be suggested by ``suggest_categorical`` with its choices, in their
            order. Parameters that are enqueued or fixed by
            :class:`optuna.samplers.PartialFixedSampler` may break it; such trials are marked as
            infeasible (the constraint ``"budget"``).
        seed: Makes draws repeatable. It is mixed with the number of the trial: processes that have
            one seed and share a study draw apart, and a study that was interrupted goes on as it
            would have. The studies of one sampler draw apart, too.
        independent_sampler: Sampler of all parameters that the policy does not learn; by default
            :class:`~optuna.samplers.RandomSampler`.
        warn_independent_sampling: Whether to log a warning for every such parameter.
        settings: How the policy learns.

    Raises:
        TypeError: If the budget is a number or a string (a budget needs the cost of every choice),
            or another argument is of another type.
        ValueError: If the seed is not an integer of 0 or more.
    """

    def __init__(
        self,
        *,
        budget: Constraint | None = None,
        seed: int | None = None,
        independent_sampler: BaseSampler | None = None,
        warn_independent_sampling: bool = True,
        settings: PolicySettings | None = None,
    ) -> None:
        check_budget(budget)
        if seed is not None and not (isinstance(seed, Integral) and seed >= 0):
            raise ValueError(f"`seed` must be an integer of 0 or more, or None, got {seed!r}.")
        if not (independent_sampler is None or isinstance(independent_sampler, BaseSampler)):
            raise TypeError(
                f"`independent_sampler` must be a sampler of Optuna, got {independent_sampler!r}."
            )
        if not (settings is None or isinstance(settings, PolicySettings)):
            raise TypeError(f"`settings` must be `PolicySettings`, got {settings!r}.")
        self._budget = budget
        self._seed = np.random.SeedSequence(seed)
        self._independent_sampler = independent_sampler
        self._warn_independent_sampling = warn_independent_sampling
        self._settings = settings
        self._start()

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._followed: weakref.WeakKeyDictionary[BaseStorage, dict[int, _Followed]] = (
            weakref.WeakKeyDictionary()
        )
        self._num_followed = 0

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_lock"], state["_followed"], state["_num_followed"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def reseed_rng(self) -> None:
        """Draw a new seed, for threads and processes that share this sampler."""
        with self._lock:
            self._seed = np.random.SeedSequence()
            if self._independent_sampler is not None:
                self._independent_sampler.reseed_rng()

    @property
    def budget(self) -> Constraint | None:
        """The hard limit on the choices, as the argument."""
        return self._budget

    @property
    def settings(self) -> PolicySettings:
        """How the policy learns."""
        return self._settings or PolicySettings()

    def _seed_of(self, study: Study, trial: FrozenTrial, *key: int) -> np.random.SeedSequence:
        """A seed for what is drawn for a trial, whichever process draws it."""
        with self._lock:
            place = self._follow(study).place
            return np.random.SeedSequence(
                self._seed.entropy, spawn_key=(place, trial.number, *key)
            )

    def policy(self, study: Study) -> Policy:
        """The policy that the finished trials of a study add up to.

        Args:
            study: A study with a single objective.

        Returns:
            A copy, free to be updated.

        Raises:
            ValueError: If the study has several objectives, or there is no budget and no finished
                trial to take the parameters from.
        """
        with self._lock:
            policy = self._learn(study).policy
            if policy is None:
                raise ValueError(
                    "`study` must have a finished trial with parameters that can be learned, or "
                    "the sampler a `budget`, got neither."
                )
            return policy.copy()

    def _learn(self, study: Study, trial: FrozenTrial | None = None) -> Replay:
        self._raise_error_if_multi_objective(study)
        storage, study_id = study._storage, study._study_id
        replay = self._follow(study).replay
        if trial is not None and isinstance(storage, InMemoryStorage):
            count = max(trial.number + 1, replay.num_followed)
            replay.follow(_InMemoryTrials(storage, study_id, count))
        else:
            # Optuna keeps the list while a trial is set up.
            replay.follow(study._get_trials(deepcopy=False, use_cache=trial is not None))
        return replay

    def _follow(self, study: Study) -> _Followed:
        followed = self._followed.setdefault(study._storage, {})
        if study._study_id not in followed:
            replay = Replay(study.direction, self._budget, self._settings)
            followed[study._study_id] = _Followed(replay, self._num_followed)
            self._num_followed += 1
        return followed[study._study_id]

    def observe(self, study: Study) -> None:
        """Learn what has finished, and note in the study how the policy is doing.

        While trials are asked for this happens by itself. What is noted, and when, says
        :mod:`optuna_nis.study.moments`.

        Args:
            study: A study with a single objective.
        """
        with self._lock:
            self._note(study, self._learn(study))

    def _note(self, study: Study, replay: Replay) -> None:
        if replay.policy is None or not is_due(replay.num_trials, replay.last_moment):
            return
        replay.last_moment = replay.num_trials
        moment = note_policy(study, replay.policy, replay.num_trials, replay.lag)
        _logger.debug(f"The policy of the study {study.study_name!r}: {moment}.")

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The parameters that the policy draws, and that storages give back as they were."""
        with self._lock:
            replay = self._learn(study, trial)
            return {n: d for n, d in replay.distributions.items() if n not in replay.containers}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw parameters from the policy."""
        params: dict[str, Any] = {}
        attrs: dict[str, str | float] = {}
        with self._lock:
            replay = self._learn(study, trial)
            self._note(study, replay)
            policy = replay.policy
            known = [
                name
                for name, distribution in replay.distributions.items()
                if name in search_space and same_distribution(search_space[name], distribution)
            ]
            later = replay.containers.difference(known)
            if policy is not None and (known or later):
                # Enqueued, or left by a worker that died: a retried trial has what it had.
                given = trial.params | trial.system_attrs.get("fixed_params", {})
                fixed = {name: given[name] for name in policy.choices if name in given}
                unknown = {
                    name: value
                    for name, value in fixed.items()
                    if find_choice(policy.choices[name], value) is None
                }
                pinned = {name: fixed[name] for name in fixed.keys() - unknown.keys()}
                if pinned and (meant := getattr(self._budget, "meant", None)):
                    pinned = meant(pinned)
                rng = np.random.default_rng(self._seed_of(study, trial))
                options, log_prob = policy.sample(_FIXED_DRAWS if fixed else 1, rng, fixed=pinned)
                row = int(np.isfinite(log_prob).argmax())
                if unknown:
                    _logger.warning(
                        f"The given parameters {unknown} of Trial#{trial.number} are none of the "
                        "choices; the others are drawn as if these were not given."
                    )
                elif fixed and not np.isfinite(log_prob[row]):
                    _logger.warning(
                        f"The given parameters {fixed} of Trial#{trial.number} leave no choice "
                        "within the budget for the others."
                    )
                drawn = policy.params(options[row : row + 1])[0]
                params = {name: drawn[name] for name in known}
                if later:
                    self._follow(study).drawn[trial.number] = {
                        name: (replay.distributions[name], option)
                        for name, option in zip(policy.choices, options[row].tolist())
                        if name in later
                    }
                if not fixed and len(known) + len(later) == len(policy.choices):
                    attrs[PROPOSAL_KEY] = fingerprint(policy, options)
                    attrs[LOG_PROB_KEY] = float(log_prob[0])
        for key, value in attrs.items():
            study._storage.set_trial_system_attr(trial._trial_id, key, value)
        for name, distribution in search_space.items():
            if name not in params:
                params[name] = self._independently(study, trial, name, distribution)
        return params

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Leave a parameter to the independent sampler, unless the policy has drawn it."""
        self._raise_error_if_multi_objective(study)
        with self._lock:
            drawn = self._follow(study).drawn.get(trial.number, {})
        if param_name in drawn and isinstance(param_distribution, CategoricalDistribution):
            distribution, option = drawn[param_name]
            if same_distribution(distribution, param_distribution):
                return param_distribution.choices[option]
        if self._warn_independent_sampling and any(
            past.state == TrialState.COMPLETE
            for past in study._get_trials(deepcopy=False, use_cache=True)
        ):
            self._log_independent_sampling(trial, param_name, param_distribution)
        return self._independently(study, trial, param_name, param_distribution)

    def _independently(
        self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution
    ) -> Any:
        sampler = self._independent_sampler
        if sampler is None:
            seed = self._seed_of(study, trial, zlib.crc32(name.encode(errors="surrogatepass")))
            sampler = RandomSampler(seed=int(seed.generate_state(1)[0]))
        return sampler.sample_independent(study, trial, name, distribution)

    def _log_independent_sampling(
        self, trial: FrozenTrial, param_name: str, distribution: BaseDistribution
    ) -> None:
        if enumerate_choices(distribution) is None:
            reason = "the policy learns only over parameters with few distinct values"
        else:
            reason = "dynamic search space is not supported by the policy"
        own = self.__class__.__name__
        independent = type(self._independent_sampler or RandomSampler()).__name__
        _logger.warning(
            f"The parameter `{param_name}` in Trial#{trial.number} is sampled independently using "
            f"`{independent}` instead of `{own}`, potentially "
            f"degrading the optimization performance. This fallback happened because {reason}. "
            "You can suppress this warning by setting `warn_independent_sampling` to `False` in "
            f"the constructor of `{own}` if this independent sampling is intended behavior."
        )

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Tell the independent sampler."""
        if self._independent_sampler is not None:
            self._independent_sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Mark a trial that others pushed over the budget; the policy learns by replay instead."""
        with self._lock:
            followed = self._followed.get(study._storage, {}).get(study._study_id)
            drawn_in_part = followed.drawn.pop(trial.number, None) if followed else None
        if (
            self._budget is not None
            and state in (TrialState.COMPLETE, TrialState.PRUNED)
            and (drawn_in_part or PROPOSAL_KEY not in trial.system_attrs)
            and not keeps_to(self._budget, trial.params)
        ):
            study._storage.set_trial_system_attr(trial._trial_id, BUDGET_KEY, 1.0)
            _logger.warning(
                f"Trial#{trial.number} is over the budget: its parameters were fixed or enqueued. "
                "It is marked as infeasible, and the policy does not learn from it."
            )
        if followed is not None and state == TrialState.COMPLETE:
            self._tell_missing(followed, trial)
        if self._independent_sampler is not None:
            self._independent_sampler.after_trial(study, trial, state, values)

    def _tell_missing(self, followed: _Followed, trial: FrozenTrial) -> None:
        """Say once of a study that an objective does not ask for all that has a cost."""
        known = () if self._budget is None else self._budget.choices
        missing = [name for name in known if name not in trial.params]
        if missing and not followed.is_told:
            followed.is_told = True
            _logger.warning(
                f"Trial#{trial.number} has no value of {missing[:3]}"
                f"{' and others' if len(missing) > 3 else ''}, of which `budget` has costs: such "
                "trials teach the policy nothing, and what they cost is not known. Suggest all "
                "parameters of the budget in every trial."
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


@dataclass
class _Followed:
    """A study that is followed.

    Attributes:
        replay: What it teaches.
        place: How many studies were followed before it.
        drawn: By trial number, options of parameters whose choices only the objective knows in
            the form that it wants: a storage makes lists of tuples.
        is_told: Whether it was said that a trial lacks parameters of the budget.
    """

    replay: Replay
    place: int
    drawn: dict[int, dict[str, tuple[BaseDistribution, int]]] = field(default_factory=dict)
    is_told: bool = False


class _InMemoryTrials(Sequence[FrozenTrial]):
    """The trials of a study by number, fetched as they are asked for.

    To copy a list of 10,000 trials costs more than to propose one.
    """

    def __init__(self, storage: InMemoryStorage, study_id: int, count: int) -> None:
        self._storage = storage
        self._study_id = study_id
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(self._count)[index]]
        number = range(self._count)[index]
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        return self._storage.get_trial(trial_id)
