"""The controller: a policy that learns from trials, as an Optuna sampler."""

from optuna_nis.controller.history import PolicyHistory, policy_history
from optuna_nis.controller.policy import Policy
from optuna_nis.controller.sampler import NISSampler
from optuna_nis.controller.settings import PolicySettings

__all__ = ["NISSampler", "Policy", "PolicyHistory", "PolicySettings", "policy_history"]
