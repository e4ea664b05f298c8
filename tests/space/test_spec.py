from __future__ import annotations

from collections import Counter
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec, replace_precisions


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=300))
def test_cuts_from_counts(counts: list[int]) -> None:
    spec = EmbeddingSpec.from_counts("t", counts, 8)
    assert spec.num_embeddings == len(counts) == sum(spec.row_blocks)
    assert len(spec.row_blocks) <= 5
    start = 0
    means = []
    ordered = np.sort(counts)[::-1]
    for rows in spec.row_blocks:
        means.append(float(ordered[start : start + rows].mean()))
        start += rows
    assert spec.mean_counts == tuple(means)
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize(
    ("dim", "widths"),
    [
        (1, (0, 1)),
        (2, (0, 1, 2)),
        (3, (0, 1, 2, 3)),
        (7, (0, 1, 2, 3, 4, 5, 6, 7)),
        (8, (0, 1, 2, 3, 4, 5, 6, 7, 8)),
        (33, (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 33)),
    ],
)
def test_default_widths_are_four_for_each_doubling_and_the_full_width(
    dim: int, widths: tuple[int, ...]
) -> None:
    assert EmbeddingSpec("t", 10, dim).widths == widths


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": ""}, "`name` must be a non-empty string"),
        ({"name": 3}, "`name` must be a non-empty string, got 3"),
        ({"num_embeddings": 0}, "`num_embeddings` of 't' must be a positive integer, got 0"),
        ({"num_embeddings": 5.0}, "`num_embeddings` of 't' must be a positive integer"),
        ({"embedding_dim": -1}, "`embedding_dim` of 't' must be a positive integer, got -1"),
        ({"embedding_dim": True}, "`embedding_dim` of 't' must be a positive integer"),
        ({"row_blocks": 11}, "`row_blocks` of 't' must be between 1 and 10"),
        ({"row_blocks": 0}, "`row_blocks` of 't' must be between 1 and 10"),
        ({"row_blocks": [5, 4]}, r"`row_blocks` of 't' must sum to 10, got \[5, 4\]"),
        ({"row_blocks": [10, 0]}, "`row_blocks` of 't' must be a positive integer, got 0"),
        ({"row_blocks": []}, r"`row_blocks` of 't' must sum to 10, got \[\]"),
        ({"col_blocks": 9}, "`col_blocks` of 't' must be between 1 and 8"),
        ({"col_blocks": [1, 1]}, "`col_blocks` of 't' must sum to 8"),
        ({"mean_counts": []}, "`mean_counts` of 't' must hold 1 finite numbers .* got \\[\\]"),
        ({"mean_counts": [2.0, 1.0]}, "`mean_counts` of 't' must hold 1 finite numbers"),
        ({"mean_counts": [-1]}, "`mean_counts` of 't' must hold 1 finite numbers of 0 or more"),
        ({"mean_counts": [float("nan")]}, "`mean_counts` of 't' must hold 1 finite numbers"),
        ({"mean_counts": [float("inf")]}, "`mean_counts` of 't' must hold 1 finite numbers"),
        ({"mean_counts": [10**400]}, "`mean_counts` of 't' must hold 1 finite numbers"),
        ({"mean_counts": "5"}, "`mean_counts` of 't' must hold 1 finite numbers .* got \\['5'\\]"),
        ({"mean_counts": [True]}, "`mean_counts` of 't' must hold 1 finite numbers"),
        ({"precisions": ()}, r"`precisions` of 't' must hold some of .*, got \[\]"),
        ({"precisions": (8, 8)}, r"each once, got \[8, 8\]"),
        ({"precisions": 3}, r"each once, got \[3\]"),
        ({"precisions": None}, r"each once, got \[None\]"),
        ({"precisions": "8,4"}, r"each once, got \['8,4'\]"),
        ({"precisions": [[8]]}, r"each once, got \[\[8\]\]"),
    ],
)
def test_a_spec_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EmbeddingSpec(**{"name": "t", "num_embeddings": 10, "embedding_dim": 8, **arguments})


@pytest.mark.parametrize("precisions", [8, np.int64(8), [8], np.array([8]), {8}])
def test_a_single_precision_may_be_a_number(precisions: Any) -> None:
    spec = EmbeddingSpec("t", 10, 8, precisions=precisions)
    assert spec.precisions == (8,)
    assert type(spec.precisions[0]) is int
    assert SearchSpace([EmbeddingSpec("t", 10, 8)]).with_precisions(precisions).specs == (spec,)


