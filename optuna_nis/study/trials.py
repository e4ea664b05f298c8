"""The trials of a study: how each was scored, what it was worth, and which is the best."""

from __future__ import annotations

from collections.abc import Sequence
import math

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from optuna_nis.space.space import SearchSpace
from optuna_nis.study.attributes import is_number
from optuna_nis.study.keys import (
    CONSTRAINT_PREFIX,
    CONSTRAINTS_KEY,
    CUT_SHORT,
    FIDELITIES,
    FIDELITY_ATTR,
    FINALIST_ATTR,
    NBYTES_ATTR,
    NUM_PARAMETERS_ATTR,
    QUALITY_ATTR,
    SHARED_WEIGHTS,
    SPACE_ATTR,
    TRAINED,
)
from optuna_nis.study.settings import check_direction, sign_of, space_of


def finished_trials(study: Study) -> list[FrozenTrial]:
    """Trials that were scored with a finite value, in their order.

    Those scored with shared weights, or dropped after a short training, are pruned trials with a
    value, so that ``study.best_trial`` is one that was trained to the end. In studies of
    release 0.1 they are complete.

    Args:
        study: A study that maximises a reward.

    Raises:
        ValueError: If the study has another direction or several objectives.

    Example:
        >>> len(finished_trials(study))
        20
    """
    check_direction(study)
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [trial for trial in trials if is_scored(trial)]


def is_scored(trial: FrozenTrial) -> bool:
    """Whether a trial has a finite value, of its own or from a search that cut it short.

    The value that Optuna gives to a trial whose training was pruned is none: the training would
    have gone on.

    Example:
        >>> all(map(is_scored, study.trials))
        True
    """
    whole = trial.state == TrialState.COMPLETE or (
        trial.state == TrialState.PRUNED and fidelity_of(trial) in CUT_SHORT
    )
    return whole and trial.value is not None and math.isfinite(trial.value)


def value_of(trial: FrozenTrial) -> float:
    """The reward of a finished trial.

    Raises:
        ValueError: If the trial has none.

    Example:
        >>> value_of(best_trial(study)) == study.best_value
        True
    """
    if trial.value is None:
        raise ValueError(f"`trial` {trial.number} has no value.")
    return trial.value


def number_of(trial: FrozenTrial, key: str, default: float) -> float:
    """A number among the user attributes of a trial.

    Args:
        trial: A trial.
        key: Name of the attribute.
        default: What stands for a missing one.

    Raises:
        ValueError: If the attribute is no number, or not finite.

    Example:
        >>> number_of(study.trials[0], "penalty", default=0.0)
        0.0
    """
    value = trial.user_attrs.get(key)
    if value is None:
        return default
    if not is_number(value):
        raise ValueError(
            f"The user attribute {key!r} of trial {trial.number} must be a number, "
            f"got {str(value)[:80]!r}."
        )
    return float(value)


def nbytes_of(trial: FrozenTrial, space: SearchSpace) -> int | None:
    """The bytes of a trial's choice as they are stored.

    Trials of earlier releases, whose tables are float32, tell the number of their parameters.

    Args:
        trial: A trial.
        space: The search space of its study.

    Returns:
        The bytes, :obj:`None` if neither the attributes of the trial nor its parameters tell.

    Raises:
        ValueError: If an attribute is no number.

    Example:
        >>> from optuna_nis.study.settings import space_of
        >>> nbytes_of(best_trial(study), space_of(study)) <= space_of(study).budget_nbytes
        True
    """
    if fidelity_of(trial) is None:
        # Not of a search: attributes of these names may be of something else.
        return _computed_nbytes(trial, space)
    nbytes = number_of(trial, NBYTES_ATTR, -1)
    if nbytes < 0 and space.precisions == (32,):
        nbytes = 4 * number_of(trial, NUM_PARAMETERS_ATTR, -1)
    return int(nbytes) if nbytes >= 0 else _computed_nbytes(trial, space)


def _computed_nbytes(trial: FrozenTrial, space: SearchSpace) -> int | None:
    try:
        return space.allocation(trial.params).nbytes()
    except ValueError:
        return None


def quality_of(trial: FrozenTrial) -> float:
    """The quality of a finished trial, its reward without the penalty.

    Raises:
        ValueError: If the trial has neither, or its quality is no number.
    """
    return number_of(trial, QUALITY_ATTR, value_of(trial))


