"""Sizes that a practitioner would try by hand, at the same budget as a search."""

from __future__ import annotations

from optuna_nis.allocation import Allocation, TableAllocation, Tier
from optuna_nis.space import SearchSpace


def uniform(space: SearchSpace, *, projected: bool = False) -> Allocation:
    """The same width for every row of every feature, as large as the budget allows.

    Where the budget does not even allow a width of 1, the least frequent ids of every feature are
    out of vocabulary.

    Args:
        space: Tables and budget.
        projected: Whether rows are projected to the width of the full tables, which costs
            projections, or the model downstream sees them as they are.

    Raises:
        ValueError: If the budget leaves no room for a width of 1 with its projections.

    Example:
        >>> from optuna_nis import EmbeddingSpec
        >>> space = SearchSpace([EmbeddingSpec("user", 1000, 32)], budget=0.25)
        >>> print(uniform(space))
        user: 1000x8 (of 1000x8)
        >>> print(uniform(space, projected=True))
        user: 1000x7 (of 1000x32)
    """
    widest = max(spec.embedding_dim for spec in space.specs)
    for width in range(widest, 0, -1):
        allocation = _uniform(space, width, 1.0, projected)
        if allocation.num_parameters <= space.budget:
            return allocation
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        fits = _uniform(space, 1, middle, projected).num_parameters <= space.budget
        low, high = (middle, high) if fits else (low, middle)
    allocation = _uniform(space, 1, low, projected)
    if allocation.num_parameters == 0:
        raise ValueError(
            f"`space` has a budget of {space.budget} parameters, too few for uniform embeddings "
            f"of width 1{' with their projections' if projected else ''}."
        )
    return allocation


def _uniform(space: SearchSpace, width: int, coverage: float, projected: bool) -> Allocation:
    tables = []
    for spec in space.specs:
        rows = int(coverage * spec.num_embeddings)
        dim = min(width, spec.embedding_dim)
        tiers = (Tier(rows, dim),) if rows else ()
        output = spec.embedding_dim if projected else width
        tables.append(TableAllocation(spec.name, spec.num_embeddings, output, tiers))
    return Allocation(tables)
