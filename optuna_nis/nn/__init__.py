"""Embedding and output layers: the supernet of a search, the multi-size layers of its result."""

from optuna_nis.nn._warm_start import warm_start
from optuna_nis.nn.adam_and_adagrad import AdamAndRowwiseAdagrad
from optuna_nis.nn.choices import set_choices, supernet_layers
from optuna_nis.nn.counts import count_ids
from optuna_nis.nn.mask_gradients import mask_gradients
from optuna_nis.nn.multi_size import MultiSizeEmbedding, MultiSizeEmbeddingBag, sized_layers
from optuna_nis.nn.output import MultiSizeLinear, SupernetLinear, output_features
from optuna_nis.nn.packed import PackedEmbedding, PackedEmbeddingBag, freeze
from optuna_nis.nn.rowwise_adagrad import RowwiseAdagrad
from optuna_nis.nn.supernet import SupernetEmbedding
from optuna_nis.nn.swap import apply_allocation, make_searchable
from optuna_nis.nn.swapped import (
    SwappedEmbedding,
    SwappedEmbeddingBag,
    SwappedLinear,
    swapped_layers,
)

__all__ = [
    "AdamAndRowwiseAdagrad",
    "MultiSizeEmbedding",
    "MultiSizeEmbeddingBag",
    "MultiSizeLinear",
    "PackedEmbedding",
    "PackedEmbeddingBag",
    "RowwiseAdagrad",
    "SupernetEmbedding",
    "SupernetLinear",
    "SwappedEmbedding",
    "SwappedEmbeddingBag",
    "SwappedLinear",
    "apply_allocation",
    "count_ids",
    "freeze",
    "make_searchable",
    "mask_gradients",
    "output_features",
    "set_choices",
    "sized_layers",
    "supernet_layers",
    "swapped_layers",
    "warm_start",
]
