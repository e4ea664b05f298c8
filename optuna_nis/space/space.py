"""The search space: embedding tables cut into blocks, of which a choice keeps some.

Two ways to read the same grid of blocks (Joglekar et al., 2020, section 3):

* ``mode="multi"`` (multi-size embedding): every row block has a width of its own, never wider
  than the block of more frequent ids before it;
* ``mode="single"`` (single-size embedding): every feature has one number of rows and one width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
import json
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from optuna.trial import BaseTrial

from optuna_nis.space.allocation import Allocation, TableAllocation, Tier
from optuna_nis.space.budget import BoolArray, Choice, IntArray, Walk, parse_budget, tilt_to_budget

Mode = Literal["multi", "single"]
FloatArray = NDArray[np.float64]

_ROW_SHARES = (0.05, 0.10, 0.20, 0.30, 0.35)
# Costs are exact as 64-bit integers and as floats.
_MOST_PARAMETERS = 2**53
_LARGEST_DIM = 2**20
_SMALL_VOCABULARY = 50
# Neighbouring blocks whose ids are about equally frequent are exchangeable: one block will do.
_FREQUENCY_STEP = 1.5
_JSON_VERSION = 1


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

    Raises:
        ValueError: If a size is not a positive integer or the blocks do not sum to the table.

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

    def __init__(
        self,
        name: str,
        num_embeddings: int,
        embedding_dim: int,
        *,
        row_blocks: int | Sequence[int] | None = None,
        col_blocks: int | Sequence[int] | None = None,
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
        for field, value in (
            ("name", name),
            ("num_embeddings", int(num_embeddings)),
            ("embedding_dim", int(embedding_dim)),
            ("row_blocks", rows),
            ("col_blocks", columns),
        ):
            object.__setattr__(self, field, value)

    @classmethod
    def from_counts(
        cls,
        name: str,
        counts: Iterable[int],
        embedding_dim: int,
        *,
        col_blocks: int | Sequence[int] | None = None,
    ) -> EmbeddingSpec:
        """Cut a table where the frequency of its ids changes.

        Starts from the default cuts and drops every cut across which the mean count changes by
        less than a factor of 1.5: ids that are equally frequent have no reason to differ in width.

        Args:
            name: Name of the feature.
            counts: Occurrences of every id in the training data, in any order.
            embedding_dim: Largest width considered.
            col_blocks: As in the constructor.

        Raises:
            ValueError: If a count is negative or there is none.

        Example:
            >>> EmbeddingSpec.from_counts("day", [100] * 310, 32).row_blocks
            (310,)
            >>> zipf = [1_000_000 // (rank + 1) for rank in range(1_000)]
            >>> EmbeddingSpec.from_counts("city", zipf, 32).row_blocks
            (50, 100, 200, 300, 350)
        """
        ordered = np.sort(np.asarray(list(counts), dtype=np.int64))[::-1]
        if ordered.size == 0 or ordered[-1] < 0:
            raise ValueError(
                f"`counts` of {name!r} must be at least one number, none negative, "
                f"got {ordered[::-1][:5].tolist()}."
            )
        rows: list[int] = []
        start = 0
        previous = np.inf
        for size in _default_row_blocks(len(ordered)):
            mean = float(ordered[start : start + size].mean())
            if rows and previous <= _FREQUENCY_STEP * mean:
                rows[-1] += size
                merged = ordered[start + size - rows[-1] : start + size]
                previous = float(merged.mean())
            else:
                rows.append(size)
                previous = mean
            start += size
        return cls(name, len(ordered), embedding_dim, row_blocks=rows, col_blocks=col_blocks)

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


class SearchSpace:
    """Every embedding that a model could have, as a categorical Optuna search space.

    In ``mode="multi"`` there is one parameter for every row block: its width. It is named after
    the feature and, where the feature has several blocks, the rows it speaks of, such as
    ``tailnum[0:202]``. A width never exceeds that of the block of more frequent ids before it: a
    sampler that does not know this may propose it, and :meth:`allocation` takes the smaller one.
    In ``mode="single"`` there is one parameter for every feature, with choices such as
    ``"606x8"``; ``"0x0"`` removes the feature.

    The space is also the hard budget for :class:`~optuna_nis.NISSampler`: pass it as
    ``NISSampler(budget=space)`` and no choice above the budget is ever proposed.

    Args:
        specs: The tables, one for each feature.
        budget: Embedding parameters allowed, projections included: an :obj:`int` is a number of
            parameters, a :obj:`float` a fraction of the full tables, a :obj:`str` bytes
            (``"64MB"``) or a percentage (``"20%"``). :obj:`None` allows the full tables.
        mode: ``"multi"`` or ``"single"``.
        dtype: Type of a parameter, for budgets in bytes.

    Raises:
        ValueError: If there is no spec, a name comes twice, the mode is unknown, or the budget is
            not positive, larger than the full tables or smaller than the smallest choice.

    Example:
        >>> import optuna
        >>> space = SearchSpace(
        ...     [EmbeddingSpec("user", 1000, 16), EmbeddingSpec("city", 40, 16)], budget=0.25
        ... )
        >>> space.budget, space.full_parameters
        (4160, 16640)
        >>> sorted(space.distributions())[:2]
        ['city', 'user[0:50]']
        >>> trial = optuna.create_study().ask()
        >>> isinstance(space.suggest(trial), Allocation)
        True
    """

    def __init__(
        self,
        specs: Iterable[EmbeddingSpec],
        *,
        budget: int | float | str | None = None,
        mode: Mode = "multi",
        dtype: str = "float32",
    ) -> None:
        self.specs = tuple(specs)
        if not self.specs:
            raise ValueError("`specs` must hold at least one `EmbeddingSpec`, got none.")
        names = [spec.name for spec in self.specs]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"`specs` names the feature {name!r} twice.")
        if mode not in ("multi", "single"):
            raise ValueError(f'`mode` must be "multi" or "single", got {mode!r}.')
        self.mode: Mode = mode
        self.full_parameters = sum(spec.num_parameters for spec in self.specs)
        widest = max(spec.embedding_dim for spec in self.specs)
        if self.full_parameters > _MOST_PARAMETERS or widest > _LARGEST_DIM:
            raise ValueError(
                f"`specs` must have at most {_MOST_PARAMETERS:,} parameters in all and be at most "
                f"{_LARGEST_DIM:,} wide, got more."
            )
        if budget is None:
            self.budget = self.full_parameters
        else:
            self.budget = parse_budget(budget, self.full_parameters, dtype)
        self._tables = [_Table(spec, mode) for spec in self.specs]
        self._blocks = _Blocks(self._tables)
        if self.budget < self.min_parameters:
            raise ValueError(
                f"`budget` must be at least {self.min_parameters} parameters, the smallest choice "
                f"that keeps any embedding, got {budget!r}, which is {self.budget} parameters."
            )
        # Cheap tables draw first: they are worth the most per parameter, and whoever comes last
        # finds only what the others have left of the budget.
        order = sorted(self._tables, key=lambda table: table.spec.num_parameters)
        self._choices: dict[str, tuple[Choice, ...]] = {}
        for table in order:
            for index, name in enumerate(table.names):
                if name in self._choices:
                    raise ValueError(f"`specs` gives two parameters the name {name!r}.")
                self._choices[name] = table.choices(index)

    @property
    def min_parameters(self) -> int:
        """Cost of the smallest choice that keeps any embedding."""
        return min(table.min_parameters for table in self._tables)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        return (
            f"SearchSpace({len(self.specs)} features, mode={self.mode!r}, "
            f"budget={self.budget:,} of {self.full_parameters:,} parameters)"
        )

    def distributions(self) -> dict[str, CategoricalDistribution]:
        """The parameters of the space with their choices, as Optuna wants them."""
        return {name: CategoricalDistribution(choices) for name, choices in self._choices.items()}

    def suggest(self, trial: BaseTrial) -> Allocation:
        """Let a trial choose an allocation.

        Args:
            trial: A trial of any study, whatever its sampler.

        Returns:
            The allocation that the trial's parameters stand for. Only
            ``NISSampler(budget=space)`` keeps it within the budget.
        """
        return self.allocation(
            {
                name: trial.suggest_categorical(name, choices)
                for name, choices in self._choices.items()
            }
        )

    def allocation(self, params: Mapping[str, Any]) -> Allocation:
        """The allocation that parameters of a trial stand for.

        Args:
            params: A choice for every parameter of the space; others are ignored.

        Raises:
            ValueError: If a parameter is missing or has a value that is not one of its choices.
        """
        for name, choices in self._choices.items():
            if name not in params:
                raise ValueError(f"`params` must hold a choice for {name!r}.")
            if params[name] not in choices:
                raise ValueError(
                    f"`params[{name!r}]` must be one of {list(choices)}, got {params[name]!r}."
                )
        return Allocation(table.allocation(params) for table in self._tables)

    def params(self, allocation: Allocation) -> dict[str, Choice]:
        """The parameters that stand for an allocation, for :meth:`optuna.Study.enqueue_trial`.

        Raises:
            ValueError: If the allocation does not follow the cuts of this space.
        """
        params: dict[str, Choice] = {}
        for table in self._tables:
            params.update(table.params(self._widths(allocation, table.spec)))
        return {name: params[name] for name in self._choices}

    def widths(self, allocation: Allocation) -> dict[str, tuple[int, ...]]:
        """Width of every row block under an allocation.

        Returns:
            For every feature, as many widths as it has row blocks.

        Raises:
            ValueError: If the allocation does not follow the cuts of this space.
        """
        return {spec.name: self._widths(allocation, spec) for spec in self.specs}

    def _widths(self, allocation: Allocation, spec: EmbeddingSpec) -> tuple[int, ...]:
        if spec.name not in allocation:
            raise ValueError(f"`allocation` has no feature {spec.name!r}.")
        table = allocation[spec.name]
        starts = [0, *spec.row_cuts]
        ends = list(accumulate(tier.num_embeddings for tier in table.tiers))
        if (
            (table.num_embeddings, table.embedding_dim)
            != (spec.num_embeddings, spec.embedding_dim)
            or not set(starts).issuperset(ends)
            or not set(spec.widths).issuperset(tier.embedding_dim for tier in table.tiers)
        ):
            raise ValueError(
                f"`allocation` must follow the cuts of the space, rows {spec.row_cuts} and "
                f"widths {spec.widths}, got {table}."
            )
        widths = [0] * len(spec.row_blocks)
        for start, end, tier in zip([0, *ends], ends, table.tiers):
            for block in range(starts.index(start), starts.index(end)):
                widths[block] = tier.embedding_dim
        return tuple(widths)

    def full(self) -> Allocation:
        """Every row at full width."""
        return Allocation(
            TableAllocation(
                spec.name,
                spec.num_embeddings,
                spec.embedding_dim,
                (Tier(spec.num_embeddings, spec.embedding_dim),),
            )
            for spec in self.specs
        )

    def sample(
        self, rng: np.random.Generator, max_parameters: float, removal: float = 0.0
    ) -> Allocation:
        """Draw a random allocation whose cost is as near below a number as the blocks allow.

        The widths of the features, and how fast they fall with the rank, are random; what is
        common to all is then raised until the next step would cost too much.

        Args:
            rng: Source of randomness.
            max_parameters: Largest cost.
            removal: Probability that a feature is removed.
        """
        bases = []
        for table in self._tables:
            base = table.random_levels(rng)
            bases.append(np.full_like(base, -np.inf) if rng.random() < removal else base)
        shape = np.concatenate(bases)
        low, high = -60.0, 60.0
        for _ in range(14):
            middle = (low + high) / 2
            if self._blocks.num_parameters(shape + middle) <= max_parameters:
                low = middle
            else:
                high = middle
        levels = self._blocks.levels(shape + low)
        starts = np.cumsum([len(base) for base in bases])[:-1]
        return Allocation(
            table.allocation_of(own) for table, own in zip(self._tables, np.split(levels, starts))
        )

    @property
    def choices(self) -> Mapping[str, Sequence[Choice]]:
        """The options of every parameter, in the order in which a policy draws them."""
        return self._choices

    def walk(self, n: int) -> Walk:
        """Start ``n`` draws that stay within the budget."""
        return _SpaceWalk(self._tables, self.budget, n)

    def initial_log_weights(self) -> dict[str, FloatArray]:
        """Widths as large as the budget lets one expect.

        A width weighs e times as much as one of half the size: unless something speaks against it
        a row should be wide, above all where that costs next to nothing. The whole is then tilted
        to the budget (:meth:`tilt`).
        """
        return self.tilt(
            {name: table.log_weights() for table in self._tables for name in table.names}
        )

    def tilt(self, log_weights: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """The distribution nearest to a given one whose expected cost is within the budget."""
        costs = {
            name: table.costs(index)
            for table in self._tables
            for index, name in enumerate(table.names)
        }
        tilted = tilt_to_budget(costs, self.budget, log_weights)
        return {name: tilted[name] for name in self._choices}

    def canonical(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Params of the same allocation whose widths do not grow with the rank.

        Other samplers than :class:`~optuna_nis.NISSampler` draw wider rows for rarer ids too; the
        allocation then counts a row as no wider than those of more frequent ids.

        Raises:
            ValueError: If a parameter is missing or has a value that is not one of its choices.

        Example:
            >>> space = SearchSpace([EmbeddingSpec("user", 10, 4, row_blocks=2)], budget=1.0)
            >>> space.canonical({"user[0:5]": 2, "user[5:10]": 4})
            {'user[0:5]': 2, 'user[5:10]': 2}
        """
        return {**params, **self.params(self.allocation(params))}

    def with_budget(self, budget: int | float | str) -> SearchSpace:
        """The same space under another budget, given as in the constructor."""
        return SearchSpace(self.specs, budget=budget, mode=self.mode)

    def to_json(self) -> str:
        """Write as JSON, to be read back by :meth:`from_json`."""
        return json.dumps(
            {
                "version": _JSON_VERSION,
                "mode": self.mode,
                "budget": self.budget,
                "specs": [
                    {
                        "name": spec.name,
                        "num_embeddings": spec.num_embeddings,
                        "embedding_dim": spec.embedding_dim,
                        "row_blocks": spec.row_blocks,
                        "col_blocks": spec.col_blocks,
                    }
                    for spec in self.specs
                ],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> SearchSpace:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: If the text is not such a space.
        """
        try:
            data = json.loads(text)
            if data["version"] != _JSON_VERSION:
                raise ValueError(
                    f"A search space must be of version {_JSON_VERSION}, got {data['version']!r}."
                )
            for spec in data["specs"]:
                if not all(
                    isinstance(spec.get(key), list) for key in ("row_blocks", "col_blocks")
                ):
                    raise TypeError("the blocks of a table must be lists")
            return cls(
                [EmbeddingSpec(**spec) for spec in data["specs"]],
                budget=data["budget"],
                mode=data["mode"],
            )
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"This search space is malformed: {error!r}.") from error


class _Table:
    """One feature of a space: its parameters, and what they cost."""

    def __init__(self, spec: EmbeddingSpec, mode: Mode) -> None:
        self.spec = spec
        self.mode = mode
        self.rows = np.array(spec.row_blocks)
        self.widths = np.array(spec.widths)
        # Where a width lies among the powers of two: 1 for a width of 1, 2 for 2, 3 for 4.
        self.octaves: FloatArray = np.log2(np.maximum(2.0 * self.widths, 1.0))
        # The widest tier pays for the projection that all share; a table of full width has none
        # until a narrower tier follows.
        self.projection = np.where(
            self.widths == spec.embedding_dim, 0, self.widths * spec.embedding_dim
        )
        self.late_projection = np.where(self.projection > 0, spec.embedding_dim**2, 0)
        if mode == "single":
            self.names = [spec.name]
            self._grid = [(0, 0)] + [(v, d) for v in spec.row_cuts for d in spec.widths[1:]]
        elif len(spec.row_blocks) == 1:
            self.names = [spec.name]
        else:
            cuts = [0, *spec.row_cuts]
            self.names = [f"{spec.name}[{a}:{b}]" for a, b in pairwise(cuts)]

    @property
    def min_parameters(self) -> int:
        costs = self.costs(0)
        if self.mode == "multi":
            costs = costs + self.projection
        return int(costs[1:].min())

    def choices(self, index: int) -> tuple[Choice, ...]:
        if self.mode == "single":
            return tuple(f"{v}x{d}" for v, d in self._grid)
        return self.spec.widths

    def costs(self, index: int) -> FloatArray:
        """Cost of each option of a parameter, in mode "multi" without projections."""
        if self.mode == "multi":
            return np.asarray(self.rows[index] * self.widths, dtype=np.float64)
        full = self.spec.embedding_dim
        return np.array([v * d + (d * full if d != full else 0) for v, d in self._grid], float)

    def log_weights(self) -> FloatArray:
        """Weights of the options of each parameter that grow with the width, e-fold per octave."""
        if self.mode == "multi":
            return self.octaves
        levels = dict(zip(self.spec.widths, self.octaves.tolist()))
        return np.array([levels[d] for _, d in self._grid])

    def allocation(self, params: Mapping[str, Any]) -> TableAllocation:
        if self.mode == "single":
            v, d = self._grid[self.choices(0).index(params[self.names[0]])]
            tiers = (Tier(v, d),) if v else ()
            return TableAllocation(
                self.spec.name, self.spec.num_embeddings, self.spec.embedding_dim, tiers
            )
        widths = accumulate((params[name] for name in self.names), min)
        return self._from_widths(list(widths))

    def allocation_of(self, levels: IntArray) -> TableAllocation:
        return self._from_widths(self.widths[levels].tolist())

    def _from_widths(self, widths: Sequence[int]) -> TableAllocation:
        tiers: list[Tier] = []
        for rows, width in zip(self.spec.row_blocks, widths):
            if width == 0:
                break
            if tiers and tiers[-1].embedding_dim == width:
                rows += tiers.pop().num_embeddings
            tiers.append(Tier(rows, width))
        return TableAllocation(
            self.spec.name, self.spec.num_embeddings, self.spec.embedding_dim, tuple(tiers)
        )

    def params(self, widths: Sequence[int]) -> dict[str, Choice]:
        if self.mode == "multi":
            return dict(zip(self.names, widths))
        kept = [width for width in widths if width]
        if len(set(kept)) > 1:
            raise ValueError(
                f"`allocation` of {self.spec.name!r} must have one width in a single-size space, "
                f"got {sorted(set(kept), reverse=True)}."
            )
        rows = sum(self.spec.row_blocks[: len(kept)])
        return {self.names[0]: f"{rows}x{kept[0]}" if kept else "0x0"}

    def random_levels(self, rng: np.random.Generator) -> FloatArray:
        """Octaves of the row blocks up to a common shift, falling with the rank."""
        blocks = len(self.rows)
        level = rng.normal(0.0, 2.0)
        if self.mode == "single":
            kept = rng.integers(1, blocks + 1)
            return np.where(np.arange(blocks) < kept, level, -np.inf)
        falls = rng.exponential(rng.exponential(0.7), size=blocks)
        falls[0] = 0.0
        return np.asarray(level - np.cumsum(falls), dtype=np.float64)


class _Blocks:
    """The row blocks of all tables side by side, to count parameters fast."""

    def __init__(self, tables: Sequence[_Table]) -> None:
        sizes = [len(table.rows) for table in tables]
        self._highest = np.repeat([len(table.widths) - 1 for table in tables], sizes)
        octaves = np.full((len(tables), max(len(table.widths) for table in tables)), np.inf)
        for row, table in zip(octaves, tables):
            row[: len(table.widths)] = table.octaves
        self._octaves = np.repeat(octaves, sizes, axis=0)[:, 1:]
        self._is_first = np.concatenate([np.arange(size) == 0 for size in sizes])
        self._starts = np.repeat(
            np.cumsum([0, *(len(table.widths) for table in tables[:-1])]), sizes
        )
        self._rows = np.concatenate([table.rows for table in tables])
        self._widths = np.concatenate([table.widths for table in tables])
        self._projections = np.concatenate([table.projection for table in tables])
        self._late_projections = np.concatenate([table.late_projection for table in tables])

    def levels(self, octaves: FloatArray) -> IntArray:
        """Index of the width of each row block, its octave rounded down."""
        return np.asarray((self._octaves <= octaves[:, None]).sum(1), dtype=np.int64)

    def num_parameters(self, octaves: FloatArray) -> int:
        """Parameters of all tables, their widths given as in :meth:`levels`."""
        levels = self.levels(octaves)
        options = levels + self._starts
        embeddings = self._rows @ self._widths[options]
        after_full = ~self._is_first
        after_full[1:] &= levels[:-1] == self._highest[:-1]
        projections = self._is_first @ self._projections[options]
        return int(embeddings + projections + after_full @ self._late_projections[options])


class _SpaceWalk:
    """Draws within a budget: widths that fall with the rank, projections paid per table."""

    def __init__(self, tables: Sequence[_Table], budget: int, n: int) -> None:
        self._left = np.full(n, budget, dtype=np.int64)
        self._where = {
            name: (table, index) for table in tables for index, name in enumerate(table.names)
        }
        self._previous = {
            table.spec.name: np.full(n, len(table.widths) - 1)
            for table in tables
            if table.mode == "multi"
        }

    def _price(self, name: str) -> tuple[NDArray[Any], BoolArray | None]:
        table, index = self._where[name]
        if table.mode == "single":
            return table.costs(index)[None, :], None
        previous = self._previous[table.spec.name]
        options = np.arange(len(table.widths))
        if index == 0:
            projection = table.projection[None, :]
        else:
            after_full = previous == len(table.widths) - 1
            projection = after_full[:, None] * table.late_projection
        cost = table.rows[index] * table.widths + projection
        return cost, options[None, :] <= previous[:, None]

    def allowed(self, name: str) -> BoolArray:
        cost, falling = self._price(name)
        fits = cost <= self._left[:, None]
        return np.asarray(fits if falling is None else fits & falling)

    def take(self, name: str, options: IntArray) -> None:
        cost, falling = self._price(name)
        n = len(self._left)
        paid = np.broadcast_to(cost, (n, cost.shape[1]))[np.arange(n), options]
        self._left -= paid.astype(np.int64)
        if falling is not None:
            table, _ = self._where[name]
            self._previous[table.spec.name] = np.minimum(self._previous[table.spec.name], options)


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
