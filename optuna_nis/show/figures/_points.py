"""Finished trials as points that a figure can draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from optuna import Study

from optuna_nis.show.figures import _style
from optuna_nis.show.words import SCORED
from optuna_nis.space.space import SearchSpace
from optuna_nis.study import results


class Kind(NamedTuple):
    """How trials of one way of scoring are named and drawn."""

    label: str
    color: str
    symbol: str
    size: int
    opacity: float

    def marker(self, scale: float = 1.0) -> dict[str, Any]:
        """The marker of a trace of such trials."""
        return {
            "color": self.color,
            "symbol": self.symbol,
            "size": round(self.size * scale),
            "opacity": self.opacity,
        }


# From the cheapest way of scoring to the dearest; None is a trial that does not say.
KINDS: dict[str | None, Kind] = {
    results.SUPERNET: Kind(SCORED[results.SUPERNET], _style.SKY, "circle", 5, 0.45),
    None: Kind("no fidelity given", _style.SKY, "circle", 5, 0.45),
    results.VALIDATED: Kind(SCORED[results.VALIDATED], _style.ORANGE, "triangle-up", 8, 0.8),
    results.DROPPED: Kind(SCORED[results.DROPPED], _style.GREEN, "diamond-open", 8, 0.8),
    results.TRAINED: Kind(SCORED[results.TRAINED], _style.GREEN, "diamond", 10, 1.0),
}


class Point(NamedTuple):
    """What a finished trial found, and at what cost.

    ``reference`` is the part of the quality that makes groups on different examples compare.
    """

    number: int
    reward: float
    quality: float
    penalty: float
    nbytes: int
    fidelity: str | None
    step: int | None
    reference: float


def points_of(study: Study, space: SearchSpace) -> list[Point]:
    """All finished trials whose cost is known.

    A trial that another program added may lack some attributes: its reward then stands for its
    quality, and its bytes are computed from its parameters if they are of the space.

    Raises:
        ValueError: If there is no such trial.
    """
    points = []
    for trial in results.finished_trials(study):
        reward = results.value_of(trial)
        step = results.number_of(trial, results.STEP_ATTR, -1)
        nbytes = results.nbytes_of(trial, space)
        if nbytes is None:
            continue
        points.append(
            Point(
                trial.number,
                reward,
                results.number_of(trial, results.QUALITY_ATTR, reward),
                results.number_of(trial, results.PENALTY_ATTR, 0.0),
                nbytes,
                results.fidelity_of(trial),
                None if step < 0 else int(step),
                results.number_of(trial, results.REFERENCE_ATTR, 0.0),
            )
        )
    if not points:
        raise ValueError(
            f"`study` {study.study_name!r} has no finished trial of its search space; "
            "search first."
        )
    return points


def dearest(groups: Mapping[str | None, object]) -> str | None:
    """The kind of which the best trial is recommended, as in ``results.best_trial``."""
    return next((kind for kind in SCORED if kind in groups), None)


def by_kind(points: Sequence[Point]) -> dict[str | None, tuple[Point, ...]]:
    """Points apart by how they were scored, without empty kinds, cheapest scoring first."""
    groups = {kind: tuple(p for p in points if p.fidelity == kind) for kind in KINDS}
    return {kind: group for kind, group in groups.items() if group}
