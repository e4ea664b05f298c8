"""Tables of any sizes that an allocation may have."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import strategies as st

from optuna_nis import Allocation, TableAllocation, Tier

PRECISION_SETS = st.sampled_from([(32,), (32, 16, 8, 4, 2), (4, 2)])


@st.composite
def tables(draw: st.DrawFn, name: str = "t") -> TableAllocation:
    width = draw(st.integers(1, 64))
    sizes = st.tuples(st.integers(1, width), st.sampled_from(draw(PRECISION_SETS)))
    drawn = sorted(draw(st.sets(sizes, max_size=4)), reverse=True)
    # Of those, each that is nowhere larger than the one before it.
    falling = list(dict.fromkeys(zip(*(accumulate(n, min) for n in zip(*drawn)))))
    tiers = tuple(Tier(draw(st.integers(1, 500)), d, bits) for d, bits in falling)
    unused = draw(st.integers(0, 500))
    rows = max(sum(tier.num_embeddings for tier in tiers) + unused, 1)
    shared = draw(st.sampled_from([0, 1, 16])) if tiers else 0
    return TableAllocation(name, rows, width, tiers, min(shared, unused))


@st.composite
def allocations(draw: st.DrawFn) -> Allocation:
    names = draw(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=4, unique=True))
    return Allocation(draw(tables(name)) for name in names)
