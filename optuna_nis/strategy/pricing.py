"""Proposals made of the blocks of all tables that are worth most, by gradients of the loss."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import numpy as np

from optuna_nis.space.allocation import Allocation
from optuna_nis.space.constraint import FloatArray
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy.block_values import (
    BlockValues,
    Gradients,
    Path,
    path_around,
    random_path,
)
from optuna_nis.strategy.plan import SearchPlan

# A column that fewer paths around a choice have changed is worth what it is anywhere else.
_LEAST_PATHS = 4


@dataclass(frozen=True)
class Pricing:
    """Points of paths between choices at which a search asks for the gradients of the loss.

    Attributes:
        paths: The paths, each with a point.
        num_examples: For each take the next so many validation examples, going over them again and
            again.
    """

    paths: tuple[Path, ...]
    num_examples: int

    def values(self, space: SearchSpace, gradients: Sequence[Gradients]) -> BlockValues:
        """What the gradients at the points say of the blocks.

        Args:
            space: The tables.
            gradients: For each path those of all features, as :meth:`BlockValues.add` takes them.

        Raises:
            ValueError: If they are not one for each path, or not of the shape of the tables.
        """
        if len(gradients) != len(self.paths):
            raise ValueError(
                f"The gradients must be one mapping for each of {len(self.paths)} paths, got "
                f"{len(gradients)}."
            )
        found = BlockValues(space)
        for path, each in zip(self.paths, gradients):
            found.add(path, each)
        return found


def by_values(
    spaces: Sequence[SearchSpace],
    plan: SearchPlan,
    rng: np.random.Generator,
    share: Callable[[list[Allocation]], list[Allocation]] = lambda made: made,
) -> Generator[Pricing, Sequence[Gradients] | None, list[list[Allocation]]]:
    """Ask for gradients; for each of some budgets, propose what is worth most.

    At first blocks are priced on paths between random choices near the budget, then on paths
    around what was found for it, and for the smaller ones.

    Args:
        spaces: The space under each of the budgets, the largest first.
        plan: The numbers of its fields that begin with ``price``.
        rng: Source of randomness, the same in all processes.
        share: Gives what the first of several processes has found to all of them.

    Returns:
        For each budget some choices; none if there are no gradients, told by None.
    """
    space = spaces[0]
    proposals: list[list[Allocation]] = [[] for _ in spaces]
    everywhere: dict[str, FloatArray] = {}
    for number, count in enumerate(plan.price_paths):
        if number == 0:
            paths = [random_path(space, rng) for _ in range(count)]
        else:
            centers = [space.widths(own[-1]) for own in proposals]
            paths = [path_around(space, center, rng) for center in centers for _ in range(count)]
        pricing = Pricing(tuple(paths), plan.price_examples)
        gradients = yield pricing
        if gradients is None:
            return [[] for _ in spaces]
        if number == 0:
            everywhere = pricing.values(space, gradients).means()
            near = [everywhere for _ in spaces]
        else:
            parts = (slice(n * count, (n + 1) * count) for n in range(len(spaces)))
            near = [
                _values_near(space, Pricing(pricing.paths[part], 0), gradients[part], everywhere)
                for part in parts
            ]
        found = share([each.most_valuable(own) for each, own in zip(spaces, near)])
        for own, choice in zip(proposals, found):
            own.append(choice)
    return [[c for c in dict.fromkeys(own) if c.num_parameters] for own in proposals]


def _values_near(
    space: SearchSpace,
    pricing: Pricing,
    gradients: Sequence[Gradients],
    everywhere: dict[str, FloatArray],
) -> dict[str, FloatArray]:
    values = pricing.values(space, gradients)
    counts = values.counts()
    return {
        name: np.where(counts[name] >= _LEAST_PATHS, own, everywhere[name])
        for name, own in values.means().items()
    }
