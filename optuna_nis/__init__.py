"""Neural Input Search for Optuna: the size of every embedding table under a memory budget."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Where each is. Modules are loaded when something of them is asked for: the command answers
# `--help` without Optuna.
_MODULES = {
    "Allocation": "allocation",
    "TableAllocation": "allocation",
    "Tier": "allocation",
    "AdditiveBudget": "budget",
    "Policy": "policy",
    "PolicySettings": "policy",
    "PolicyHistory": "replay",
    "policy_history": "replay",
    "Reward": "reward",
    "penalised_reward": "reward",
    "NISSampler": "sampler",
    "EmbeddingSpec": "space",
    "SearchSpace": "space",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"optuna_nis.{_MODULES[name]}"), name)
    if name in _MODULES.values():
        return import_module(f"optuna_nis.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
