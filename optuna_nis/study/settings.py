"""What a study was searched with: its space and its metric."""

from __future__ import annotations

from optuna import Study

from optuna_nis.space.space import SearchSpace
from optuna_nis.study.attributes import naming, read_text, save_text
from optuna_nis.study.keys import METRIC_ATTR, SPACE_ATTR

_LONGEST_NAME = 200


def save_space(study: Study, space: SearchSpace) -> None:
    """Write the search space into a study.

    Args:
        study: The study that is searched.
        space: Its space.

    Raises:
        ValueError: If the study was searched with another space.

    Example:
        >>> save_space(study, space_of(study))
    """
    before = read_text(study, SPACE_ATTR)
    if before and (old := SearchSpace.from_json(before)) != space:
        raise ValueError(
            f"`study` {study.study_name!r} was searched with another space, {old!r}, now asked: "
            f"{space!r}. Use another study name."
        )
    save_text(study, SPACE_ATTR, space.to_json())


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
            f"{SPACE_ATTR!r}); only a study written by an embedding search has one."
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
