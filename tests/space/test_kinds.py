"""What is of another kind than it should be is named, with what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from optuna_nis import Allocation, EmbeddingSpec, SearchSpace, TableAllocation
from optuna_nis.space.constraint import AdditiveBudget

SPEC = EmbeddingSpec("u", 10, 8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SearchSpace(SPEC), r"`specs` must be a sequence of `EmbeddingSpec`, got Emb"),  # type: ignore[arg-type]
        (lambda: SearchSpace(5), "`specs` must be a sequence of `EmbeddingSpec`, got 5"),  # type: ignore[arg-type]
        (lambda: SearchSpace("u"), "`specs` must be .*, got 'u'"),  # type: ignore[arg-type]
        (lambda: SearchSpace({"u": SPEC}), "`specs` must be .*, got one with 'u'"),  # type: ignore[arg-type]
        (lambda: Allocation([SPEC]), "`tables` must be a sequence of `TableAllocation`, got one"),  # type: ignore[list-item]
        (lambda: Allocation(None), "`tables` must be .*, got None"),  # type: ignore[arg-type]
        (lambda: TableAllocation("u", 10, 8, 5), "`tiers` of 'u' must be a sequence of `Tier`"),  # type: ignore[arg-type]
        (lambda: TableAllocation("u", 10, 8, (5,)), r"`tiers` of 'u' must be .*, got \(5,\)"),  # type: ignore[arg-type]
        (lambda: AdditiveBudget(1, 5), "`costs` must be a mapping, got 5"),  # type: ignore[arg-type]
        (lambda: AdditiveBudget(1, {"a": [1]}), r"`costs\['a'\]` must be a mapping, got \[1\]"),  # type: ignore[dict-item]
    ],
)
def test_kinds(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EmbeddingSpec.from_counts("u", 5, 8), "`counts` of 'u' must be .*, got .5. of"),  # type: ignore[arg-type]
        (
            lambda: EmbeddingSpec.from_counts("u", None, 8),
            "`counts` of 'u' must be .*, got .None.",
        ),  # type: ignore[arg-type]
        (
            lambda: AdditiveBudget("5", {"a": {"x": 1}}),
            "`limit` must be finite and at least 1, .*got '5'",
        ),  # type: ignore[arg-type]
        (lambda: AdditiveBudget(5, {"a": {"x": "q"}}), r"`costs\['a'\]\['x'\]` must be finite"),  # type: ignore[dict-item]
    ],
)
def test_numbers(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
