"""Proposals made of the blocks of all tables that are worth most, by gradients of the loss."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from optuna_nis.space.allocation import Allocation
from optuna_nis.space.constraint import FloatArray
from optuna_nis.space.space import SearchSpace
from optuna_nis.space.spec import EmbeddingSpec
from optuna_nis.strategy.block_values import (
    BlockValues,
    Gradients,
    Path,
    path_around,
    random_path,
)

# Paths that share a batch where several choices may.
_SIDE_BY_SIDE = 8
# What is proposed takes columns to be worth their mean, and so many standard errors more: in
# doubt a block is left out, or it is kept, if there is room for it.
_OPTIMISM = (-1.0, 1.0, 0.0)
# Among all proposals, that by the newest means.
_CENTER = -1
# A column that fewer paths around a choice have changed is worth what it is anywhere else.
_LEAST_PATHS = 4


@dataclass(frozen=True)
class Pricing:
    """Points of paths between choices at which a search asks for the gradients of the loss.

    Attributes:
        batches: For each of some batches of validation data the paths that it is shared among, in
            equal runs.
        num_examples: Examples of a batch, the next ones each time, going over them again and
            again; None is a batch of any size.
    """

    batches: tuple[tuple[Path, ...], ...]
    num_examples: int | None

    def flat(self, answer: Sequence[Sequence[Gradients]]) -> Iterator[tuple[Path, Gradients]]:
        """Each path with its gradients.

        Args:
            answer: For each batch what :func:`~optuna_nis.nn.mask_gradients` gives.

        Raises:
            ValueError: If there is not one for each batch and path.
        """
        wanted, got = [len(paths) for paths in self.batches], [len(each) for each in answer]
        if wanted != got:
            raise ValueError(
                f"The gradients must be those of {len(wanted)} batches of {wanted[0]} paths each, "
                f"got {len(got)}{f' of {got[0]}' if got else ''}."
            )
        for paths, gradients in zip(self.batches, answer):
            yield from zip(paths, gradients)


class Pricer:
    """Asks for gradients and proposes, for each of some budgets, what is worth most.

    At first blocks are priced on paths between random choices near each budget, then on paths
    around what was found for it. Each time there are three proposals: what is worth its memory
    for sure, what may be worth it, and what is so on average. Where ids without a row may share
    some, there is one more for each number of those: what else is worth most then on average.

    Args:
        rng: Source of randomness, the same in all processes.
        num_examples: Examples of a batch; None if they cannot be told apart.
        side_by_side: Whether several choices may share a batch.
    """

    def __init__(
        self, rng: np.random.Generator, *, num_examples: int | None, side_by_side: bool
    ) -> None:
        self._rng = rng
        self._num_examples = num_examples
        #: For each budget what the columns are worth near it, once that is known.
        self.values: list[dict[str, FloatArray]] = []
        self._size = _SIDE_BY_SIDE if side_by_side and num_examples is not None else 1

    def proposals(
        self,
        spaces: Sequence[SearchSpace],
        batches: Sequence[int],
        share: Callable[[list[Allocation]], list[Allocation]] = lambda made: made,
    ) -> Generator[Pricing, Sequence[Sequence[Gradients]] | None, list[list[Allocation]]]:
        """Ask for gradients, and propose.

        Args:
            spaces: The space under each of the budgets.
            batches: Batches for each budget: between random choices, then around what was found
                for it, as often as there are numbers.
            share: Gives what the first of several processes has found to all of them.

        Returns:
            For each budget some choices; none if there are no gradients, told by None.
        """
        found: list[list[Allocation]] = [[] for _ in spaces]
        known = [_Worth() for _ in spaces]
        for count in batches:
            each = count * self._size
            centers = [own[_CENTER] if own else None for own in found]
            paths = [self._paths(space, center, each) for space, center in zip(spaces, centers)]
            answer = yield (pricing := self._pricing(paths))
            if answer is None:
                return [[] for _ in spaces]
            rows = list(pricing.flat(answer))
            for number, (space, worth) in enumerate(zip(spaces, known)):
                worth.learn(_values(space, rows[number * each : (number + 1) * each]))
            self.values = [worth.with_optimism(0.0) for worth in known]
            made = share([each for own in zip(spaces, known) for each in _proposals(*own)])
            size = len(made) // len(spaces)
            for number, own in enumerate(found):
                own += made[number * size : (number + 1) * size]
        return [[c for c in dict.fromkeys(own) if c.num_parameters] for own in found]

    def _paths(self, space: SearchSpace, center: Allocation | None, count: int) -> list[Path]:
        if center is None:
            return [random_path(space, self._rng) for _ in range(count)]
        widths = space.widths(center)
        return [path_around(space, widths, self._rng) for _ in range(count)]

    def _pricing(self, paths: Sequence[Sequence[Path]]) -> Pricing:
        flat = [path for own in paths for path in own]
        starts = range(0, len(flat), self._size)
        batches = tuple(tuple(flat[start : start + self._size]) for start in starts)
        return Pricing(batches, self._num_examples)


def _values(space: SearchSpace, rows: Sequence[tuple[Path, Gradients]]) -> BlockValues:
    values = BlockValues(space)
    for path, gradients in rows:
        values.add(path, gradients)
    return values


def _proposals(space: SearchSpace, worth: _Worth) -> Iterator[Allocation]:
    """As many for every budget, that by the means last."""
    gains = space.gains(worth.with_optimism(0.0))
    # Of more worth than all else.
    most = 1.0 + sum(float(np.abs(own).max()) for own in gains.values())
    for number in sorted({number for spec in space.specs for number in spec.shares[1:]}):
        sharing = {
            f"{spec.name}[shared]": most * (np.array(spec.shares) == _nearest(spec, number))
            for spec in space.specs
            if len(spec.shares) > 1
        }
        yield space.best({name: sharing.get(name, own) for name, own in gains.items()})
    for optimism in _OPTIMISM:
        yield space.most_valuable(worth.with_optimism(optimism))


def _nearest(spec: EmbeddingSpec, number: int) -> int:
    """The largest number of shared rows of a feature that is not larger than some number."""
    return max(own for own in spec.shares if own <= number)


class _Worth:
    """What columns are worth near a budget."""

    def __init__(self) -> None:
        self._means: dict[str, FloatArray] = {}
        self._errors: dict[str, FloatArray] = {}

    def learn(self, values: BlockValues) -> None:
        """Take over what is newly known; of columns that too few paths have changed, nothing."""
        counts, means, errors = values.counts(), values.means(), values.standard_errors()
        for name, count in counts.items():
            enough = count >= _LEAST_PATHS
            for known, new in ((self._means, means[name]), (self._errors, errors[name])):
                before = known.get(name, np.where(np.isfinite(new), new, 0.0))
                known[name] = np.where(enough, new, before)

    def with_optimism(self, optimism: float) -> dict[str, FloatArray]:
        """The means and so many standard errors."""
        return {name: own + optimism * self._errors[name] for name, own in self._means.items()}
