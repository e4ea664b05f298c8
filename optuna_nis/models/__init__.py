"""Reference models, and the softmax over many items."""

from optuna_nis.models.modules import (
    EmbeddingModule,
    RankingModule,
    RetrievalModule,
    reference_model,
)

__all__ = ["EmbeddingModule", "RankingModule", "RetrievalModule", "reference_model"]
