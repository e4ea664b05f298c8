"""The largest table of a feature, and where it may be cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise, repeat
import sys
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from optuna_nis.space.allocation import TableAllocation, Tier
from optuna_nis.space.precision import check_precisions

_ROW_SHARES = (0.05, 0.10, 0.20, 0.30, 0.35)
_SMALL_VOCABULARY = 50
# Neighbouring blocks whose ids are about equally frequent are exchangeable: one block will do.
_FREQUENCY_STEP = 1.5

_REMEMBERED = 2**13

Oov = Literal["zero", "shared", "hash"]
# Numbers of rows that ids without one may share. Of powers of two, ids that share a row of many
# also share one of few.
SHARES: Mapping[str, tuple[int, ...]] = {
    "zero": (0,),
    "shared": (0, 1),
    "hash": (0, 1, 16, 256, 4096),
}


@dataclass(frozen=True, init=False)
class EmbeddingSpec:
    """The largest table considered for one categorical feature, and its cuts into blocks.

    Ids are ranks by frequency in the training data, 0 the most frequent.

    Args:
        name: Name of the feature.
        num_embeddings: Size of the vocabulary.
        embedding_dim: Largest width considered, and the width that the model downstream sees.
        row_blocks: Numbers of rows of the blocks, most frequent first, summing to
            ``num_embeddings``; or a number of blocks of about equal size. By default 5, 10, 20,
            30 and 35 % of the rows, or a single block for fewer than 50 ids.
        col_blocks: Widths of the column blocks, summing to ``embedding_dim``; or a number of
            blocks of about equal width. By default such that the possible widths are 1, 2, 3, 4,
            5, 6, 7, 8, 10, 12 and so on, four for each doubling, and ``embedding_dim`` itself.
        precisions: Bits that the numbers of a row block may have, some of 32, 16, 8, 4 and 2; one
            with less frequent ids never has more.
        mean_counts: How often an id of each row block occurs in the training data on average, if
            that is known. Tables that differ in nothing else are equal.
        oov: What ids without a row give: ``"zero"``, zeros; ``"shared"``, these or one row that
            all of them share; ``"hash"``, these or one of 1, 16, 256 or 4096 rows, by a hash of
            their rank. How many rows is a choice of the search, and they count in the budget.

    Raises:
        ValueError: If a size is not a positive integer, the blocks do not sum to the table, a
            precision or ``oov`` is unknown, or there is not one finite count of 0 or more for each
            row block.

    Example:
        >>> spec = EmbeddingSpec("tailnum", num_embeddings=4043, embedding_dim=32)
        >>> spec.row_blocks
        (202, 404, 809, 1213, 1415)
        >>> spec.widths
        (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
    """

    name: str
    num_embeddings: int
    embedding_dim: int
    row_blocks: tuple[int, ...]
    col_blocks: tuple[int, ...]
    precisions: tuple[int, ...]
    oov: Oov
    mean_counts: tuple[float, ...] | None = field(compare=False, repr=False)

    def __init__(
        self,
        name: str,
        num_embeddings: int,
        embedding_dim: int,
        *,
        row_blocks: int | Sequence[int] | None = None,
        col_blocks: int | Sequence[int] | None = None,
        precisions: Iterable[int] = (32,),
        mean_counts: Sequence[float] | None = None,
        oov: Oov = "zero",
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"`name` must be a non-empty string, got {name!r}.")
        _check_positive("num_embeddings", num_embeddings, name)
        _check_positive("embedding_dim", embedding_dim, name)
        if row_blocks is None:
            rows = _default_row_blocks(num_embeddings)
        else:
            rows = _blocks("row_blocks", row_blocks, num_embeddings, name)
        if col_blocks is None:
            columns = _default_col_blocks(embedding_dim)
        else:
            columns = _blocks("col_blocks", col_blocks, embedding_dim, name)
        for attribute, value in (
            ("name", name),
            ("num_embeddings", int(num_embeddings)),
            ("embedding_dim", int(embedding_dim)),
            ("row_blocks", rows),
            ("col_blocks", columns),
            ("precisions", check_precisions(precisions, name)),
            ("oov", check_oov(oov, name)),
            ("mean_counts", _mean_counts(mean_counts, len(rows), name)),
        ):
            object.__setattr__(self, attribute, value)

    @classmethod
    def from_counts(
        cls,
        name: str,
        counts: Iterable[int],
        embedding_dim: int,
        *,
        col_blocks: int | Sequence[int] | None = None,
        precisions: Iterable[int] = (32,),
        oov: Oov = "zero",
    ) -> EmbeddingSpec:
        """Cut a table where the frequency of its ids changes.

        Starts from the default cuts and drops every cut across which the mean count changes by
        less than a factor of 1.5: ids that are equally frequent have no reason to differ in width.
        The :attr:`mean_counts` of the blocks are kept.

        Args:
            name: Name of the feature.
            counts: Occurrences of every id in the training data, in any order.
            embedding_dim: Largest width considered.
            col_blocks: As in the constructor.
            precisions: As in the constructor.
            oov: As in the constructor.

        Raises:
            ValueError: If a count is negative or there is none.

        Example:
            >>> day = EmbeddingSpec.from_counts("day", [100] * 310, 32)
            >>> day.row_blocks, day.mean_counts
            ((310,), (100.0,))
            >>> zipf = [1_000_000 // (rank + 1) for rank in range(1_000)]
            >>> EmbeddingSpec.from_counts("city", zipf, 32).row_blocks
            (50, 100, 200, 300, 350)
        """
        ordered = np.sort(_checked_counts(name, counts))[::-1]
        rows: list[int] = []
        means: list[float] = []
        for end in accumulate(_default_row_blocks(len(ordered))):
            start = sum(rows)
            mean = float(ordered[start:end].mean())
            if rows and means[-1] <= _FREQUENCY_STEP * mean:
                start -= rows.pop()
                means.pop()
                mean = float(ordered[start:end].mean())
            rows.append(end - start)
            means.append(mean)
        return cls(
            name,
            len(ordered),
            embedding_dim,
            row_blocks=rows,
            col_blocks=col_blocks,
            precisions=precisions,
            mean_counts=means,
            oov=oov,
        )

    @property
    def shares(self) -> tuple[int, ...]:
        """Possible numbers of rows that ids without one share, 0 first.

        Example:
            >>> EmbeddingSpec("user", 1000, 8, row_blocks=[50, 950], oov="hash").shares
            (0, 1, 16, 256)
        """
        left = self.num_embeddings - self.row_blocks[0]
        return (0, *(number for number in SHARES[self.oov][1:] if number < left))

    @property
    def widths(self) -> tuple[int, ...]:
        """Possible widths of a row block, 0 first."""
        return (0, *accumulate(self.col_blocks))

    @property
    def row_cuts(self) -> tuple[int, ...]:
        """Possible numbers of rows, without 0."""
        return tuple(accumulate(self.row_blocks))

    @property
    def num_parameters(self) -> int:
        """Numbers in the full table."""
        return self.num_embeddings * self.embedding_dim

    def table(
        self,
        widths: Iterable[int],
        bits: int | Iterable[int] | None = None,
        num_shared: int = 0,
    ) -> TableAllocation:
        """The table whose row blocks have these widths and precisions.

        Args:
            widths: One for each of the first row blocks; those left out are out of vocabulary. A
                block counts as no wider than those of more frequent ids.
            bits: The same of bits of a number, or one for all; by default the most that the
                feature may have.
            num_shared: Number of rows that ids without one share, if there are as many such ids
                and any row at all.

        Example:
            >>> spec = EmbeddingSpec("user", 10, 4, row_blocks=[2, 3, 5])
            >>> print(spec.table([4, 1, 2]))
            user: 2x4 + 8x1 (of 10x4)
            >>> print(spec.table([4, 1, 2], [8, 8, 2]))
            user: 2x4x8bit + 3x1x8bit + 5x1x2bit (of 10x4)
        """
        if not isinstance(bits, int):
            bits = self.precisions[0] if bits is None else tuple(bits)
        return _table(self, tuple(widths), bits, num_shared)

    def widths_of(self, table: TableAllocation) -> tuple[int, ...]:
        """The width of every row block in a table.

        Raises:
            ValueError: If the table does not follow these cuts.

        Example:
            >>> spec = EmbeddingSpec("user", 10, 4, row_blocks=[2, 3, 5])
            >>> spec.widths_of(spec.table([4, 1]))
            (4, 1, 0)
        """
        return tuple(width for width, _ in self.sizes_of(table))

    def sizes_of(self, table: TableAllocation) -> tuple[tuple[int, int], ...]:
        """The width of every row block in a table, and the bits of its numbers.

        A block without rows has a width of 0 and the least precision of the feature.

        Raises:
            ValueError: If the table does not follow these cuts.

        Example:
            >>> spec = EmbeddingSpec("user", 10, 4, row_blocks=[2, 3, 5], precisions=(8, 2))
            >>> spec.sizes_of(spec.table([4, 1]))
            ((4, 8), (1, 8), (0, 2))
        """
        return _sizes_of(self, table)

    def share_of(self, table: TableAllocation) -> int:
        """The possible number of shared rows that a table has: the least that comes to the same.

        Raises:
            ValueError: If no possible number does.
        """
        left = table.num_embeddings - table.kept if table.tiers else 0
        for number in self.shares:
            if min(number, left) == table.num_shared:
                return number
        raise ValueError(
            f"`allocation` must have a number of shared rows of the space, {self.shares}, got "
            f"{table}."
        )


# Both are asked for every batch of a search, and most often for what they were asked before.
@lru_cache(maxsize=_REMEMBERED)
def _table(
    spec: EmbeddingSpec, widths: tuple[int, ...], bits: int | tuple[int, ...], num_shared: int
) -> TableAllocation:
    tiers: list[Tier] = []
    precisions = repeat(bits) if isinstance(bits, int) else accumulate(bits, min)
    for rows, width, own in zip(spec.row_blocks, accumulate(widths, min), precisions):
        if width == 0:
            break
        if tiers and tiers[-1][1:] == (width, own):
            rows += tiers.pop().num_embeddings
        tiers.append(Tier(rows, width, own))
    left = spec.num_embeddings - sum(tier.num_embeddings for tier in tiers) if tiers else 0
    size = (spec.name, spec.num_embeddings, spec.embedding_dim)
    return TableAllocation(*size, tuple(tiers), min(num_shared, left))


@lru_cache(maxsize=_REMEMBERED)
def _sizes_of(spec: EmbeddingSpec, table: TableAllocation) -> tuple[tuple[int, int], ...]:
    spec.share_of(table)
    starts = [0, *spec.row_cuts]
    ends = list(accumulate(tier.num_embeddings for tier in table.tiers))
    if (
        (table.num_embeddings, table.embedding_dim) != (spec.num_embeddings, spec.embedding_dim)
        or not set(starts).issuperset(ends)
        or not set(spec.widths).issuperset(tier.embedding_dim for tier in table.tiers)
    ):
        raise ValueError(
            f"`allocation` must follow the cuts of the space, rows {spec.row_cuts} and "
            f"widths {spec.widths}, got {table}."
        )
    if not set(spec.precisions).issuperset(tier.bits for tier in table.tiers):
        raise ValueError(
            f"`allocation` must have the precisions of the space, {spec.precisions} bits, got "
            f"{table}."
        )
    sizes = [(0, spec.precisions[-1])] * len(spec.row_blocks)
    for start, end, tier in zip([0, *ends], ends, table.tiers):
        for block in range(starts.index(start), starts.index(end)):
            sizes[block] = (tier.embedding_dim, tier.bits)
    return tuple(sizes)


def check_oov(oov: object, name: str | None = None) -> Oov:
    """What ids without a row may give, of a feature or of all.

    Raises:
        ValueError: If it is unknown.
    """
    for known in get_args(Oov):
        if oov == known:
            found: Oov = known
            return found
    known = ", ".join(f'"{each}"' for each in get_args(Oov))
    of = "" if name is None else f" of {name!r}"
    raise ValueError(f"`oov`{of} must be one of {known}, got {oov!r}.")


def replace_precisions(spec: EmbeddingSpec, precisions: Iterable[int]) -> EmbeddingSpec:
    """The same table with other precisions."""
    return _replaced(spec, precisions, spec.oov)


def replace_oov(spec: EmbeddingSpec, oov: Oov) -> EmbeddingSpec:
    """The same table with something else for ids without a row."""
    return _replaced(spec, spec.precisions, oov)


def _replaced(spec: EmbeddingSpec, precisions: Iterable[int], oov: Oov) -> EmbeddingSpec:
    return EmbeddingSpec(
        spec.name,
        spec.num_embeddings,
        spec.embedding_dim,
        row_blocks=spec.row_blocks,
        col_blocks=spec.col_blocks,
        precisions=precisions,
        mean_counts=spec.mean_counts,
        oov=oov,
    )


def _check_positive(argument: str, value: object, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"`{argument}` of {name!r} must be a positive integer, got {value!r}.")


def _blocks(argument: str, blocks: int | Sequence[int], total: int, name: str) -> tuple[int, ...]:
    if isinstance(blocks, (int, np.integer)):
        if not 1 <= blocks <= total:
            raise ValueError(
                f"`{argument}` of {name!r} must be between 1 and {total} as a number of blocks, "
                f"got {blocks!r}."
            )
        cuts = np.linspace(0, total, int(blocks) + 1).round().astype(int)
        return tuple(int(size) for size in np.diff(cuts))
    sizes = tuple(blocks)
    for size in sizes:
        _check_positive(argument, size, name)
    if sum(sizes) != total:
        raise ValueError(f"`{argument}` of {name!r} must sum to {total}, got {list(sizes)}.")
    return tuple(int(size) for size in sizes)


def _mean_counts(
    means: Sequence[float] | None, num_blocks: int, name: str
) -> tuple[float, ...] | None:
    if means is None:
        return None
    means = tuple(means)
    if len(means) != num_blocks or not all(
        isinstance(mean, (int, float, np.number))
        and not isinstance(mean, bool)
        and 0 <= mean <= sys.float_info.max
        for mean in means
    ):
        raise ValueError(
            f"`mean_counts` of {name!r} must hold {num_blocks} finite numbers of 0 or more, one "
            f"for each row block, got {list(means)}."
        )
    return tuple(map(float, means))


def _default_row_blocks(num_embeddings: int) -> tuple[int, ...]:
    if num_embeddings < _SMALL_VOCABULARY:
        return (int(num_embeddings),)
    cuts = [round(share * num_embeddings) for share in accumulate((0.0, *_ROW_SHARES))]
    return tuple(b - a for a, b in pairwise(cuts))


def _default_col_blocks(embedding_dim: int) -> tuple[int, ...]:
    octaves = range(int(embedding_dim).bit_length())
    steps = {width * 2**n for n in octaves for width in range(1, 8)}
    widths = [0, *sorted(w for w in steps if w < embedding_dim), int(embedding_dim)]
    return tuple(b - a for a, b in pairwise(widths))


def _checked_counts(name: str, counts: Any) -> NDArray[np.int64]:
    """The occurrences of ids.

    Raises:
        ValueError: If they are not whole numbers, at least one and none negative.
    """
    if isinstance(counts, Mapping):
        raise ValueError(
            f"`counts` of {name!r} must be the occurrences alone, of each id a number, got a "
            f"{type(counts).__name__}: give its `.values()`."
        )
    is_listed = isinstance(counts, np.ndarray) or not isinstance(counts, Iterable)
    given = np.asarray(counts if is_listed else list(counts))
    is_number = given.dtype.kind in "iuf" and given.ndim == 1 and given.size > 0
    if not is_number or not ((given >= 0) & (given < 2**63) & (given % 1 == 0)).all():
        raise ValueError(
            f"`counts` of {name!r} must be at least one whole number in one dimension, none "
            f"negative, got {str(given.ravel()[:5].tolist())[:80]} of shape {given.shape}."
        )
    return given.astype(np.int64)
