"""How a trial was scored, in words."""

from __future__ import annotations

from optuna import Study
from optuna.trial import FrozenTrial

from optuna_nis.study.keys import SHARED_WEIGHTS, SUPERNET, TRAINED, VALIDATED
from optuna_nis.study.searches import searches_of
from optuna_nis.study.trials import fidelity_of, finished_trials, is_trained

SCORED = {
    TRAINED: "trained",
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
    if fidelity in SHARED_WEIGHTS:
        return f"{SCORED[fidelity]}; nothing has been trained yet"
    words = "trained, on the validation data"
    if any(search.seconds is None for search in searches_of(study).values()):
        count = sum(map(is_trained, finished_trials(study)))
        words += f"; {count} trained so far, the search has not ended"
    return words
