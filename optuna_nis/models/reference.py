"""The reference model of a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from optuna_nis.data.features import Features
from optuna_nis.models.base import EmbeddingModule
from optuna_nis.models.ranking import RankingModule
from optuna_nis.models.retrieval import RetrievalModule
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace


def reference_model(
    features: Features, **options: Any
) -> Callable[[SearchSpace | Allocation], EmbeddingModule]:
    """Makes the reference model of a data set's task.

    Args:
        features: Features of the data set.
        **options: Arguments of :class:`RankingModule` or :class:`RetrievalModule`.

    Returns:
        A function that makes a supernet from a search space and a model from an allocation.

    Example:
        >>> build = reference_model(data.features)
        >>> space = SearchSpace(data.embedding_specs(8))
        >>> type(build(space)).__name__, type(build(space.full()).embeddings.layers[0]).__name__
        ('RankingModule', 'MultiSizeEmbedding')
    """

    def build(tables: SearchSpace | Allocation) -> EmbeddingModule:
        model: EmbeddingModule
        if features.task == "ranking":
            model = RankingModule(tables, bags=features.bags, **options)
        else:
            model = RetrievalModule(
                tables, num_classes=features.num_classes, bags=features.bags, **options
            )
        model.options = options
        return model

    return build
