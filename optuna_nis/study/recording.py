"""Writing many finished trials at once.

``Study.add_trial`` asks a relational database several questions per parameter, about 25 ms for a
trial with 26 parameters. A one-shot search scores such a trial in less, so trials that are
finished before they are written go into the same tables in a few statements, in one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
from typing import Any

from optuna import Study
from optuna.distributions import distribution_to_json
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial


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
            assert trial.value is not None
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
