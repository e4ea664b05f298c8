"""What a search of the reference models goes by, unless it is told otherwise."""

from __future__ import annotations

from inspect import signature

from optuna_nis.models import EmbeddingModule, RetrievalModule

#: Largest width considered of a feature, by the task.
EMBEDDING_DIM = {"ranking": 32, "retrieval": 64}
_MAX_SLOWER = 4.0


def default_epochs(model: EmbeddingModule) -> int:
    """Epochs of a supernet; one that learns more slowly than by default gets more of them.

    Args:
        model: A reference model; retrieval takes longer to learn than ranking.

    Example:
        >>> from optuna_nis import SearchSpace
        >>> from optuna_nis.lightning import RankingModule
        >>> full = SearchSpace(data.embedding_specs(8)).full()
        >>> [default_epochs(RankingModule(full, learning_rate=rate)) for rate in (2e-3, 1e-3)]
        [4, 8]
    """
    epochs = 6 if isinstance(model, RetrievalModule) else 4
    default: float = signature(type(model)).parameters["learning_rate"].default
    rate = min(max(model.learning_rate, default / _MAX_SLOWER), default)
    return round(epochs * default / rate)
