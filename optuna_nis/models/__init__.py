"""Reference models, and the softmax over many items."""

from optuna_nis.models.base import EmbeddingModule
from optuna_nis.models.embeddings import FeatureEmbeddings as FeatureEmbeddings  # In pickles.
from optuna_nis.models.ranking import RankingModule
from optuna_nis.models.reference import reference_model
from optuna_nis.models.retrieval import RetrievalModule

__all__ = ["EmbeddingModule", "RankingModule", "RetrievalModule", "reference_model"]
