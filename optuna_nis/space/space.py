"""The search space: embedding tables cut into blocks, of which a choice keeps some.

Two ways to read the same grid of blocks (Joglekar et al., 2020, section 3):

* ``mode="multi"`` (multi-size embedding): every row block has a width of its own, never wider
  than the block of more frequent ids before it;
* ``mode="single"`` (single-size embedding): every feature has one number of rows and one width.

With several precisions a size is a width and the bits of a number, which follow the same rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
import json
from typing import Any, Literal

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.trial import BaseTrial

from optuna_nis._checks import instances
from optuna_nis._json import read_json
from optuna_nis.space.allocation import Allocation
from optuna_nis.space.blocks import Blocks
from optuna_nis.space.budget import bytes_per_element, parse_budget
from optuna_nis.space.constraint import Choice, FloatArray, Walk, tilt_to_budget
from optuna_nis.space.knapsack import best_options
from optuna_nis.space.precision import check_precisions
from optuna_nis.space.sharing import table_of
from optuna_nis.space.spec import EmbeddingSpec, replace_precisions
from optuna_nis.space.tables import MultiSizeTable, SingleSizeTable, Table
from optuna_nis.space.walk import SpaceWalk

Mode = Literal["multi", "single"]

# Costs are exact as 64-bit integers and as floats.
_MOST_PARAMETERS = 2**53
_LARGEST_DIM = 2**20
# Of the full tables, and of budgets.
_PARAMETER_NBYTES = 4
_TABLES: Mapping[str, type[Table]] = {"multi": MultiSizeTable, "single": SingleSizeTable}
# Without mean counts in version 1, precisions in version 2, `oov` in version 3.
_JSON_VERSIONS = (1, 2, 3, 4)


class SearchSpace:
    """Every embedding that a model could have, as a categorical Optuna search space.

    In ``mode="multi"`` there is one parameter for every row block: its width. It is named after
    the feature and, where the feature has several blocks, the rows it speaks of, such as
    ``tailnum[0:202]``. A width never exceeds that of the block of more frequent ids before it: a
    sampler that does not know this may propose it, and :meth:`allocation` takes the smaller one.
    In ``mode="single"`` there is one parameter for every feature, with choices such as
    ``"606x8"``; ``"0x0"`` removes the feature.

    Features with other precisions than 32 bits have choices such as ``"8x4bit"`` (and ``"0"``) or
    ``"606x8x4bit"``; a precision never exceeds that of the block before it either. Features with
    another ``oov`` than ``"zero"`` have one more, such as ``tailnum[shared]``: the number of rows,
    as large as the last ones, that ids without one share.

    The space is also the hard budget for :class:`~optuna_nis.NISSampler`: pass it as
    ``NISSampler(budget=space)`` and no choice above the budget is ever proposed.

    Args:
        specs: The tables, one for each feature.
        budget: Bytes allowed for all that is stored of the tables: rows, steps and projections.
            A :obj:`str` is bytes (``"64MB"``) or a percentage of the full tables in float32
            (``"20%"``), a :obj:`float` a fraction of them, an :obj:`int` a number of float32
            parameters, 4 bytes each, of which any budget is a whole number. :obj:`None` allows
            the full tables.
        mode: ``"multi"`` or ``"single"``.
        dtype: Of budgets in bytes for float32 spaces: the type that a parameter will be stored in
            later. Where precisions are chosen, bytes are bytes.

    Raises:
        TypeError: If something is no spec, or the budget no number or string.
        ValueError: If there is no spec, a name comes twice, the mode is unknown, or the budget is
            not positive, larger than the full tables or smaller than the smallest choice.

    Example:
        >>> import optuna
        >>> space = SearchSpace(
        ...     [EmbeddingSpec("user", 1000, 16), EmbeddingSpec("city", 40, 16)], budget=0.25
        ... )
        >>> space.budget, space.full_parameters
        (4160, 16640)
        >>> space.budget_nbytes, space.full_nbytes
        (16640, 66560)
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
        self.specs = instances("specs", specs, EmbeddingSpec)
        if not self.specs:
            raise ValueError("`specs` must hold at least one `EmbeddingSpec`, got none.")
        names = [spec.name for spec in self.specs]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"`specs` names the feature {twice[0]!r} twice.")
        if mode not in _TABLES:
            raise ValueError(f'`mode` must be "multi" or "single", got {mode!r}.')
        self.mode: Mode = mode
        self.full_parameters = sum(spec.num_parameters for spec in self.specs)
        widest = max(spec.embedding_dim for spec in self.specs)
        if self.full_parameters > _MOST_PARAMETERS or widest > _LARGEST_DIM:
            raise ValueError(
                f"`specs` must have at most {_MOST_PARAMETERS:,} parameters in all and be at most "
                f"{_LARGEST_DIM:,} wide, got more."
            )
        wanted = 1.0 if budget is None else budget
        bytes_per_element(dtype)
        self._dtype = dtype
        stored = dtype if self.precisions == (32,) else "float32"
        self.budget = parse_budget(wanted, self.full_parameters, stored)
        self._tables = [table_of(_TABLES[mode](spec)) for spec in self.specs]
        self._blocks = Blocks(self._tables)
        if self.budget_nbytes < self.min_nbytes:
            raise ValueError(
                f"`budget` must be at least {_PARAMETER_NBYTES * self.min_parameters:,} bytes "
                f"({self.min_parameters:,} parameters), the smallest choice that keeps any "
                f"embedding, got {budget!r}, which is {self.budget_nbytes:,} bytes in whole "
                "float32 parameters."
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
    def budget_nbytes(self) -> int:
        """Bytes allowed."""
        return _PARAMETER_NBYTES * self.budget

    @property
    def full_nbytes(self) -> int:
        """Bytes of the full tables in float32."""
        return _PARAMETER_NBYTES * self.full_parameters

    @property
    def min_nbytes(self) -> int:
        """Bytes of the smallest choice that keeps any embedding."""
        return min(table.min_nbytes for table in self._tables)

    @property
    def min_parameters(self) -> int:
        """The smallest budget as a number of float32 parameters."""
        return -(-self.min_nbytes // _PARAMETER_NBYTES)

    @property
    def precisions(self) -> tuple[int, ...]:
        """All bits that a number may have in some feature, most first."""
        return tuple(sorted({b for spec in self.specs for b in spec.precisions}, reverse=True))

    def fits(self, allocation: Allocation) -> bool:
        """Whether an allocation is within the budget."""
        return allocation.nbytes() <= self.budget_nbytes

    def share(self, allocation: Allocation) -> float:
        """The bytes of an allocation as a share of the full tables in float32."""
        return allocation.nbytes() / self.full_nbytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[tuple[EmbeddingSpec, ...], Mode, int]:
        return self.specs, self.mode, self.budget

    def __repr__(self) -> str:
        bits = "" if self.precisions == (32,) else f" precisions={self.precisions},"
        return (
            f"SearchSpace({len(self.specs)} features, mode={self.mode!r},{bits} "
            f"budget={self.budget_nbytes:,} of {self.full_nbytes:,} bytes)"
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
            ``NISSampler(budget=space)`` keeps it within the budget. Narrow rows of few ids come
            with a projection that may cost more than wide rows would:
            :meth:`Allocation.widened` gives these.
        """
        return self.allocation(
            {name: trial.suggest_categorical(name, own) for name, own in self._choices.items()}
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
            if (value := params[name]) not in choices:
                raise ValueError(
                    f"`params[{name!r}]` must be one of {list(choices)}, got {value!r}."
                )
        return Allocation(table.allocation(params) for table in self._tables)

    def params(self, allocation: Allocation) -> dict[str, Choice]:
        """The parameters that stand for an allocation, for :meth:`optuna.Study.enqueue_trial`.

        Raises:
            ValueError: If the allocation does not follow the cuts of this space.
        """
        sizes = self.sizes(allocation)
        params: dict[str, Choice] = {}
        for table in self._tables:
            name = table.spec.name
            params |= table.params(sizes[name]) | table.shared_params(allocation[name])
        return {name: params[name] for name in self._choices}

    def widths(self, allocation: Allocation) -> dict[str, tuple[int, ...]]:
        """Width of every row block under an allocation.

        Returns:
            For every feature, as many widths as it has row blocks.

        Raises:
            ValueError: If the allocation does not follow the cuts of this space.
        """
        return {
            name: tuple(width for width, _ in sizes)
            for name, sizes in self.sizes(allocation).items()
        }

    def sizes(self, allocation: Allocation) -> dict[str, tuple[tuple[int, int], ...]]:
        """Width of every row block under an allocation, and the bits of its numbers.

        Returns:
            As :meth:`EmbeddingSpec.sizes_of` for every feature.

        Raises:
            ValueError: If the allocation does not follow the cuts of this space.
        """
        for spec in self.specs:
            if spec.name not in allocation:
                raise ValueError(f"`allocation` has no feature {spec.name!r}.")
        return {spec.name: spec.sizes_of(allocation[spec.name]) for spec in self.specs}

    def full(self, bits: int | None = None) -> Allocation:
        """Every row at full width.

        Args:
            bits: Bits of a number; by default the most that a feature may have.
        """
        return Allocation(
            spec.table([spec.embedding_dim] * len(spec.row_blocks), bits) for spec in self.specs
        )

    def sample(
        self, rng: np.random.Generator, max_parameters: float, removal: float = 0.0
    ) -> Allocation:
        """Draw a random allocation whose cost is as near below a number as the blocks allow.

        The widths of the features, and how fast they fall with the rank, are random; what is
        common to all is then raised until the next step would cost too much.

        Args:
            rng: Source of randomness.
            max_parameters: Largest cost, as a number of float32 parameters.
            removal: Probability that a feature is removed.
        """
        return self._blocks.sample(rng, _PARAMETER_NBYTES * max_parameters, removal)

    def most_valuable(self, values: Mapping[str, FloatArray]) -> Allocation:
        """The allocation within the budget whose blocks are worth most together.

        Blocks are taken to be worth the same whatever else is kept, and to cost what they cost,
        projections included. Blocks that are worth nothing or less are left out, unless they come
        with others that are worth more. It is found by a price on memory, and what is left of
        the budget is filled up: best but for the last bit of the budget, which may be worth some
        percent where there are few blocks, or large ones.

        Args:
            values: For every feature what each column of each row block is worth, of shape
                ``(row blocks, embedding_dim)``, such as :meth:`BlockValues.means
                <optuna_nis.strategy.block_values.BlockValues.means>` gives.

        Raises:
            ValueError: If a feature is missing, an array of another shape, or a number not finite.

        Example:
            >>> spec = EmbeddingSpec("user", 10, 2, row_blocks=[2, 8])
            >>> space = SearchSpace([spec], budget=16)
            >>> print(space.most_valuable({"user": np.array([[3.0, 1.0], [2.0, -1.0]])}))
            user: 2x2 + 8x1 (of 10x2)
        """
        return self.best(self.gains(values))

    def gains(self, values: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """What each option of each parameter is worth by what its blocks are worth.

        Args:
            values: As in :meth:`most_valuable`.

        Raises:
            ValueError: As in :meth:`most_valuable`.
        """
        gains: dict[str, FloatArray] = {}
        for table in self._tables:
            spec = table.spec
            own = np.asarray(values.get(spec.name, ()), dtype=np.float64)
            shape = (len(spec.row_blocks), spec.embedding_dim)
            if own.shape != shape or not np.isfinite(own).all():
                raise ValueError(
                    f"`values[{spec.name!r}]` must be finite numbers of shape {shape}, got "
                    f"{own.tolist() if own.shape == shape else f'shape {own.shape}'}."
                )
            gains.update(zip(table.names, table.gains(own)))
        return {name: gains[name] for name in self._choices}

    def best(self, gains: Mapping[str, FloatArray]) -> Allocation:
        """The allocation within the budget whose options are worth most together.

        Args:
            gains: For every parameter what each of its options is worth.

        Raises:
            ValueError: If a parameter is missing.
        """
        if missing := [name for name in self._choices if name not in gains]:
            raise ValueError(f"`gains` must be of every parameter, it lacks {missing}.")
        # What counts is by how much an option is better than to leave out what it stands for.
        options = best_options(
            self._tables,
            [[gains[name] - gains[name][0] for name in table.names] for table in self._tables],
            self.budget_nbytes,
        )
        return self.allocation(
            {
                name: self._choices[name][option]
                for table, own in zip(self._tables, options)
                for name, option in zip(table.names, own.tolist())
            }
        )

    @property
    def choices(self) -> Mapping[str, Sequence[Choice]]:
        """The options of every parameter, in the order in which a policy draws them."""
        return self._choices

    def meant(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What choices for some of the parameters mean: widths do not grow with the rank.

        Args:
            given: Choices by the names of their parameters.

        Raises:
            ValueError: If one is none of the choices of its parameter.

        Example:
            >>> space = SearchSpace([EmbeddingSpec("user", 10, 4, row_blocks=2)], budget=1.0)
            >>> space.meant({"user[0:5]": 2, "user[5:10]": 4})
            {'user[0:5]': 2, 'user[5:10]': 2}
        """
        found = dict(given)
        for table in self._tables:
            own = {
                index: table.choices(index).index(given[name])
                for index, name in enumerate(table.names)
                if name in given
            }
            for index, option in table.meant(own).items():
                found[table.names[index]] = table.choices(index)[option]
        return found

    def walk(self, n: int) -> Walk:
        """Start ``n`` draws that stay within the budget."""
        return SpaceWalk(self._tables, self.budget_nbytes, n)

    def initial_log_weights(self) -> dict[str, FloatArray]:
        """Widths as large as the budget lets one expect.

        A width weighs e times as much as one of half the size: unless something speaks against it
        a row should be wide, above all where that costs next to nothing. The whole is then tilted
        to the budget (:meth:`tilt`).
        """
        return self.tilt(
            {n: table.weights(i) for table in self._tables for i, n in enumerate(table.names)}
        )

    def tilt(self, log_weights: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """The distribution nearest to a given one whose expected cost is within the budget."""
        costs = {n: table.costs(i) for table in self._tables for i, n in enumerate(table.names)}
        tilted = tilt_to_budget(costs, self.budget_nbytes, log_weights)
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
        return SearchSpace(self.specs, budget=budget, mode=self.mode, dtype=self._dtype)

    def with_precisions(self, precisions: Iterable[int]) -> SearchSpace:
        """The same space with other precisions, the same for every feature.

        Raises:
            ValueError: If a precision is unknown, or no choice is within the budget.
        """
        bits = check_precisions(precisions)
        specs = [replace_precisions(spec, bits) for spec in self.specs]
        return SearchSpace(specs, budget=self.budget, mode=self.mode, dtype=self._dtype)

    def to_json(self) -> str:
        """Write as JSON, to be read back by :meth:`from_json`."""
        specs = [asdict(spec) for spec in self.specs]
        version = 3 if {spec.oov for spec in self.specs} == {"zero"} else 4
        for spec in specs if version == 3 else ():
            del spec["oov"]
        data: dict[str, Any] = {"version": version, "mode": self.mode, "budget": self.budget}
        if self._dtype != "float32":
            data["dtype"] = self._dtype
        return json.dumps(data | {"specs": specs})

    @classmethod
    def from_json(cls, text: str) -> SearchSpace:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: If the text is not such a space.
        """
        try:
            data = read_json(text)
            if data["version"] not in _JSON_VERSIONS:
                raise ValueError(
                    "A search space must be of a version from "
                    f"{_JSON_VERSIONS[0]} to {_JSON_VERSIONS[-1]}, got {data['version']!r}."
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
                dtype=data.get("dtype", "float32"),
            )
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"This search space is malformed: {error!r}.") from error
