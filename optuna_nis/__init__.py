"""Neural Input Search for Optuna: the size of every embedding table under a memory budget."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from optuna_nis._moved import install_moved_modules

if TYPE_CHECKING:
    from optuna_nis.controller.history import PolicyHistory, policy_history
    from optuna_nis.controller.policy import Policy
    from optuna_nis.controller.sampler import NISSampler
    from optuna_nis.controller.settings import PolicySettings
    from optuna_nis.space.allocation import Allocation, TableAllocation, Tier
    from optuna_nis.space.constraint import AdditiveBudget
    from optuna_nis.space.space import SearchSpace
    from optuna_nis.space.spec import EmbeddingSpec
    from optuna_nis.strategy.plan import SearchPlan
    from optuna_nis.strategy.reward import Reward, penalised_reward
    from optuna_nis.strategy.search import SizeSearch

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
    "SearchPlan",
    "SearchSpace",
    "SizeSearch",
    "TableAllocation",
    "Tier",
    "penalised_reward",
    "policy_history",
]

# Where each is. Modules are loaded when something of them is asked for: the command answers
# `--help` without Optuna.
_MODULES = {
    "AdditiveBudget": "space",
    "Allocation": "space",
    "EmbeddingSpec": "space",
    "SearchSpace": "space",
    "TableAllocation": "space",
    "Tier": "space",
    "NISSampler": "controller",
    "Policy": "controller",
    "PolicyHistory": "controller",
    "PolicySettings": "controller",
    "policy_history": "controller",
    "Reward": "strategy.reward",
    "penalised_reward": "strategy.reward",
    "SearchPlan": "strategy.plan",
    "SizeSearch": "strategy.search",
}

install_moved_modules()


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"optuna_nis.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
