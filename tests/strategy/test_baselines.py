from __future__ import annotations

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import pytest

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.strategy.baselines import frequent_ids, mixed_dimensions, rule_of_thumb, uniform


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
    with pytest.raises(ValueError, match="too few for widths of 1, which take 7,920"):
        rule_of_thumb(space)


def test_a_cell_of_the_grid_of_widths_and_rows() -> None:
    space = SearchSpace([EmbeddingSpec("a", 1000, 16), EmbeddingSpec("b", 40, 16)], budget=0.1)
    found = uniform(space, width=8, max_embeddings=100, projected=True)
    assert str(found).splitlines() == ["a: 100x8 (of 1000x16)", "b: 40x8 (of 40x16)"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "`width` must be an integer between 1 and 16, got 0"),
        ({"width": 17}, "`width` must be an integer between 1 and 16, got 17"),
        ({"width": 1.5}, "`width` must be an integer between 1 and 16, got 1.5"),
        ({"width": "8"}, "`width` must be an integer between 1 and 16, got '8'"),
        ({"max_embeddings": 0}, "`max_embeddings` must be an integer of at least 1, got 0"),
    ],
)
def test_uniform_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        uniform(SearchSpace([EmbeddingSpec("a", 1000, 16)]), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1}, r"`alpha` must be a number in \[0, 10\), got -1"),
        ({"alpha": 1e9}, "`alpha` must be a number in"),
        ({"alpha": math.nan}, "`alpha` must be a number in"),
        ({"counts": [1, 2, 3]}, "`counts` must be the occurrences of each id for every feature"),
        ({"counts": {"a": [1]}}, "`counts` must hold 3 numbers for 'a', got 1"),
        (
            {"counts": {"a": [[1, 2, 3]]}},
            r"`counts` must hold 3 numbers for 'a', got shape \(1, 3",
        ),
        ({"counts": {"a": [3, 2, -1]}}, "`counts` of 'a' must be numbers of 0 or more"),
        ({"counts": {"a": ["x", "y", "z"]}}, "`counts` of 'a' must be numbers of 0 or more"),
    ],
)
def test_mixed_dimensions_refuse(options: dict[str, Any], message: str) -> None:
    options = {"counts": {"a": [3, 2, 1]}, **options}
    with pytest.raises(ValueError, match=message):
        mixed_dimensions(SearchSpace([EmbeddingSpec("a", 3, 16)]), **options)


def test_rule_of_thumb_without_a_tight_budget_is_the_rule() -> None:
    space = SearchSpace([EmbeddingSpec("a", 1000, 128), EmbeddingSpec("b", 2, 128)])
    scale = 128 / round(1.6 * 1000**0.56)
    widths = {name: table.tiers[0].embedding_dim for name, table in rule_of_thumb(space).items()}
    assert widths["a"] == 128  # scaled up to what the tables allow
    assert widths["b"] >= round(1.6 * 2**0.56) * int(scale)


@given(share=st.floats(0.1, 1.0), alpha=st.floats(0.0, 1.0))
def test_mixed_dimensions_use_the_budget(share: float, alpha: float) -> None:
    specs = [EmbeddingSpec("a", 3000, 32), EmbeddingSpec("b", 40, 32)]
    space = SearchSpace(specs, budget=share)
    counts = {"a": range(3000), "b": [7] * 40}
    found = mixed_dimensions(space, counts, alpha)
    assert found.num_parameters <= space.budget
    widths = [tier.embedding_dim for tier in found["a"].tiers]
    assert widths == sorted(widths, reverse=True)
    assert min(widths) >= 1
    assert found["a"].kept == 3000
    if alpha == 0:
        assert len(widths) == 1


@given(share=st.floats(0.06, 1.0), alpha=st.floats(0.0, 1.0))
def test_mixed_dimensions_on_the_grid_are_choices_of_the_space(share: float, alpha: float) -> None:
    specs = [EmbeddingSpec("a", 3000, 32), EmbeddingSpec("b", 40, 32)]
    space = SearchSpace(specs, budget=share)
    counts = {"a": range(3000), "b": [7] * 40}
    found = mixed_dimensions(space, counts, alpha, on_grid=True)
    assert found.num_parameters <= space.budget
    assert space.allocation(space.params(found)) == found


