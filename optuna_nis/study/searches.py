"""The one-shot searches of a study: several may be at work on it at once, on several machines.

Each has a supernet of its own, an id under which it stands in the study and in the trials that it
scored, and draws of its own. What they learn they share through the trials.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
import math
from typing import Any
import uuid
import zlib

import numpy as np
from optuna import Study
from optuna.trial import FrozenTrial

from optuna_nis.study.keys import (
    FIDELITY_ATTR,
    GROUP_KEY,
    GROUP_SIZE_KEY,
    ROWS,
    SEARCH_ATTR,
    SEARCH_KEY,
)
from optuna_nis.study.trials import finished_trials

_LONGEST_ID = 100
# Settings that older searches do not have.
_LATER = (ROWS, "model_digest", "batch_size")


@dataclass(frozen=True)
class Search:
    """A search of a study.

    Attributes:
        id: What it is called in the study.
        seed: What its random choices come from: the seed asked for, unless another search was in
            the study before, which may have been given the same.
        settings: What it was started with.
        seconds: The time it took; None until it has come to its end.
    """

    id: str
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None


def check_search_id(search_id: str | None) -> None:
    """Refuse what cannot be the id of a search.

    Raises:
        ValueError: If it is neither None nor a text of 1 to 100 characters.
    """
    if search_id is not None and not (
        isinstance(search_id, str) and 1 <= len(search_id) <= _LONGEST_ID
    ):
        raise ValueError(
            f"`search_id` must be a text of 1 to {_LONGEST_ID} characters, got {search_id!r}."
        )


def new_search_id() -> str:
    """An id that no other search has."""
    return uuid.uuid4().hex[:12]


def join(
    study: Study, search_id: str, *, seed: int, settings: Mapping[str, Any] | None = None
) -> Search:
    """Enter a search into a study, or find it there if it is resumed.

    Args:
        study: The study.
        search_id: The id of the search.
        seed: Seed of the search. Of searches with the same one, no two get the same.
        settings: What it is started with, as values for JSON.

    Raises:
        ValueError: If the study holds something else in place of a search.

    Example:
        >>> import optuna
        >>> study = optuna.create_study(direction="maximize")
        >>> join(study, "one", seed=0).seed
        0
        >>> join(study, "two", seed=0).seed == join(study, "three", seed=0).seed
        False
    """
    known = searches_of(study)
    if search_id in known:
        return known[search_id]
    search = Search(search_id, seed, dict(settings or {}))
    _save(study, search)
    # Looked up after the entry: of two that enter at once, one at least sees the other.
    if len(searches_of(study)) > 1:
        mixed = np.random.SeedSequence([seed, zlib.crc32(search_id.encode())])
        search = replace(search, seed=int(mixed.generate_state(1)[0]))
        _save(study, search)
    return search


def finish(study: Study, search: Search, seconds: float) -> None:
    """Note that a search has come to its end.

    Args:
        study: The study.
        search: The search.
        seconds: The time it took.
    """
    _save(study, replace(search, seconds=seconds))


def searches_of(study: Study) -> dict[str, Search]:
    """The searches of a study by id, finished or not.

    Raises:
        ValueError: If the study holds something else in their place.
    """
    return {
        key.removeprefix(SEARCH_KEY): _read(study, key, value)
        for key, value in study.user_attrs.items()
        if key.startswith(SEARCH_KEY)
    }


def other_settings(search: Search, settings: Mapping[str, Any]) -> list[str]:
    """Names of the settings that are others than those that a search was started with.

    Searches of before do not say which model and which rows they saw, nor how many at a time;
    they are taken to be the same.
    """
    now = {"processes": 1, **settings}
    before = {"processes": 1, **{name: now.get(name) for name in _LATER}, **search.settings}
    return [name for name in {**now, **before} if now.get(name) != before.get(name)]


def num_scored(study: Study, search_id: str, fidelity: str) -> int:
    """How many trials a search has scored in one way.

    Args:
        study: A study that maximises a reward.
        search_id: The id of the search.
        fidelity: ``"supernet"``, ``"validated"``, ``"dropped"`` or ``"trained"``.
    """
    return len(_scored(study, search_id, fidelity))


def num_groups(study: Study, search_id: str, fidelity: str) -> int:
    """How many groups of trials a search has scored in one way, those cut short left out.

    Args:
        study: A study that maximises a reward.
        search_id: The id of the search.
        fidelity: As in :func:`num_scored`.
    """
    groups = Counter(
        (trial.system_attrs.get(GROUP_KEY), trial.system_attrs.get(GROUP_SIZE_KEY))
        for trial in _scored(study, search_id, fidelity)
    )
    return sum(count == size for (_, size), count in groups.items())


def _scored(study: Study, search_id: str, fidelity: str) -> list[FrozenTrial]:
    return [
        trial
        for trial in finished_trials(study)
        if trial.user_attrs.get(SEARCH_ATTR) == search_id
        and trial.user_attrs.get(FIDELITY_ATTR) == fidelity
    ]


def _save(study: Study, search: Search) -> None:
    value = asdict(search)
    del value["id"]
    study.set_user_attr(SEARCH_KEY + search.id, value)


def _read(study: Study, key: str, value: Any) -> Search:
    found = value if isinstance(value, dict) else {}
    seed, settings, seconds = (found.get(name) for name in ("seed", "settings", "seconds"))
    if not (
        isinstance(seed, int)
        and _is_number(seed)
        and isinstance(settings, dict)
        and (seconds is None or _is_number(seconds))
    ):
        raise ValueError(
            f"The user attribute {key!r} of {study.study_name!r} cannot be read: it must hold the "
            f"seed, settings and seconds of a search, got {str(value)[:80]!r}."
        )
    return Search(key.removeprefix(SEARCH_KEY), seed, settings, seconds)


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and 0 <= value < 2**63
    )
