"""Neural Input Search: a policy over categorical choices, with hard budgets."""

from optuna_nis import AdditiveBudget, EmbeddingSpec, NISSampler, SearchSpace

__all__ = ["AdditiveBudget", "EmbeddingSpec", "NISSampler", "SearchSpace"]