def test_mixed_dimensions_on_the_grid_take_the_nearest_widths() -> None:
    spec = EmbeddingSpec("a", 500, 16, row_blocks=[100, 400], col_blocks=[6, 2, 8])
    space = SearchSpace([spec], budget=100 * 16 + 400 * 6 + 16 * 16)
    counts = {"a": [17] * 100 + [10] * 400}
    found = mixed_dimensions(space, counts, alpha=1.0, on_grid=True)
    # 11.4 is nearer to 16 than to 8. Rounded down, both blocks would have 8.
    assert [tier.embedding_dim for tier in found["a"].tiers] == [16, 6]


def test_mixed_dimensions_know_the_counts_of_the_space() -> None:
    counts = {"a": [9000 // (rank + 1) for rank in range(3000)], "b": [7] * 40}
    specs = [EmbeddingSpec.from_counts(name, own, 32) for name, own in counts.items()]
    space = SearchSpace(specs, budget=0.25)
    for alpha in (0.0, 0.3, 0.5, 1.0):
        assert mixed_dimensions(space, alpha=alpha) == mixed_dimensions(space, counts, alpha)
    space = SearchSpace([specs[0], EmbeddingSpec("b", 40, 32)])
    with pytest.raises(ValueError, match=r"`counts` must be given, .* not know those of 'b'"):
        mixed_dimensions(space)


def test_mixed_dimensions_need_all_counts() -> None:
    space = SearchSpace([EmbeddingSpec("a", 1000, 16), EmbeddingSpec("b", 40, 16)])
    message = "`counts` must hold 40 numbers for 'b', got 0"
    with pytest.raises(ValueError, match=message):
        mixed_dimensions(space, {"a": range(1000)})


@given(share=st.floats(0.07, 1.0), full_width=st.booleans())
def test_frequent_ids_are_choices_of_the_space(share: float, full_width: bool) -> None:
    specs = [EmbeddingSpec("a", 3000, 32), EmbeddingSpec("b", 40, 16)]
    space = SearchSpace(specs, budget=share)
    found = frequent_ids(space, full_width=full_width)
    assert 0 < found.num_parameters <= space.budget
    assert space.allocation(space.params(found)) == found
    (wide,), (narrow,) = ([tier.embedding_dim for tier in t.tiers] for t in found.values())
    assert wide == 2 * narrow or wide == narrow == 1
    if full_width:
        assert wide == 32
    elif found["a"].kept > specs[0].row_blocks[0]:
        kept = sum(table.kept for table in found.values())
        assert wide / 32 >= 2 * kept / 3040


def test_frequent_ids_are_as_many_as_the_budget_allows() -> None:
    specs = [EmbeddingSpec(n, 100, 4, row_blocks=[20, 30, 50]) for n in "ab"]
    specs.append(EmbeddingSpec("c", 5, 4, row_blocks=[5]))
    space = SearchSpace(specs, budget=4 * (50 + 50 + 5))
    assert [table.kept for table in frequent_ids(space).values()] == [50, 50, 5]
    less = space.with_budget(space.budget - 1)
    assert [table.kept for table in frequent_ids(less).values()] == [20, 20, 5]
    with pytest.raises(ValueError, match=r"budget of 716 bytes, .* full width, .* take 720"):
        frequent_ids(space.with_budget(179))


def test_narrower_frequent_ids_are_more() -> None:
    spec = EmbeddingSpec("a", 100, 32, row_blocks=[5, 10, 20, 65])
    budgets = {160: (5, 32), 469: (5, 32), 470: (15, 10), 480: (15, 32), 1120: (35, 32)}
    for budget, (kept, width) in budgets.items():
        (table,) = frequent_ids(SearchSpace([spec], budget=budget), full_width=False).values()
        assert (table.kept, table.tiers[0].embedding_dim) == (kept, width)


def test_narrower_frequent_ids_at_tiny_budgets() -> None:
    specs = [EmbeddingSpec(n, 100, 4, row_blocks=[100], col_blocks=[2, 2]) for n in "ab"]
    space = SearchSpace(specs, budget=416)
    assert [str(t) for t in frequent_ids(space, full_width=False).values()] == [
        "a: 100x2 (of 100x4)",
        "b: 100x2 (of 100x4)",
    ]
    with pytest.raises(ValueError, match=r"budget of 1,660 bytes, .* any width, .* take 1,664"):
        frequent_ids(space.with_budget(415), full_width=False)
