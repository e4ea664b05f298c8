from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
import pytest

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.baselines import uniform


@given(share=st.floats(0.05, 1.0), projected=st.booleans())
def test_within_the_budget_and_no_wider_fits(share: float, projected: bool) -> None:
    specs = [EmbeddingSpec("a", 3000, 16), EmbeddingSpec("b", 500, 16)]
    space = SearchSpace(specs, budget=share)
    found = uniform(space, projected=projected)
    assert found.num_parameters <= space.budget
    width = found["a"].tiers[0].embedding_dim
    assert {table.tiers[0].embedding_dim for table in found.values()} == {width}
    projections = 2 * (width + 1) * 16 if projected and width + 1 < 16 else 0
    if found["a"].kept == 3000:
        assert width == 16 or (width + 1) * 3500 + projections > space.budget


def test_tiny_budgets_cut_the_vocabulary() -> None:
    space = SearchSpace([EmbeddingSpec("a", 1000, 16)], budget=500)
    assert str(uniform(space)) == "a: 500x1 (of 1000x1)"
    specs = [EmbeddingSpec(name, 900, 90, row_blocks=900) for name in "ab"]
    space = SearchSpace(specs, budget=100)
    with pytest.raises(ValueError, match="too few for uniform embeddings of width 1 with their"):
        uniform(space, projected=True)
