"""Hashed tables, tables with a learned step, and bytes of what is left out."""

from __future__ import annotations

from evolution import evolve
import numpy as np
import pytest
from rival_layers import (
    HashedEmbedding,
    LearnedStep,
    halve_steps,
    hashed_nbytes,
    learn_steps,
    learned_step_nbytes,
    remainders_of,
)
from sparse_bytes import kept_nbytes, mixed_nbytes, sparse_nbytes
import torch

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.models import RankingModule


def nbytes_of(layer: HashedEmbedding) -> int:
    return 2 * sum(parameter.numel() for parameter in layer.parameters())


@pytest.mark.parametrize("quotients", [False, True])
@pytest.mark.parametrize(("num_ids", "most_rows"), [(1000, 80), (1000, 1), (30, 80), (1, 5)])
def test_a_hashed_table_takes_what_is_counted(
    num_ids: int, most_rows: int, quotients: bool
) -> None:
    remainders = remainders_of(num_ids, most_rows, quotients)
    layer = HashedEmbedding(num_ids, remainders, 8, quotients=quotients, init_std=0.1)
    assert nbytes_of(layer) == hashed_nbytes(num_ids, remainders, 8, quotients)
    # Of the few rows that quotients need at least.
    fewest = 2 * (int((num_ids - 1) ** 0.5) + 1) if quotients else 1
    assert nbytes_of(layer) <= 2 * 8 * max(min(num_ids, most_rows), fewest)


def test_ids_share_rows_but_no_two_the_same_pair() -> None:
    ids = torch.arange(1000)
    shared = HashedEmbedding(1000, 40, 8, init_std=0.1)
    assert torch.equal(shared(ids[3:4]), shared(ids[43:44]))
    assert len(shared(ids).unique(dim=0)) == 40
    own = HashedEmbedding(1000, 40, 8, quotients=True, init_std=0.1)
    assert len(own(ids).unique(dim=0)) == 1000


def test_unknown_ids_are_zeros_and_count_in_no_bag() -> None:
    layer = HashedEmbedding(10, 4, 8, is_bag=True, init_std=0.1)
    bags = layer(torch.tensor([[1, 2, 10], [10, 10, 10]]))
    assert torch.allclose(bags[0], layer.rows[1:3].mean(0))
    assert not bags[1].any()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_learned_steps_are_those_of_the_paper(bits: int) -> None:
    weight = torch.nn.Parameter(torch.randn(200, 8, generator=torch.Generator().manual_seed(0)))
    layer = LearnedStep(weight, bits)
    high = 2 ** (bits - 1) - 1
    step = 2 * weight.abs().mean() / high**0.5
    assert layer.step.item() == pytest.approx(step.item())
    rounded = layer(weight)
    codes = (rounded / layer.step).round()
    assert codes.min() >= -high - 1
    assert codes.max() <= high
    assert len(codes.unique()) <= 2**bits

    rounded.sum().backward()
    inside = (weight / step > -high - 1) & (weight / step < high)
    assert torch.equal(weight.grad != 0, inside)
    ratio = (weight / step).detach()
    own = torch.where(inside, ratio.round() - ratio, ratio.clamp(-high - 1, high))
    expected = own.sum().item() / (weight.numel() * high) ** 0.5
    assert layer.step.grad.item() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_every_tier_of_a_model_learns_a_step() -> None:
    space = SearchSpace([EmbeddingSpec("user", 100, 8), EmbeddingSpec("item", 40, 8)])
    model = learn_steps(RankingModule(space.full()), 2)
    halve_steps(model)
    steps = [module.step for module in model.modules() if isinstance(module, LearnedStep)]
    assert len(steps) == 2
    assert all(torch.equal(step, step.half().float()) for step in steps)
    ids = torch.arange(40)
    model({"user": ids, "item": ids}).sum().backward()
    assert all(step.grad is not None for step in steps)
    assert len(model.embeddings.layers[0](ids).unique()) <= 4


def test_bytes_of_learned_steps() -> None:
    # Three numbers of 4 bits are in 2 bytes, five of 2 bits too; a step takes 2 once.
    assert learned_step_nbytes(100, 3, 4) == 202
    assert learned_step_nbytes(100, 5, 2) == 202
    assert learned_step_nbytes(0, 5, 2) == 0


def test_bytes_of_pruned_numbers() -> None:
    mask = np.zeros((1000, 32), dtype=bool)
    assert sparse_nbytes(mask) == 0
    mask[0, :10] = True
    # Few of them: rows of two bytes for each, and where a column begins.
    assert sparse_nbytes(mask) == 10 * 2 + 10 * 2 + 4 * 33
    mask[:500] = True
    # Half of them: a bit for each, and a count for each 512.
    assert sparse_nbytes(mask) == 16_000 * 2 + 4_000 + 4 * 63
    # Some in each row: a column of a byte for each, and where a row begins, of narrow tables.
    narrow = np.zeros((3, 256), dtype=bool)
    narrow[:, :2] = True
    assert sparse_nbytes(narrow) == 6 * 2 + 6 + 4 * 4
    assert sparse_nbytes(np.ones((1000, 32), dtype=bool)) == 64_000


def test_bytes_of_pruned_ids() -> None:
    assert kept_nbytes(1000, 0, 8) == 0
    assert kept_nbytes(1000, 1000, 8) == 16_000
    # Places of two bytes, or a bit for each id and two counts.
    assert kept_nbytes(1000, 10, 8) == 160 + 20
    assert kept_nbytes(1000, 500, 8) == 8_000 + 125 + 8


def test_bytes_of_mixed_bits() -> None:
    bits = np.array([6, 6, 3, 3, 3, 0, 0])
    # 24 bytes and 12 bytes a row; three runs of 5 bytes.
    assert mixed_nbytes(bits, 32) == 2 * 24 + 3 * 12 + 15
    assert mixed_nbytes(np.zeros(9, dtype=np.int64), 32) == 5
    # Rows begin at whole bytes.
    assert mixed_nbytes(np.array([1, 1]), 3) == 2 + 5


def test_evolution_comes_near_the_best_within_the_budget() -> None:
    asked: list[tuple[int, ...]] = []
    worth = np.array([3.0, 1.0, 0.0, 2.0])

    def quality(widths: tuple[int, ...]) -> float:
        asked.append(widths)
        return float((worth * np.sqrt(widths)).sum())

    found = evolve(4, 32, quality, lambda w: sum(w) <= 40, np.random.default_rng(0))
    assert found is not None
    assert all(sum(widths) <= 40 and min(widths) >= 1 for widths in asked)
    # Nothing is asked for twice.
    assert len(asked) == len(set(asked))
    best = max(
        (3 * a**0.5 + b**0.5 + d**0.5 * 2 for a in range(1, 33) for b in range(1, 33)
         for d in range(1, 33) if a + b + d <= 39),
    )  # fmt: skip
    assert quality(found) > 0.97 * best


def test_evolution_of_what_never_fits() -> None:
    assert evolve(3, 8, lambda w: 0.0, lambda w: False, np.random.default_rng(0)) is None
