"""The search inside Lightning: the callback, reference models, and the main job."""

try:
    import lightning  # noqa: F401
    import torch  # noqa: F401
    import torchmetrics  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"`optuna_nis.lightning` needs the package `{error.name}`, which is not installed: "
        'pip install "optuna-nis[lightning,datasets]"',
        name=error.name,
    ) from error

from optuna_nis.data.config import DataConfig
from optuna_nis.lightning.any_model import FoundSizes, search_sizes
from optuna_nis.lightning.callback import NISCallback
from optuna_nis.lightning.evaluating import TableMetrics, evaluate_table
from optuna_nis.lightning.halving import train_shortlist
from optuna_nis.lightning.job import search
from optuna_nis.lightning.objective import objective
from optuna_nis.lightning.retraining import retrain
from optuna_nis.lightning.rewards import Searchable
from optuna_nis.lightning.training import Training, evaluate, train
from optuna_nis.models import (
    CrossRankingModule,
    EmbeddingModule,
    RankingModule,
    RetrievalModule,
    SequenceModule,
    reference_model,
)
from optuna_nis.nn import warm_start
from optuna_nis.serve.export import export_model
from optuna_nis.serve.predictions import predict_table
from optuna_nis.serve.predictor import Predictor
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.shortlist import Candidate

__all__ = [
    "Candidate",
    "CrossRankingModule",
    "DataConfig",
    "EmbeddingModule",
    "FoundSizes",
    "NISCallback",
    "Predictor",
    "RankingModule",
    "RetrievalModule",
    "SearchPlan",
    "Searchable",
    "SequenceModule",
    "TableMetrics",
    "Training",
    "evaluate",
    "evaluate_table",
    "export_model",
    "objective",
    "predict_table",
    "reference_model",
    "retrain",
    "search",
    "search_sizes",
    "train",
    "train_shortlist",
    "warm_start",
]
