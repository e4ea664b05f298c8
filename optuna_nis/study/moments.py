"""How a policy was doing at moments of a study, kept in the study for those who watch it.

A replay tells all of this too, but costs time; moments are few, whatever the number of trials.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
import math
from typing import TYPE_CHECKING, Any

from optuna import Study

from optuna_nis.study.attributes import is_number
from optuna_nis.study.keys import MOMENTS_KEY

if TYPE_CHECKING:
    from optuna_nis.controller.policy import Policy

_VERSION = 1
_MOST = 400


@dataclass(frozen=True)
class Moment:
    """A policy at a moment of a study.

    Attributes:
        num_trials: Finished trials that it was a function of.
        entropy: Its entropy in nats.
        advantage_mean: Mean advantage of the trials learned last, in standard deviations of the
            reward: how much better they were than the critic expected.
        advantage_std: Standard deviation of these advantages: how much the critic cannot explain.
        replay_lag: Finished trials that the worker had not seen before it last looked; about the
            number of workers, in a one-shot search times the size of a group.
    """

    num_trials: int
    entropy: float
    advantage_mean: float
    advantage_std: float
    replay_lag: int


def is_due(num_trials: int, last: int) -> bool:
    """Whether enough trials have finished since the last moment: 8, or a tenth of all."""
    return num_trials >= max(last + 8, 1.1 * last)


def save_moment(study: Study, moment: Moment, settings: Mapping[str, float] | None = None) -> None:
    """Add a moment to a study, in place of one after the same number of trials.

    Of several workers that do so at once, one may win. Moments that cannot be read are replaced.

    Args:
        study: The study.
        moment: The moment.
        settings: How the policy learns, where that is not the default.
    """
    try:
        known = moments_of(study)
    except ValueError:
        known = []
    by_trials = {old.num_trials: old for old in known} | {moment.num_trials: moment}
    kept = [astuple(by_trials[number]) for number in sorted(by_trials)][-_MOST:]
    _save_record(study, kept, settings or {})


def note_policy(study: Study, policy: Policy, num_trials: int, lag: int) -> Moment:
    """Note in a study how its policy is doing, and how it learns.

    Args:
        study: The study.
        policy: The policy.
        num_trials: As in :class:`Moment`.
        lag: Its ``replay_lag``.
    """
    advantages = mean_and_std(policy.advantages.tolist())
    moment = Moment(num_trials, policy.entropy(), *advantages, lag)
    save_moment(study, moment, policy.settings.changed())
    return moment


def moments_of(study: Study) -> list[Moment]:
    """The moments of a study, oldest first; none if no policy has been at work.

    Raises:
        ValueError: If the study holds something else in their place.
    """
    found = _record_of(study)
    if found is None:
        return []
    rows = found.get("moments")
    if not isinstance(rows, list) or len(rows) > _MOST or not all(map(_is_moment, rows)):
        raise _malformed(study)
    return [Moment(*row) for row in rows]


def noted_settings(study: Study) -> dict[str, float]:
    """How the policy of a study learned when a moment was noted last, where not by default.

    Raises:
        ValueError: If the study holds something else in their place.
    """
    settings = (_record_of(study) or {}).get("settings", {})
    if not isinstance(settings, dict) or not all(map(is_number, settings.values())):
        raise _malformed(study)
    return settings


def copy_settings(study: Study, other: Study) -> None:
    """Note in another study, which has no moments, how the policy of this one learns."""
    if settings := noted_settings(study):
        _save_record(other, [], settings)


def _save_record(
    study: Study, moments: Sequence[tuple[Any, ...]], settings: Mapping[str, float]
) -> None:
    record: dict[str, Any] = {"version": _VERSION, "moments": list(moments)}
    if settings:
        record["settings"] = dict(settings)
    study._storage.set_study_system_attr(study._study_id, MOMENTS_KEY, record)


def _record_of(study: Study) -> dict[str, Any] | None:
    found = study._storage.get_study_system_attrs(study._study_id).get(MOMENTS_KEY)
    if found is None:
        return None
    version = found.get("version") if isinstance(found, dict) else None
    if version != _VERSION:
        raise ValueError(
            f"The study system attribute {MOMENTS_KEY!r} of {study.study_name!r} must be of "
            f"version {_VERSION}, got {str(version)[:80]!r}."
        )
    assert isinstance(found, dict)
    return found


def _malformed(study: Study) -> ValueError:
    return ValueError(
        f"The study system attribute {MOMENTS_KEY!r} of {study.study_name!r} is malformed."
    )


def _is_moment(row: Any) -> bool:
    return isinstance(row, (list, tuple)) and len(row) == len(fields(Moment)) and _are_numbers(row)


def _are_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, (int, float)) and abs(value) < 1e15 for value in values)


def mean_and_std(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation, 0 of nothing."""
    known = list(values)
    mean = math.fsum(known) / max(len(known), 1)
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in known) / max(len(known), 1))
