"""The controller: a policy that learns from trials, as an Optuna sampler."""

from optuna_nis.controller.policy import Policy, PolicySettings
from optuna_nis.controller.replay import PolicyHistory, policy_history
from optuna_nis.controller.sampler import NISSampler

__all__ = ["NISSampler", "Policy", "PolicyHistory", "PolicySettings", "policy_history"]