def test_counts_make_no_other_table() -> None:
    plain = EmbeddingSpec("t", 10, 8, row_blocks=[2, 8])
    counted = EmbeddingSpec("t", 10, 8, row_blocks=[2, 8], mean_counts=np.array([7, 0]))
    assert counted.mean_counts == (7.0, 0.0)
    assert plain.mean_counts is None
    assert counted == plain
    assert hash(counted) == hash(plain)
    assert repr(counted) == repr(plain)


def test_a_table_of_row_blocks_never_grows_in_width() -> None:
    spec = EmbeddingSpec("t", 10, 8, row_blocks=[1, 2, 3, 4])
    table = spec.table([4, 8, 2])
    assert table.tiers == ((3, 4, 32), (3, 2, 32))
    assert spec.widths_of(table) == (4, 4, 2, 0)
    assert spec.table([0, 8]).tiers == ()


def test_numbers_of_shared_rows() -> None:
    def shares(oov: Any, rows: int) -> tuple[int, ...]:
        return EmbeddingSpec("t", rows, 8, row_blocks=[10, rows - 10], oov=oov).shares

    assert shares("zero", 10_000) == (0,)
    assert shares("shared", 10_000) == (0, 1)
    assert shares("hash", 10_000) == (0, 1, 16, 256, 4096)
    # Fewer than the ids that share them.
    assert shares("hash", 26) == (0, 1)
    assert shares("hash", 27) == (0, 1, 16)
    assert EmbeddingSpec("t", 10, 8, row_blocks=1, oov="hash").shares == (0,)
    with pytest.raises(ValueError, match=r"`oov` of 't' must be one of \"zero\", .*, got 'mean'"):
        shares("mean", 30)


def test_shared_rows_of_tables() -> None:
    spec = EmbeddingSpec("t", 100, 8, row_blocks=[10, 80, 10], oov="hash")
    some, few = spec.table([8, 4], num_shared=16), spec.table([8], num_shared=16)
    # Of no more rows than there are ids to share them; of none without any other row.
    assert (some.num_shared, few.num_shared) == (10, 16)
    assert (spec.share_of(some), spec.share_of(few)) == (16, 16)
    assert spec.table([], num_shared=16).num_shared == 0
    assert spec.table([8, 4, 4], num_shared=16).num_shared == 0
    assert spec.sizes_of(some) == ((8, 32), (4, 32), (0, 32))
    assert replace_precisions(spec, (8,)).oov == "hash"
    assert spec != EmbeddingSpec("t", 100, 8, row_blocks=[10, 80, 10])
    with pytest.raises(ValueError, match=r"shared rows of the space, \(0,\), got t: 10x"):
        EmbeddingSpec("t", 100, 8, row_blocks=[10, 80, 10]).sizes_of(few)
    counted = EmbeddingSpec.from_counts("t", range(1000), 8, oov="shared")
    assert counted.shares == (0, 1)


def test_only_features_that_share_need_the_new_file() -> None:
    plain, sharing = EmbeddingSpec("a", 100, 8), EmbeddingSpec("b", 100, 8, oov="shared")
    for specs, version in (([plain], 3), ([plain, sharing], 4)):
        space = SearchSpace(specs)
        data = json.loads(space.to_json())
        assert data["version"] == version
        assert all(("oov" in spec) == (version == 4) for spec in data["specs"])
        assert SearchSpace.from_json(space.to_json()) == space


@pytest.mark.parametrize(
    "counts",
    [Counter("aab"), {"a": 2}, [1.5, 2.0], [[1, 2], [3, 4]], [float("nan"), 1.0], ["1", "2"], [],
     [2**63], [3, -1]],
)  # fmt: skip
def test_counts_are_whole_numbers_in_a_row(counts: Any) -> None:
    with pytest.raises(ValueError, match="`counts` of 'x' must be"):
        EmbeddingSpec.from_counts("x", counts, 8)


def test_counts_of_any_numbers_that_are_whole() -> None:
    for counts in ([3.0, 1.0, 2.0], Counter("aaabcc").values(), np.array([3, 1, 2], np.uint8)):
        spec = EmbeddingSpec.from_counts("x", counts, 8)
        assert spec.num_embeddings == 3
        assert sum(r * n for r, n in zip(spec.row_blocks, spec.mean_counts or ())) == 6
