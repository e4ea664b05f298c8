"""Taking a model with multi-size embeddings to production."""

from optuna_nis.nn import freeze
from optuna_nis.serve.dense import to_dense
from optuna_nis.serve.files import allocation_of, load, save
from optuna_nis.serve.fused import fused
from optuna_nis.serve.onnx import to_onnx
from optuna_nis.serve.predictions import TablePredictions, predict_table
from optuna_nis.serve.predictor import Predictor
from optuna_nis.serve.quantize import (
    QuantizationReport,
    QuantizedEmbedding,
    QuantizedEmbeddingBag,
    QuantizedTable,
    quantization_report,
    quantize,
)
from optuna_nis.serve.torch_export import to_torch_export

__all__ = [
    "Predictor",
    "QuantizationReport",
    "QuantizedEmbedding",
    "QuantizedEmbeddingBag",
    "QuantizedTable",
    "TablePredictions",
    "allocation_of",
    "freeze",
    "fused",
    "load",
    "predict_table",
    "quantization_report",
    "quantize",
    "save",
    "to_dense",
    "to_onnx",
    "to_torch_export",
]
