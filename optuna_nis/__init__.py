"""Neural Input Search for Optuna: the size of every embedding table under a memory budget."""

from optuna_nis.allocation import Allocation, TableAllocation, Tier
from optuna_nis.budget import AdditiveBudget
from optuna_nis.policy import Policy, PolicySettings
from optuna_nis.replay import PolicyHistory, policy_history
from optuna_nis.reward import Reward, penalised_reward
from optuna_nis.sampler import NISSampler
from optuna_nis.space import EmbeddingSpec, SearchSpace

__version__ = "0.1.0"

__all__ = [
    "AdditiveBudget",
    "Allocation",
    "EmbeddingSpec",
    "NISSampler",
    "Policy",
    "PolicyHistory",
    "PolicySettings",
    "Reward",
    "SearchSpace",
    "TableAllocation",
    "Tier",
    "penalised_reward",
    "policy_history",
]
