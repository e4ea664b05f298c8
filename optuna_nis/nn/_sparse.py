"""Sparse gradients of everything that a table is made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from optuna_nis.nn._tracing import is_traced


def sparse_only(fields: nn.Module) -> None:
    """Make all gradients sparse: optimisers that want them so want it of projections too."""
    if torch.is_grad_enabled() and not is_traced():
        for parameter in fields.parameters():
            # Copies of a model have no hooks.
            hooks = parameter._post_accumulate_grad_hooks or {}
            trained = parameter.requires_grad and parameter.is_leaf
            if trained and _sparsify not in hooks.values():
                parameter.register_post_accumulate_grad_hook(_sparsify)  # type: ignore[no-untyped-call]


def _sparsify(parameter: Tensor) -> None:
    def convert() -> None:
        if parameter.grad is not None and not parameter.grad.is_sparse:
            parameter.grad = parameter.grad.to_sparse(1)

    # After the backward pass, and after what data parallelism does then: that takes sparse
    # gradients from embeddings only, which projections are not.
    engine = torch.autograd.Variable._execution_engine
    engine.queue_callback(lambda: engine.queue_callback(convert))
