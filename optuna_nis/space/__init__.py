"""Tables, budgets and the sizes that may be chosen."""

from optuna_nis.space.allocation import Allocation, TableAllocation, Tier
from optuna_nis.space.budget import AdditiveBudget, Constraint
from optuna_nis.space.space import EmbeddingSpec, Mode, SearchSpace

__all__ = [
    "AdditiveBudget",
    "Allocation",
    "Constraint",
    "EmbeddingSpec",
    "Mode",
    "SearchSpace",
    "TableAllocation",
    "Tier",
]
