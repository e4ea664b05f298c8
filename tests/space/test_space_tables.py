from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from optuna_nis.space.spec import EmbeddingSpec
from optuna_nis.space.tables import Blocks, MultiSizeTable, SingleSizeTable, SpaceWalk, Table

SPECS = [
    EmbeddingSpec("user", 100, 8, row_blocks=[10, 20, 70]),
    EmbeddingSpec("city", 7, 4),
    EmbeddingSpec("day", 30, 16, row_blocks=2, col_blocks=3),
]


@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-6, 6), single=st.booleans())
@settings(deadline=None)
def test_blocks_side_by_side_cost_what_their_tables_cost(
    seed: int, shift: float, single: bool
) -> None:
    rng = np.random.default_rng(seed)
    tables: list[Table] = [(SingleSizeTable if single else MultiSizeTable)(s) for s in SPECS]
    blocks = Blocks(tables)
    bases = [table.random_octaves(rng) for table in tables]
    for base in bases:
        assert (np.diff(base[np.isfinite(base)]) <= 0).all()
    octaves = np.concatenate(bases) + shift
    levels = np.split(blocks.levels(octaves), [3, 4])
    chosen = [t.spec.table(t.widths[own].tolist()) for t, own in zip(tables, levels)]
    assert blocks.num_parameters(octaves) == sum(table.num_parameters for table in chosen)
    for table, found in zip(tables, chosen):
        params = table.params(table.spec.widths_of(found))
        assert list(params) == table.names
        assert table.allocation(params) == found


def test_a_single_size_pays_for_all_of_its_rows_at_once() -> None:
    table = SingleSizeTable(EmbeddingSpec("t", 10, 2, row_blocks=2))
    assert table.options == ("0x0", "5x1", "5x2", "10x1", "10x2")
    assert table.costs(0).tolist() == [0, 5 + 2, 10, 10 + 2, 20]
    assert table.min_parameters == 7


def test_a_narrower_tier_after_a_full_one_pays_for_the_projection() -> None:
    table = MultiSizeTable(EmbeddingSpec("t", 10, 2, row_blocks=2))
    walk = SpaceWalk([table], budget=10 + 5 + 4, n=3)
    assert walk.allowed("t[0:5]").all()
    walk.take("t[0:5]", np.array([2, 1, 0]))
    allowed = [[True, True, False], [True, True, False], [True, False, False]]
    assert walk.allowed("t[5:10]").tolist() == allowed
    walk.take("t[5:10]", np.array([1, 1, 0]))
    assert walk._left.tolist() == [0, 19 - 5 - 2 - 5, 19]


@pytest.mark.parametrize("kind", [MultiSizeTable, SingleSizeTable])
def test_wider_options_weigh_more(kind: type[Table]) -> None:
    table = kind(EmbeddingSpec("t", 40, 8))
    assert (np.diff(table.log_weights) > 0).all()
    assert len(table.log_weights) == len(table.options)
