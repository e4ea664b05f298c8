from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from optuna_nis.space.blocks import Blocks
from optuna_nis.space.sharing import table_of
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec
from optuna_nis.space.tables import MultiSizeTable, SingleSizeTable, Table

SPECS = [
    EmbeddingSpec("user", 100, 8, row_blocks=[10, 20, 70]),
    EmbeddingSpec("city", 7, 4, precisions=(16, 4, 2)),
    EmbeddingSpec("day", 30, 16, row_blocks=2, col_blocks=3, precisions=(32, 8)),
]
SHARING = EmbeddingSpec("user", 100, 8, row_blocks=[10, 20, 70], precisions=(32, 4), oov="hash")


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
    bits = np.concatenate([table.random_bits(rng) for table in tables])
    found = blocks.options(octaves, bits)
    options = np.split(found, [3, 4])
    sizes = [[t.sizes.pairs[option] for option in own] for t, own in zip(tables, options)]
    chosen = [t.spec.table(*zip(*own)) for t, own in zip(tables, sizes)]
    assert blocks.nbytes(found) == sum(table.nbytes() for table in chosen)
    for table, found in zip(tables, chosen):
        params = table.params(table.spec.sizes_of(found))
        assert list(params) == table.names
        assert table.allocation(params) == found


def test_a_single_size_pays_for_all_of_its_rows_at_once() -> None:
    table = SingleSizeTable(EmbeddingSpec("t", 10, 2, row_blocks=2))
    assert table.options == ("0x0", "5x1", "5x2", "10x1", "10x2")
    assert table.costs(0).tolist() == [4 * n for n in (0, 5 + 2, 10, 10 + 2, 20)]
    assert table.min_nbytes == 28


def test_codes_cost_whole_bytes_a_row_and_a_step() -> None:
    table = SingleSizeTable(EmbeddingSpec("t", 10, 3, row_blocks=1, precisions=(4, 2)))
    assert table.options == ("0x0", "10x1x2bit", "10x1x4bit", "10x2x2bit", "10x2x4bit") + (
        "10x3x2bit",
        "10x3x4bit",
    )
    rows, projections = (0, 1, 1, 1, 1, 1, 2), (0, 1, 1, 2, 2, 0, 0)
    wanted = [(10 * r + 2 + 2 * 3 * p) * (r > 0) for r, p in zip(rows, projections)]
    assert table.costs(0).tolist() == wanted


@pytest.mark.parametrize("kind", [MultiSizeTable, SingleSizeTable])
def test_shared_rows_are_paid_for_option_by_option(kind: type[Table]) -> None:
    table = table_of(kind(SHARING))
    assert table.choices(0) == (0, 1, 16)
    assert table.names[0] == "user[shared]"
    assert table_of(kind(SPECS[0])).names == kind(SPECS[0]).names
    choices = [table.choices(index) for index in range(len(table.names))]
    for options in itertools.product(*(range(len(own)) for own in choices)):
        state, paid, allowed = np.array([table.start]), 0, True
        for index, option in enumerate(options):
            cost, fits = table.price(index, state)
            paid += int(cost[0, option])
            allowed = allowed and bool(fits[0, option])
            state = table.after(index, state, np.array([option]))
        choice = {n: own[o] for n, own, o in zip(table.names, choices, options)}
        if allowed:
            assert paid == table.allocation(choice).nbytes()


def test_random_tables_share_any_number_of_rows() -> None:
    space = SearchSpace([SHARING], budget=0.5)
    rng = np.random.default_rng(0)
    found = [space.sample(rng, 60) for _ in range(60)]
    assert {each["user"].num_shared for each in found} == {0, 1, 16}
    assert max(each.nbytes() for each in found) <= 4 * 60


@pytest.mark.parametrize("kind", [MultiSizeTable, SingleSizeTable])
def test_wider_options_weigh_more(kind: type[Table]) -> None:
    table = kind(EmbeddingSpec("t", 40, 8))
    assert (np.diff(table.log_weights) > 0).all()
    assert len(table.log_weights) == len(table.options)
