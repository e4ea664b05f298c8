"""What a report, a note, a status and figures say in the same words."""

from __future__ import annotations

from collections.abc import Iterator

from optuna import Study
from optuna.trial import FrozenTrial

from optuna_nis._format import percent, size
from optuna_nis.space.allocation import Allocation, TableAllocation, Tier
from optuna_nis.space.space import SearchSpace
from optuna_nis.study.keys import (
    DROPPED,
    SHARED_WEIGHTS,
    SUPERNET,
    TRAINED,
    VALIDATED,
)
from optuna_nis.study.searches import searches_of
from optuna_nis.study.trials import fidelity_of, finalists_of, finished_trials, is_trained

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
    if finalists_of(study)[0] == best.number:
        words = "trained in the shortlist, on the validation data; best of the finalists retrained"
    if any(search.seconds is None for search in searches_of(study).values()):
        count = sum(map(is_trained, finished_trials(study)))
        words += f"; {count} trained so far, the search has not ended"
    return words


def allocation_rows(allocation: Allocation) -> list[list[str]]:
    """A row for each feature, those with the most memory first.

    Returns:
        Its name, its full table, what is kept of it, its memory, and the share of it in all.
    """
    total = allocation.nbytes()
    tables = sorted(allocation.values(), key=lambda table: -table.nbytes())
    return [
        [
            table.name,
            f"{table.num_embeddings:,} x {table.embedding_dim}",
            " + ".join([*map(rows_of, table.tiers), *_shared(table)]) or "removed",
            size(table.nbytes()),
            percent(table.nbytes() / total if total else 0.0),
        ]
        for table in tables
    ]


def _shared(table: TableAllocation) -> Iterator[str]:
    """The rows that ids without one of their own share, if there are any."""
    if table.num_shared:
        yield f"{table.num_shared:,} shared"


def rows_of(tier: Tier) -> str:
    """The rows of a tier, and their precision where they are not float32.

    Example:
        >>> rows_of(Tier(1_200, 8)), rows_of(Tier(1_200, 8, 4))
        ('1,200 x 8', '1,200 x 8 in 4 bits')
    """
    rows = f"{tier.num_embeddings:,} x {tier.embedding_dim}"
    return rows if tier.bits == 32 else f"{rows} in {tier.bits} bits"


def precisions_of(space: SearchSpace) -> str:
    """The precisions that a number may have, empty if that is float32 alone.

    Example:
        >>> from optuna_nis import EmbeddingSpec
        >>> precisions_of(SearchSpace([EmbeddingSpec("user", 100, 8, precisions=(32, 8, 4))]))
        '32, 8 or 4 bits a number'
    """
    if space.precisions == (32,):
        return ""
    *others, last = map(str, space.precisions)
    return " or ".join(filter(None, [", ".join(others), last])) + " bits a number"
