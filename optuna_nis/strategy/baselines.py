"""Sizes that a practitioner would try by hand, at the same budget as a search."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optuna_nis._checks import check_integer, check_number
from optuna_nis.space.allocation import Allocation, TableAllocation, Tier
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec

# Share of the columns for each share of the ids: few ids that are wide enough are worth more than
# more of them.
_MIN_COLUMNS_PER_ID = 2.0
# Beyond such a power of the popularity a few ids have all columns anyway.
_MOST_ALPHA = 10


def uniform(
    space: SearchSpace,
    *,
    width: int | None = None,
    max_embeddings: int | None = None,
    projected: bool = False,
) -> Allocation:
    """The same width for every row of every feature.

    Args:
        space: Tables and budget.
        width: The width; :obj:`None` takes the largest that the budget allows. Where the budget
            does not even allow a width of 1, the least frequent ids of every feature are out of
            vocabulary.
        max_embeddings: Rows that a feature keeps at most, the most frequent ones.
        projected: Whether rows are projected to the width of the full tables, which costs
            projections, or the model downstream sees them as they are.

    Raises:
        ValueError: If an argument is out of range, or the budget leaves no room for a width of 1
            with its projections.

    Example:
        >>> from optuna_nis import EmbeddingSpec
        >>> space = SearchSpace([EmbeddingSpec("user", 1000, 32)], budget=0.25)
        >>> print(uniform(space))
        user: 1000x8 (of 1000x8)
        >>> print(uniform(space, projected=True))
        user: 1000x7 (of 1000x32)
        >>> print(uniform(space, width=16, max_embeddings=200))
        user: 200x16 (of 1000x16)
    """
    widest = max(spec.embedding_dim for spec in space.specs)
    for name, value, high in (("width", width, widest), ("max_embeddings", max_embeddings, None)):
        if value is not None:
            check_integer(name, value, 1, high)

    def of(width: int, coverage: float) -> Allocation:
        return Allocation(
            _uniform(spec, width, coverage, max_embeddings, projected) for spec in space.specs
        )

    if width is not None:
        return of(width, 1.0)
    for candidate in range(widest, 0, -1):
        allocation = of(candidate, 1.0)
        if space.fits(allocation):
            return allocation
    coverage = _largest(lambda share: space.fits(of(1, share)), 1.0)
    allocation = of(1, coverage)
    if allocation.num_parameters == 0:
        raise ValueError(
            f"`space` has a budget of {space.budget_nbytes:,} bytes, too few for uniform "
            f"embeddings of width 1{' with their projections' if projected else ''}."
        )
    return allocation


def rule_of_thumb(space: SearchSpace) -> Allocation:
    """Widths by the number of ids, ``min(600, round(1.6 * num_embeddings**0.56))``, scaled.

    The rule is that of fast.ai. All widths are multiplied by the largest common factor that the
    budget allows, and are at least 1.

    Args:
        space: Tables and budget.

    Raises:
        ValueError: If the budget leaves no room for a width of 1.

    Example:
        >>> from optuna_nis import EmbeddingSpec
        >>> specs = [EmbeddingSpec("user", 1000, 32), EmbeddingSpec("city", 40, 32)]
        >>> print(rule_of_thumb(SearchSpace(specs, budget=0.5)))
        user: 1000x15 (of 1000x32)
        city: 40x2 (of 40x32)
    """

    def of(scale: float) -> Allocation:
        tables = []
        for spec in space.specs:
            rule = min(600, round(1.6 * spec.num_embeddings**0.56))
            width = min(spec.embedding_dim, max(1, int(scale * rule)))
            tables.append(spec.table([width] * len(spec.row_blocks)))
        return Allocation(tables)

    return _scaled(of, space)


def mixed_dimensions(
    space: SearchSpace,
    counts: Mapping[str, Sequence[int] | NDArray[np.integer[Any]]] | None = None,
    alpha: float = 0.3,
    *,
    on_grid: bool = False,
) -> Allocation:
    """Widths that grow with the popularity of the rows, as a power.

    A row block of a feature has a width proportional to ``p**alpha``, where ``p`` is how often one
    of its ids occurs on average (Ginart et al., 2019, "Mixed Dimension Embeddings"). The common
    factor is the largest that the budget allows; widths are at least 1.

    Args:
        space: Tables and budget.
        counts: For every feature, the occurrences of each id in the training data, in any order;
            by default the mean counts that the space knows.
        alpha: The power; 0 gives uniform widths.
        on_grid: Whether only widths of the space are used, the nearest by their ratio, which makes
            the result one of the choices of a space of ``mode="multi"``.

    Raises:
        ValueError: If the counts of a feature are unknown, of another length or negative, the
            power is out of range, or the budget leaves no room for a width of 1.

    Example:
        >>> from optuna_nis import EmbeddingSpec
        >>> spec = EmbeddingSpec("user", 1000, 32, row_blocks=[100, 900])
        >>> counts = {"user": [90] * 100 + [10] * 900}
        >>> space = SearchSpace([spec], budget=0.5)
        >>> print(mixed_dimensions(space, counts, alpha=0.5))
        user: 100x32 + 900x13 (of 1000x32)
        >>> print(mixed_dimensions(space, counts, alpha=0.5, on_grid=True))
        user: 100x32 + 900x12 (of 1000x32)
    """
    check_number("alpha", alpha, 0, _MOST_ALPHA)
    if not isinstance(counts, Mapping | None):
        raise ValueError(
            f"`counts` must be the occurrences of each id for every feature, got {counts!r:.80}."
        )
    popularity = {spec.name: _popularity(spec, counts) for spec in space.specs}

    def of(scale: float) -> Allocation:
        return Allocation(
            spec.table([width(spec, scale * p**alpha) for p in popularity[spec.name]])
            for spec in space.specs
        )

    def width(spec: EmbeddingSpec, wanted: float) -> int:
        if not on_grid:
            return min(max(int(wanted), 1), spec.embedding_dim)
        known = spec.widths[1:]
        index = bisect_right(known, wanted)
        narrower, wider = known[max(index - 1, 0)], known[min(index, len(known) - 1)]
        return narrower if wanted**2 < narrower * wider else wider

    return _scaled(of, space)


def frequent_ids(space: SearchSpace, *, full_width: bool = True) -> Allocation:
    """The most frequent ids of every feature at one width, all others out of vocabulary.

    Of every feature the same number of row blocks is kept, which by default are the same shares of
    its ids; of features with fewer blocks, all. It is the largest number that the budget allows.

    Args:
        space: Tables and budget.
        full_width: Whether the ids have all columns. Otherwise more ids have the largest share of
            the columns that the budget allows, but at least twice their own share of all ids.

    Raises:
        ValueError: If the budget leaves no room for the first row block of every feature.

    Example:
        >>> from optuna_nis import EmbeddingSpec
        >>> space = SearchSpace([EmbeddingSpec("user", 1000, 32), EmbeddingSpec("city", 40, 32)],
        ...     budget=0.13)
        >>> print(frequent_ids(space))
        user: 50x32 (of 1000x32)
        city: 40x32 (of 40x32)
        >>> print(frequent_ids(space, full_width=False))
        user: 150x16 (of 1000x32)
        city: 40x16 (of 40x32)
    """
    num_ids = sum(spec.num_embeddings for spec in space.specs)
    every = {width / spec.embedding_dim for spec in space.specs for width in spec.widths[1:]}
    shares = [1.0] if full_width else sorted(every, reverse=True)

    def width(spec: EmbeddingSpec, share: float) -> int:
        # A share of the columns may have been rounded down.
        columns = share * spec.embedding_dim + 1e-6
        return max(spec.widths[1], *(width for width in spec.widths if width <= columns))

    def of(blocks: int, share: float) -> Allocation:
        return Allocation(spec.table([width(spec, share)] * blocks) for spec in space.specs)

    for blocks in range(max(len(spec.row_blocks) for spec in space.specs), 0, -1):
        kept = sum(sum(spec.row_blocks[:blocks]) for spec in space.specs)
        least = 0.0 if full_width or blocks == 1 else _MIN_COLUMNS_PER_ID * kept / num_ids
        for share in shares:
            if share < least:
                break
            allocation = of(blocks, share)
            if space.fits(allocation):
                return allocation
    raise ValueError(
        f"`space` has a budget of {space.budget_nbytes:,} bytes, too few for the first row block "
        f"of every feature at {'full' if full_width else 'any'} width, which take "
        f"{of(1, shares[-1]).nbytes():,}."
    )


def _popularity(
    spec: EmbeddingSpec,
    counts: Mapping[str, Sequence[int] | NDArray[np.integer[Any]]] | None,
) -> list[float]:
    if counts is None:
        if spec.mean_counts is None:
            raise ValueError(
                f"`counts` must be given, as the space does not know those of {spec.name!r}."
            )
        means = spec.mean_counts
    else:
        own = np.asarray(counts.get(spec.name, ()))
        if own.shape != (spec.num_embeddings,):
            raise ValueError(
                f"`counts` must hold {spec.num_embeddings} numbers for {spec.name!r}, "
                f"got {len(own) if own.ndim == 1 else f'shape {own.shape}'}."
            )
        if own.dtype.kind not in "iuf" or not (np.isfinite(own) & (own >= 0)).all():
            raise ValueError(
                f"`counts` of {spec.name!r} must be numbers of 0 or more, got "
                f"{own.tolist()!r:.80}."
            )
        ordered = np.sort(own)[::-1]
        cuts = pairwise([0, *spec.row_cuts])
        means = tuple(float(ordered[start:end].mean()) for start, end in cuts)
    return [max(mean, 1e-9) for mean in means]


def _uniform(
    spec: EmbeddingSpec, width: int, coverage: float, max_embeddings: int | None, projected: bool
) -> TableAllocation:
    rows = min(int(coverage * spec.num_embeddings), max_embeddings or spec.num_embeddings)
    dim = min(width, spec.embedding_dim)
    output = spec.embedding_dim if projected else dim
    tiers = (Tier(rows, dim, spec.precisions[0]),) if rows else ()
    return TableAllocation(spec.name, spec.num_embeddings, output, tiers)


def _scaled(of: Callable[[float], Allocation], space: SearchSpace) -> Allocation:
    smallest = of(0.0)
    if not space.fits(smallest):
        raise ValueError(
            f"`space` has a budget of {space.budget_nbytes:,} bytes, too few for widths of 1, "
            f"which take {smallest.nbytes():,}."
        )
    return of(_largest(lambda scale: space.fits(of(scale)), 1e6))


def _largest(fits: Callable[[float], bool], high: float) -> float:
    """The largest number up to ``high`` that fits, where 0 does and smaller ones fit better."""
    low = 0.0
    if fits(high):
        return high
    for _ in range(80):
        middle = math.sqrt(low * high) if low > 0 else high / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
