"""Embedding layers: the supernet of a search, and the multi-size layers of its result."""

from optuna_nis.nn.multi_size import MultiSizeEmbedding, MultiSizeEmbeddingBag
from optuna_nis.nn.supernet import SupernetEmbedding, set_choices, supernet_layers

__all__ = [
    "MultiSizeEmbedding",
    "MultiSizeEmbeddingBag",
    "SupernetEmbedding",
    "set_choices",
    "supernet_layers",
]
