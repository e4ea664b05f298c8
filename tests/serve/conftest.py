"""Layers and models of every kind that can be exported."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from optuna_nis import Allocation, TableAllocation, Tier
from optuna_nis.nn import apply_allocation

SIZES = Allocation(
    [
        TableAllocation("user", 60, 8, (Tier(5, 8), Tier(20, 6), Tier(10, 2))),
        TableAllocation("fused.a", 20, 8, (Tier(10, 4),), num_shared=3),
        TableAllocation("fused.b", 30, 8, (Tier(4, 8), Tier(20, 1))),
        TableAllocation("last", 40, 8, ()),
        TableAllocation("bags.0", 50, 8, (Tier(10, 8), Tier(15, 3))),
        TableAllocation("bags.1", 50, 8, (Tier(30, 5),), num_shared=1),
        TableAllocation("bags.2", 50, 8, (Tier(5, 7), Tier(5, 6), Tier(5, 5))),
        TableAllocation("bags.3.a", 20, 8, (Tier(10, 8), Tier(10, 2))),
        TableAllocation("bags.3.b", 30, 8, (Tier(9, 4),)),
    ]
)
#: The same in fewer bits.
NARROW = Allocation(
    TableAllocation(
        table.name,
        table.num_embeddings,
        table.embedding_dim,
        tuple(Tier(*tier[:2], bits) for tier, bits in zip(table.tiers, (16, 4, 2))),
        table.num_shared,
    )
    for table in SIZES.values()
)


class Sequences(nn.Module):
    """Recurrent layers and attention over the items of a history."""

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(60, 8, padding_idx=0)
        self.layers = nn.ModuleDict(
            {
                "gru": nn.GRU(8, 8, num_layers=2, batch_first=True),
                "lstm": nn.LSTM(8, 4, bidirectional=True, batch_first=True),
                "attention": nn.MultiheadAttention(8, 2, batch_first=True),
                "encoder": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
            }
        )

    def forward(self, ids: Tensor) -> Tensor:
        rows = self.item(ids)
        for name, layer in self.layers.items():
            found = layer(rows, rows, rows) if name == "attention" else layer(rows)
            rows = rows + (found[0] if isinstance(found, tuple) else found)
        return rows[:, -1]


class Swapped(nn.Module):
    """Plain layers of torch in every form that a swap takes."""

    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(60, 8, padding_idx=3)
        with torch.no_grad():
            self.user.weight[3] = 0.5  # A row of padding need not be zero.
        self.fused = nn.Embedding(50, 8, padding_idx=20)
        self.last = nn.Embedding(40, 8)
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(50, 8, mode=mode, padding_idx=padding)
            for mode, padding in (("sum", None), ("mean", 7), ("max", 0), ("mean", 5))
        )
        self.again = self.user
        self.tied = nn.Embedding(60, 8, padding_idx=3)
        self.tied.weight = self.user.weight
        self.head = nn.Linear(8, 1)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        rows = self.user(batch["user"]) + 2 * self.tied(batch["user"]) + self.again(batch["user"])
        rows = rows + self.fused(batch["pair"]).sum(1) + self.last(batch["last"])
        for scale, layer in enumerate(self.bags):
            rows = rows + (1 + scale) * layer(batch["bag"])
        return self.head(rows.tanh()).squeeze(1)


def swapped_batch(length: int) -> dict[str, Tensor]:
    pair = torch.stack([torch.randint(0, 20, (length,)), torch.randint(20, 50, (length,))], 1)
    return {
        "user": torch.randint(0, 60, (length,)),
        "pair": pair,
        "last": torch.randint(0, 40, (length,)),
        "bag": torch.randint(0, 50, (length, 4)),
    }


def _sized(sizes: Allocation) -> nn.Module:
    torch.manual_seed(0)
    ids = {"user": 60, "fused": 50, "last": 40, "bags.0": 50, "bags.1": 50}
    counts = {name: torch.randint(0, 99, (size,)) for name, size in ids.items()}
    return apply_allocation(Swapped(), sizes, counts=counts)


@pytest.fixture
def swapped() -> nn.Module:
    """Of the sizes above, with ids that are not in the order of their frequency."""
    return _sized(SIZES)


@pytest.fixture
def narrow() -> nn.Module:
    """As above, in fewer bits."""
    return _sized(NARROW)


@pytest.fixture
def sequences() -> nn.Module:
    """A model of histories, sized."""
    torch.manual_seed(0)
    table = TableAllocation("item", 60, 8, (Tier(5, 8), Tier(20, 6), Tier(10, 2)))
    counts = {"item": torch.randint(0, 99, (60,))}
    return apply_allocation(Sequences().eval(), Allocation([table]), counts=counts)


@pytest.fixture
def batch_of() -> Callable[[int], dict[str, Tensor]]:
    """A batch of so many examples for that model."""
    return swapped_batch
