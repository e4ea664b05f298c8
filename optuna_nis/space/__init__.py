"""Tables, budgets and the sizes that may be chosen."""

from optuna_nis.space.allocation import Allocation, TableAllocation, Tier
from optuna_nis.space.constraint import AdditiveBudget, Constraint
from optuna_nis.space.space import Mode, SearchSpace
from optuna_nis.space.spec import EmbeddingSpec

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
