"""Plotly figures of an embedding search, in the manner of :mod:`optuna.visualization`."""

try:
    import plotly  # noqa: F401
except ImportError as error:
    raise ImportError(
        "The figures need plotly; install it with `pip install 'optuna-nis[viz]'`."
    ) from error

from optuna_nis.show.figures._allocation import plot_allocation
from optuna_nis.show.figures._feature_budget import plot_feature_budget
from optuna_nis.show.figures._learning import plot_learning
from optuna_nis.show.figures._memory_quality import plot_memory_vs_quality
from optuna_nis.show.figures._policy import plot_policy
from optuna_nis.show.figures._reward_history import plot_reward_history

__all__ = [
    "plot_allocation",
    "plot_feature_budget",
    "plot_learning",
    "plot_memory_vs_quality",
    "plot_policy",
    "plot_reward_history",
]
