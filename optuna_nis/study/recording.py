"""Writing scored choices as the trials of a study, many at once.

``Study.add_trial`` asks a relational database several questions per parameter, about 25 ms for a
trial with 26 parameters. A one-shot search scores such a trial in less, so trials that are
finished before they are written go into the same tables in a few statements, in one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
import json
from typing import TYPE_CHECKING, Any
import uuid

from optuna import Study, create_trial
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from optuna_nis.space.space import SearchSpace
from optuna_nis.study.keys import (
    CUT_SHORT,
    FIDELITY_ATTR,
    GROUP_KEY,
    GROUP_SIZE_KEY,
    LOG_PROB_KEY,
    NBYTES_ATTR,
    NUM_PARAMETERS_ATTR,
    ORIGIN_ATTR,
    PENALTY_ATTR,
    QUALITY_ATTR,
    REFERENCE_ATTR,
    SEARCH_ATTR,
    STEP_ATTR,
)
from optuna_nis.study.moments import is_due, note_policy
from optuna_nis.study.settings import save_space

if TYPE_CHECKING:
    from optuna_nis.controller.policy import Policy
    from optuna_nis.strategy.reward import Reward

_GROUPS_PER_MOMENT = 4


def save_score(trial: Trial, reward: Reward, fidelity: str) -> None:
    """Write into a running trial what :class:`TrialRecorder` writes into finished ones.

    Args:
        trial: The trial.
        reward: What its choice is worth.
        fidelity: How it was scored, ``"supernet"``, ``"validated"``, ``"dropped"`` or
            ``"trained"``.
    """
    for key, value in _attributes(reward, fidelity).items():
        trial.set_user_attr(key, value)


def _attributes(reward: Reward, fidelity: str) -> dict[str, Any]:
    return {
        QUALITY_ATTR: reward.quality,
        PENALTY_ATTR: reward.penalty,
        NUM_PARAMETERS_ATTR: reward.num_parameters,
        **({} if reward.nbytes is None else {NBYTES_ATTR: reward.nbytes}),
        FIDELITY_ATTR: fidelity,
    }


class TrialRecorder:
    """Writes groups of choices that were scored on the same examples.

    What was scored with shared weights is a pruned trial, an evaluation cut short, with a value:
    ``study.best_trial`` and what Optuna plots are about choices that were trained.

    Args:
        study: Where the trials go. It remembers the space.
        space: The space of the choices.
        search_id: The search that scores them.

    Raises:
        ValueError: If the study is of another space.
    """

    def __init__(self, study: Study, space: SearchSpace, search_id: str) -> None:
        save_space(study, space)
        self._study = study
        self._search_id = search_id
        self._groups = 0
        self._last: int | None = None
        self._lag = 0
        self._last_moment = 0
        self._distributions: dict[str, BaseDistribution] = dict(space.distributions())

    def record(
        self,
        params: Sequence[Mapping[str, Any]],
        rewards: Sequence[Reward],
        *,
        fidelity: str,
        step: int,
        log_probs: Sequence[float] | None = None,
        reference: float | None = None,
        origins: Sequence[str | None] | None = None,
    ) -> bool:
        """Add a group of choices, all or none.

        Args:
            params: The parameters of each choice.
            rewards: What each was worth.
            fidelity: How they were scored, ``"supernet"``, ``"validated"``, ``"dropped"`` or
                ``"trained"``.
            step: Training step of the supernet at which they were scored.
            log_probs: Log-probability of each under the policy that drew it; None if none did.
            reference: How much the quality in the rewards is above what the examples gave, so
                that groups on different examples compare: what full tables score on all
                validation data, less what they score on these examples. None if nothing is added.
            origins: What proposed each choice, such as ``"policy"``, ``"values"`` or
                ``"formula"``; None where that is not known.

        Returns:
            Whether others may have added trials since the last group. To know it costs nothing,
            the numbers of the trials tell.
        """
        state = TrialState.PRUNED if fidelity in CUT_SHORT else TrialState.COMPLETE
        group: dict[str, Any] = {GROUP_KEY: uuid.uuid4().hex[:12], GROUP_SIZE_KEY: len(params)}
        of_all: dict[str, Any] = {STEP_ATTR: step, SEARCH_ATTR: self._search_id}
        if reference is not None:
            of_all[REFERENCE_ATTR] = float(reference)
        trials = []
        for index, (choice, reward) in enumerate(zip(params, rewards)):
            drawn = {} if log_probs is None else {LOG_PROB_KEY: float(log_probs[index])}
            origin = None if origins is None else origins[index]
            from_there = {} if origin is None else {ORIGIN_ATTR: origin}
            trials.append(
                create_trial(
                    state=state,
                    params=dict(choice),
                    distributions=self._distributions,
                    value=reward.value,
                    user_attrs=_attributes(reward, fidelity) | of_all | from_there,
                    system_attrs=group | drawn,
                )
            )
        # One moment for the whole group, so that trials sort by group whatever their clocks say.
        now = datetime.now()
        for trial in trials:
            trial.datetime_start = trial.datetime_complete = now
        numbers = add_finished_trials(self._study, trials)
        before = numbers[0] - 1 if self._last is None else self._last
        self._lag = numbers[-1] - before
        others = self._last is None or self._lag != len(numbers)
        self._last = numbers[-1]
        self._groups += 1
        return others

    def note(self, policy: Policy) -> None:
        """Note in the study how the policy is doing, now and then.

        Args:
            policy: The policy that has learned the group recorded last.
        """
        num_trials = 0 if self._last is None else self._last + 1
        if self._groups % _GROUPS_PER_MOMENT or not is_due(num_trials, self._last_moment):
            return
        self._last_moment = num_trials
        note_policy(self._study, policy, num_trials, self._lag)


def add_finished_trials(study: Study, trials: Sequence[FrozenTrial]) -> list[int]:
    """Add finished trials to a study, as :meth:`optuna.Study.add_trials` does, all or none.

    On a relational database they are written in one transaction; other storages take them one by
    one. PostgreSQL is not waited for until it has them on the disk: if the server crashes, and not
    only the search, it may lose what came in the last second.

    Args:
        study: A study of one objective.
        trials: Finished trials made by :func:`optuna.create_trial`, without intermediate values.
            Their distributions must be those that the study's trials have: this is not checked.

    Returns:
        The numbers that the trials were given.

    Example:
        >>> import optuna
        >>> study = optuna.create_study(storage="sqlite://")
        >>> trials = [optuna.create_trial(value=value) for value in (0.5, 1.0)]
        >>> add_finished_trials(study, trials)
        [0, 1]
        >>> [trial.value for trial in study.trials]
        [0.5, 1.0]
    """
    for trial in trials:
        trial._validate()
    if not trials:
        return []
    storage = study._storage
    if (relational := _relational(storage)) is not None:
        return _insert(relational, study._study_id, trials)
    ids = [storage.create_new_trial(study._study_id, template_trial=trial) for trial in trials]
    return [storage.get_trial_number_from_id(trial_id) for trial_id in ids]


def _relational(storage: BaseStorage) -> RDBStorage | None:
    backend = getattr(storage, "_backend", storage)
    return backend if isinstance(backend, RDBStorage) else None


def _insert(storage: RDBStorage, study_id: int, trials: Sequence[FrozenTrial]) -> list[int]:
    from optuna.storages._rdb import models
    from optuna.storages._rdb.storage import _create_scoped_session
    from sqlalchemy import insert, text

    dialect = storage.engine.dialect
    with _create_scoped_session(storage.scoped_session) as session:
        if dialect.name == "postgresql":
            session.execute(text("SET LOCAL synchronous_commit TO OFF"))
        # As in Optuna: the lock makes numbers unique on servers, the first insert on SQLite.
        models.StudyModel.find_or_raise_by_id(study_id, session, for_update=True)
        rows = [
            models.TrialModel(
                study_id=study_id,
                state=trial.state,
                datetime_start=trial.datetime_start,
                datetime_complete=trial.datetime_complete,
            )
            for trial in trials
        ]
        session.add_all(rows)
        session.flush()
        first = min(rows, key=lambda row: row.trial_id).count_past_trials(session)
        for number, row in enumerate(rows, start=first):
            row.number = number
        params: list[dict[str, Any]] = []
        values: list[dict[str, Any]] = []
        attributes: dict[Any, list[dict[str, Any]]] = {
            models.TrialUserAttributeModel: [],
            models.TrialSystemAttributeModel: [],
        }
        for row, trial in zip(rows, trials):
            key = {"trial_id": row.trial_id}
            params += [
                key
                | {
                    "param_name": name,
                    "param_value": trial.distributions[name].to_internal_repr(value),
                    "distribution_json": distribution_to_json(trial.distributions[name]),
                }
                for name, value in trial.params.items()
            ]
            if trial.value is not None:
                value, kind = models.TrialValueModel.value_to_stored_repr(trial.value)
                values.append(key | {"objective": 0, "value": value, "value_type": kind})
            for model, attrs in (
                (models.TrialUserAttributeModel, trial.user_attrs),
                (models.TrialSystemAttributeModel, trial.system_attrs),
            ):
                attributes[model] += [
                    key | {"key": name, "value_json": json.dumps(attr)}
                    for name, attr in attrs.items()
                ]
        for model, records in (
            (models.TrialParamModel, params),
            (models.TrialValueModel, values),
            *attributes.items(),
        ):
            if records:
                table = model.__table__
                statement: Any = insert(table)
                if dialect.insert_executemany_returning:
                    # Not for what it returns, but since all rows are then sent in one statement.
                    statement = statement.returning(*table.primary_key)
                session.execute(statement, records)
    return list(range(first, first + len(trials)))
