"""Finished trials as points that a figure can draw."""

from __future__ import annotations

from typing import NamedTuple

from optuna import Study

from optuna_nis import results
from optuna_nis.space import SearchSpace


class Point(NamedTuple):
    """What a finished trial found, and at what cost."""

    number: int
    reward: float
    quality: float
    penalty: float
    num_parameters: int
    trained: bool
    step: int | None


def points_of(study: Study, space: SearchSpace) -> list[Point]:
    """All finished trials whose cost is known.

    A trial that another program added may lack some attributes: its reward then stands for its
    quality, and its cost is computed from its parameters if they are of the space.

    Raises:
        ValueError: If there is no such trial.
    """
    points = []
    for trial in results.finished_trials(study):
        attrs = trial.user_attrs
        reward = results.value_of(trial)
        cost = attrs.get(results.NUM_PARAMETERS_ATTR)
        if cost is None:
            try:
                cost = space.allocation(trial.params).num_parameters
            except ValueError:
                continue
        points.append(
            Point(
                trial.number,
                reward,
                float(attrs.get(results.QUALITY_ATTR, reward)),
                float(attrs.get(results.PENALTY_ATTR, 0.0)),
                int(cost),
                results.is_trained(trial),
                attrs.get(results.STEP_ATTR),
            )
        )
    if not points:
        raise ValueError(
            f"`study` {study.study_name!r} has no finished trial of its search space; "
            "search first."
        )
    return points
