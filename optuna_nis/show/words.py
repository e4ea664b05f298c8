"""What a report, a note, a status and figures say in the same words."""

from __future__ import annotations

from optuna import Study
from optuna.trial import FrozenTrial

from optuna_nis.space.allocation import Allocation
from optuna_nis.study.keys import DROPPED, SHARED_WEIGHTS, SUPERNET, TRAINED, VALIDATED
from optuna_nis.study.searches import searches_of
from optuna_nis.study.trials import fidelity_of, finished_trials, is_trained

SCORED = {
    TRAINED: "trained",
    DROPPED: "trained for a while",
    VALIDATED: "shared weights, all validation data",
    SUPERNET: "shared weights",
}
"""Ways of scoring, the dearest first."""


def how_scored(study: Study, best: FrozenTrial) -> str:
    """How the best trial of a study was scored, and whether better may be to come.

    Args:
        study: The study.
        best: Its best trial.

    Example:
        >>> how_scored(study, study.best_trial)
        'validation'
    """
    fidelity = fidelity_of(best)
    if fidelity is None:
        return "validation"
    if fidelity == DROPPED:
        return f"{SCORED[fidelity]}, on the validation data; the search has not ended"
    if fidelity in SHARED_WEIGHTS:
        return f"{SCORED[fidelity]}; nothing has been trained yet"
    words = "trained, on the validation data"
    if any(search.seconds is None for search in searches_of(study).values()):
        count = sum(map(is_trained, finished_trials(study)))
        words += f"; {count} trained so far, the search has not ended"
    return words


def percent(share: float) -> str:
    """A share as a percentage of three digits at most, such as ``"0.25 %"`` or ``"12.5 %"``."""
    value = 100 * share
    if value != 0 and abs(value) < 0.01:
        return "< 0.01 %"
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def allocation_rows(allocation: Allocation) -> list[list[str]]:
    """A row for each feature, those with the most memory first.

    Returns:
        Its name, its full table, what is kept of it, its parameters, and their share of all.
    """
    total = allocation.num_parameters
    tables = sorted(allocation.values(), key=lambda table: -table.num_parameters)
    return [
        [
            table.name,
            f"{table.num_embeddings:,} x {table.embedding_dim}",
            " + ".join(f"{rows:,} x {width}" for rows, width, _ in table.tiers) or "removed",
            f"{table.num_parameters:,}",
            percent(table.num_parameters / total if total else 0.0),
        ]
        for table in tables
    ]
