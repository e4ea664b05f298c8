"""Trained tables in fewer bytes: what is counted is what is kept."""

from __future__ import annotations

import pytest
from stored_tables import WAYS, Way, store, stored_nbytes, tables_of
import torch

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace, TableAllocation, Tier
from optuna_nis.models import RankingModule

FULL = SearchSpace([EmbeddingSpec("user", 6040, 32), EmbeddingSpec("item", 3706, 32)]).full()
MIXED = Allocation(
    [
        TableAllocation("user", 1000, 32, (Tier(100, 32), Tier(500, 5))),
        TableAllocation("item", 900, 32, (Tier(900, 32),)),
        TableAllocation("city", 50, 32, ()),
    ]
)


@pytest.mark.parametrize(
    ("way", "share"), [("8bit", 0.28125), ("4bit", 0.15625), ("3bit", 0.125), ("2bit", 0.09375)]
)
def test_full_tables_take_what_their_rows_take(way: str, share: float) -> None:
    assert stored_nbytes(FULL, way) == share * FULL.nbytes()
    assert stored_nbytes(FULL, "16bit") == FULL.nbytes() // 2


def test_scales_offsets_and_projections_are_counted() -> None:
    projection = 2 * 32 * 32
    # A row of 5 numbers takes 10 bytes in float16, 3 + 4 in 4 bits, 9 in 8 bits.
    assert stored_nbytes(MIXED, "4bit") == 100 * 20 + 500 * 7 + projection + 900 * 20
    assert stored_nbytes(MIXED, "8bit") == 100 * 36 + 500 * 9 + projection + 900 * 36
    # Of 2 numbers 4 bytes in float16, of which codes and scale would take more.
    assert Way(4).nbytes(10, 2) == 40


def test_code_books_are_counted() -> None:
    # 8 codes of 4 bits a row, 16 centroids as wide as a row.
    assert Way(4, 4).nbytes(6040, 32) == 6040 * 4 + 16 * 32 * 2
    # Indices of 6 bits lie side by side; rows of 5 numbers have a run of 4 and one of 1.
    assert Way(6, 32).nbytes(6041, 32) == 4531 + 64 * 32 * 2
    assert Way(8, 4).nbytes(6040, 5) == 6040 * 2 + 256 * 5 * 2
    # More centroids than rows are worth nothing.
    assert Way(8, 4).nbytes(50, 32) == 50 * 32 * 2


@pytest.mark.parametrize("way", WAYS)
def test_rows_hold_no_more_than_their_codes_say(way: str) -> None:
    rows = torch.randn(700, 32, generator=torch.Generator().manual_seed(0))
    kept = WAYS[way].round(rows)
    assert kept.shape == rows.shape
    assert (kept - rows).square().mean() < rows.square().mean()
    bits, columns = WAYS[way].bits, WAYS[way].columns
    if columns is not None:
        assert torch.equal(kept, kept.half().float())
        for part in kept.split(columns, 1):
            assert len(part.unique(dim=0)) <= 2**bits
    elif bits < 16:
        assert max(len(row.unique()) for row in kept) <= 2**bits


def test_rounding_is_as_near_as_half_a_step() -> None:
    rows = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    step = (rows.amax(1) - rows.amin(1)) / 15
    error = (Way(4).round(rows) - rows).abs().amax(1)
    assert bool((error <= 0.502 * step + 2e-3).all())
    same = torch.full((3, 16), 0.25)
    assert torch.equal(Way(4).round(same), same)


def test_a_model_is_stored_whole() -> None:
    model = RankingModule(MIXED)
    before = [rows.clone() for rows in tables_of(model)]
    store(model, "2bit")
    after = list(tables_of(model))
    assert len(after) == 3
    for old, new in zip(before, after):
        assert torch.equal(new, Way(2).round(old))
    projection = model.embeddings.layers[0].projection
    assert torch.equal(projection, projection.half().float())
