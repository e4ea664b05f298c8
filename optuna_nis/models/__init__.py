"""Reference models, and the softmax over many items."""

from optuna_nis.models.base import EmbeddingModule
from optuna_nis.models.cross import CrossRankingModule
from optuna_nis.models.embeddings import FeatureEmbeddings as FeatureEmbeddings  # In pickles.
from optuna_nis.models.ranking import RankingModule
from optuna_nis.models.reference import reference_model
from optuna_nis.models.retrieval import RetrievalModule
from optuna_nis.models.sequence import SequenceModule

__all__ = [
    "CrossRankingModule",
    "EmbeddingModule",
    "RankingModule",
    "RetrievalModule",
    "SequenceModule",
    "reference_model",
]