def metric_value_of(study: Study, trial: FrozenTrial) -> float:
    """What the metric of a study was for a finished trial, as it was measured.

    It is the quality, which a search maximises, with the sign that the metric has.

    Args:
        study: A study.
        trial: A finished trial of it.

    Raises:
        ValueError: As :func:`quality_of`.

    Example:
        >>> metric_value_of(study, best_trial(study)) == quality_of(best_trial(study))
        True
    """
    return sign_of(study) * quality_of(trial)


def fidelity_of(trial: FrozenTrial) -> str | None:
    """How a trial was scored, :obj:`None` if it does not say.

    Example:
        >>> fidelity_of(study.trials[0]) is None
        True
    """
    fidelity = trial.user_attrs.get(FIDELITY_ATTR)
    return fidelity if fidelity in FIDELITIES else None


def is_trained(trial: FrozenTrial) -> bool:
    """Whether a trial was trained for real, to the end of its search's shortlist.

    Example:
        >>> is_trained(study.trials[0])
        False
    """
    return fidelity_of(trial) == TRAINED


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial breaks no constraint, such as the budget.

    Example:
        >>> is_feasible(best_trial(study))
        True
    """
    attrs = trial.system_attrs
    values = [attrs[name] for name in attrs if name.startswith(CONSTRAINT_PREFIX)]
    others = attrs.get(CONSTRAINTS_KEY)
    # Some studies say by this alone which trials were scored with shared weights.
    if isinstance(others, Sequence) and fidelity_of(trial) not in SHARED_WEIGHTS:
        values += others
    return not any(is_number(value) and value > 0 for value in values)


def best_trial(study: Study) -> FrozenTrial:
    """The trial that a search recommends.

    Trials that were trained to the end, trained for a while, scored on all validation data with
    shared weights, and scored on a batch of it cannot be compared: the best of the first kind
    that there is counts. Of those that were trained to the end of a search it is the one that a
    retraining has found best (:func:`~optuna_nis.study.results.save_finalist`), as long as no
    later search has found one that looks better than all of these.
    Trials that break a constraint, whose sizes are beyond the budget of the study's space, or
    whose parameters are none of it, count only if there are no others.

    Args:
        study: A study of an embedding search.

    Raises:
        ValueError: If no trial has finished with a finite value, or the study does not maximise
            one reward.

    Example:
        >>> best_trial(study).number == study.best_trial.number
        True
    """
    trials = finished_trials(study)
    trials = [trial for trial in trials if is_feasible(trial)] or trials
    for fidelity in reversed(FIDELITIES):
        if alike := [t for t in trials if fidelity_of(t) == fidelity]:
            best = _within_budget(study, alike)
            return _finalist(study, alike, best) if fidelity == TRAINED else best
    if not trials:
        raise ValueError(
            f"`study` {study.study_name!r} has no finished trial with a finite value; "
            "search first."
        )
    return _within_budget(study, trials)


def _within_budget(study: Study, trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """The best of some trials that is of the space and within its budget.

    Those that a search has scored are. Added trials, and those of other samplers, need not be: if
    none is, the best that is of the space, or else the best of all.
    """
    best = max(trials, key=value_of)
    if SPACE_ATTR not in study.user_attrs:
        return best
    space = space_of(study)
    of_space = []
    for trial in sorted(trials, key=value_of, reverse=True):
        nbytes = nbytes_of(trial, space)
        if nbytes is not None and nbytes <= space.budget_nbytes:
            return trial
        if nbytes is not None:
            of_space.append(trial)
    return of_space[0] if of_space else best


def _finalist(study: Study, trained: Sequence[FrozenTrial], best: FrozenTrial) -> FrozenTrial:
    """What a retraining has found best, if what looked best was among what it has compared."""
    number, compared = finalists_of(study)
    known = [trial for trial in trained if trial.number == number]
    return known[0] if known and best.number in compared else best


def finalists_of(study: Study) -> tuple[int | None, list[int]]:
    """The trial that a retraining has found best, and those that it was compared with.

    Returns:
        Their numbers, None and nothing if nothing was retrained.

    Example:
        >>> finalists_of(study)
        (None, [])
    """
    match study.user_attrs.get(FINALIST_ATTR):
        case {"best": int(best), "of": list(compared)}:
            return best, compared
    return None, []
