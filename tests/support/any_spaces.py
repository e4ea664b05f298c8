"""Search spaces of any features, with any budget that lets them keep something."""

from __future__ import annotations

from hypothesis import strategies as st

from optuna_nis import EmbeddingSpec, SearchSpace

PRECISION_SETS = st.sampled_from([(32,), (32, 16, 8, 4, 2), (8, 4), (2,), (16, 2)])


@st.composite
def specs(draw: st.DrawFn, name: str = "t") -> EmbeddingSpec:
    rows = draw(st.integers(1, 400))
    width = draw(st.integers(1, 32))
    return EmbeddingSpec(
        name,
        rows,
        width,
        row_blocks=draw(st.none() | st.integers(1, min(rows, 6))),
        col_blocks=draw(st.none() | st.integers(1, min(width, 6))),
        precisions=draw(PRECISION_SETS),
        oov=draw(st.sampled_from(["zero", "zero", "shared", "hash"])),
    )


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    names = draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=4, unique=True))
    chosen = [draw(specs(name)) for name in names]
    mode = draw(st.sampled_from(["multi", "single"]))
    full = SearchSpace(chosen, mode=mode)
    share = draw(st.floats(0, 1))
    least = full.min_parameters
    if least > full.full_parameters:
        return full
    budget = least + int(share * (full.full_parameters - least))
    return SearchSpace(chosen, mode=mode, budget=budget)
