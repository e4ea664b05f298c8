"""What a study was searched with: its space, its metric, its plan and its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
import json
from typing import Any

from optuna import Study
from optuna.study import StudyDirection

from optuna_nis.space.space import SearchSpace
from optuna_nis.study.attributes import naming, read_text, save_text
from optuna_nis.study.keys import (
    METRIC_ATTR,
    MONITOR_MODE_ATTR,
    OUTPUTS_ATTR,
    PLAN_ATTR,
    PLAN_OF_BEFORE,
    SPACE_ATTR,
)

_LONGEST_NAME = 200
_LONGEST_VALUE = 120


def check_direction(study: Study) -> None:
    """Check that a study maximises a reward.

    Raises:
        ValueError: If it has another direction or several objectives.
    """
    if study.directions != [StudyDirection.MAXIMIZE]:
        directions = [direction.name.lower() for direction in study.directions]
        raise ValueError(
            f"`study` {study.study_name!r} must maximize one reward, got directions {directions}."
        )


def save_space(study: Study, space: SearchSpace) -> None:
    """Write the search space into a study.

    Args:
        study: The study that is searched.
        space: Its space.

    Raises:
        ValueError: If the study was searched with another space, or does not maximise.

    Example:
        >>> save_space(study, space_of(study))
    """
    check_direction(study)
    before = read_text(study, SPACE_ATTR)
    if before and (old := SearchSpace.from_json(before)) != space:
        raise ValueError(
            f"`study` {study.study_name!r} was searched with another space: "
            f"{_difference(old, space)}. Use another study name."
        )
    # A space that does not know how frequent ids are is equal to one that does.
    if not before or any(spec.mean_counts is not None for spec in space.specs):
        save_text(study, SPACE_ATTR, space.to_json())


def _difference(old: SearchSpace, new: SearchSpace) -> str:
    """The first thing that spaces differ by."""
    features = [[spec.name for spec in space.specs] for space in (old, new)]
    if features[0] != features[1]:
        return f"features {features[0]}, now {features[1]}"
    for before, after in zip(old.specs, new.specs):
        was, now = asdict(before), asdict(after)
        for field in fields(before):
            name = field.name
            if field.compare and was[name] != now[name]:
                own = _short(name, was), _short(name, now)
                return f"`{name}` of {before.name!r} was {own[0]}, now {own[1]}"
    if old.mode != new.mode:
        return f"mode {old.mode!r}, now {new.mode!r}"
    return (
        f"a budget of {old.budget_nbytes:,} of {old.full_nbytes:,} bytes, now "
        f"{new.budget_nbytes:,}"
    )


def space_of(study: Study) -> SearchSpace:
    """The search space that a study was searched with.

    Args:
        study: A study of an embedding search.

    Raises:
        ValueError: If the study holds no space.

    Example:
        >>> [spec.name for spec in space_of(study).specs]
        ['user', 'city']
    """
    text = read_text(study, SPACE_ATTR)
    if not text:
        raise ValueError(
            f"`study` {study.study_name!r} holds no search space (user attribute "
            f"{SPACE_ATTR!r}). A search writes one; for a study of your own, "
            "`optuna_nis.study.results.save_space(study, space)` does."
        )
    with naming(study, SPACE_ATTR):
        return SearchSpace.from_json(text)


def metric_of(study: Study) -> str:
    """Name of the metric that a study improves, ``"quality"`` if it does not say.

    Raises:
        ValueError: If the study holds something else in its place.

    Example:
        >>> metric_of(study)
        'quality'
    """
    name = study.user_attrs.get(METRIC_ATTR, "quality")
    with naming(study, METRIC_ATTR):
        if not isinstance(name, str) or len(name) > _LONGEST_NAME:
            raise ValueError(f"must be text of at most {_LONGEST_NAME} characters")
        return name


def check_metric(study: Study, label: str, mode: str | None = None) -> None:
    """Check that a study improves a metric, if it improves any.

    Args:
        study: The study.
        label: Name of the metric.
        mode: ``"min"`` or ``"max"``; None if it is not known yet.

    Raises:
        ValueError: If it is searched by another metric, or the other way round.

    Example:
        >>> check_metric(study, metric_of(study))
    """
    attrs = study.user_attrs
    known = metric_of(study) if METRIC_ATTR in attrs else label
    before = attrs.get(MONITOR_MODE_ATTR, mode)
    if known != label or (mode is not None and before != mode):
        if known != label:
            was, now = repr(known), repr(label)
        else:
            was, now = (f"{label!r}, the best being its {each}" for each in (before, mode))
        raise ValueError(
            f"`study` {study.study_name!r} is searched by {was}, not by {now}: its trials could "
            "not be compared. Give another study name."
        )


def mode_of(study: Study) -> str:
    """``"min"`` if the metric of a study is the smaller the better, else ``"max"``.

    Example:
        >>> mode_of(study)
        'max'
    """
    return "min" if study.user_attrs.get(MONITOR_MODE_ATTR) == "min" else "max"


def sign_of(study: Study) -> float:
    """1, or -1 if the metric of a study is the smaller the better and was negated for it.

    Example:
        >>> sign_of(study)
        1.0
    """
    return -1.0 if mode_of(study) == "min" else 1.0


def outputs_of(study: Study) -> list[str]:
    """The features whose tables are of output layers alone, such as a softmax over items.

    Raises:
        ValueError: If the study holds something else in their place.

    Example:
        >>> outputs_of(study)
        []
    """
    names = study.user_attrs.get(OUTPUTS_ATTR, [])
    with naming(study, OUTPUTS_ATTR):
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"must be a list of names, got {str(names)[:80]!r}")
        return names


def save_plan(study: Study, plan: Mapping[str, Any]) -> None:
    """Write into a study the numbers that shape its search.

    Args:
        study: The study that is searched.
        plan: The numbers by name, as values for JSON.

    Raises:
        ValueError: If the study was searched under another plan, or a value is not for JSON.

    Example:
        >>> save_plan(study, {"warmup": 0.1, "num_updates": 50})
        >>> save_plan(study, {"warmup": 0.0, "num_updates": 50})
        Traceback (most recent call last):
        ...
        ValueError: `study` 'clicks' was searched with another plan, with warmup 0.1 (now 0.0). ...
    """
    before = plan_of(study) or {}
    gone = {name: before[name] for name in PLAN_OF_BEFORE if name in before}
    save_once(study, PLAN_ATTR, {**plan, **gone}, "another plan")


def plan_of(study: Study) -> dict[str, Any] | None:
    """The numbers that shaped the search of a study, :obj:`None` if it does not say.

    Raises:
        ValueError: If the study holds something else in their place.

    Example:
        >>> plan_of(study) is None
        True
    """
    return _settings(study, PLAN_ATTR)


def save_once(study: Study, key: str, values: Mapping[str, Any], other: str) -> None:
    """Write settings into a study, which may have been searched with the same ones only.

    Args:
        study: The study that is searched.
        key: Name of the user attribute.
        values: The settings by name, as values for JSON.
        other: What the study was searched with where others stand there.

    Raises:
        ValueError: If others stand there, or a value is not for JSON.
    """
    try:
        now = json.loads(json.dumps(dict(values), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{key!r} must hold values for JSON: {error}.") from error
    before = _settings(study, key)
    if before is None:
        study.set_user_attr(key, now)
    elif changed := differences(before, now):
        raise ValueError(
            f"`study` {study.study_name!r} was searched with {other}, with {changed}. Use another "
            "study name."
        )


def _settings(study: Study, key: str) -> dict[str, Any] | None:
    found = study.user_attrs.get(key)
    with naming(study, key):
        if not isinstance(found, dict | None):
            raise ValueError(f"must be a dictionary, got {str(found)[:80]!r}")
        return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What is not the same, such as ``epochs 4 (now 8)``; of models there are digests alone."""
    return ", ".join(
        "another model"
        if name == "model_digest"
        else f"{name} {_short(name, before)} (now {_short(name, now)})"
        for name in dict.fromkeys([*before, *now])
        if before.get(name) != now.get(name)
    )


def _short(name: str, values: Mapping[str, Any]) -> str:
    text = repr(values[name]) if name in values else "unset"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
