"""A small space with a bag, and batches of it."""

from __future__ import annotations

import torch

from optuna_nis import EmbeddingSpec, SearchSpace

SPECS = [EmbeddingSpec("user", 60, 8), EmbeddingSpec("genres", 9, 8)]
SPACE = SearchSpace(SPECS, budget=0.5)


def batch_of(size: int = 16) -> dict[str, torch.Tensor]:
    return {
        "user": torch.randint(0, 61, (size,)),
        "genres": torch.randint(0, 10, (size, 3)),
        "label": (torch.arange(size) % 3 == 0).float(),
    }
