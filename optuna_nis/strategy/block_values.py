"""What each column of each row block is worth, from gradients along paths between choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optuna_nis.space.constraint import FloatArray
from optuna_nis.space.space import SearchSpace

Widths = Mapping[str, tuple[int, ...]]
Gradients = Mapping[str, NDArray[np.floating[Any]]]

# Least and largest cost of the two ends of a random path, as shares of the budget.
_LOW_COSTS, _HIGH_COSTS = (0.1, 0.8), (0.9, 2.5)
# Around a choice: the least width of a block at the narrower end, as a share of its own, and the
# largest at the wider one, as a multiple of it, or of 1 if the choice leaves the block out.
_NARROWEST, _WIDEST = 0.25, 3.0


@dataclass(frozen=True)
class Path:
    """A point on the straight way between two choices, the wider of which has all of the other.

    Attributes:
        low: Width of every row block where the way begins, by feature.
        high: The same where it ends, nowhere smaller.
        share: The part of the way behind the point: columns that only ``high`` has count so much.

    Example:
        >>> path = Path({"user": (4, 1)}, {"user": (4, 2)}, share=0.25)
        >>> path.changed("user", 4).astype(int).tolist()
        [[0, 0, 0, 0], [0, 1, 0, 0]]
    """

    low: Widths
    high: Widths
    share: float

    def changed(self, name: str, embedding_dim: int) -> NDArray[np.bool_]:
        """The columns of a feature's row blocks that only the end has."""
        columns = np.arange(embedding_dim)
        low, high = (np.array(ends[name])[:, None] for ends in (self.low, self.high))
        return np.asarray((columns >= low) & (columns < high))


class BlockValues:
    """By how much each column of each row block lowers the loss, and how sure that is.

    The mean over paths of the negative gradient of the loss with respect to the column's mask. On
    one path, averaged over its points, what the columns that change are worth adds up to what the
    loss at the end is lower than at the start (integrated gradients: Sundararajan et al., 2017);
    over many paths, a column is worth what it adds to choices like those.

    Args:
        space: The tables.

    Example:
        >>> from optuna_nis import EmbeddingSpec
        >>> space = SearchSpace([EmbeddingSpec("user", 10, 2, row_blocks=[2, 8])])
        >>> values = BlockValues(space)
        >>> path = Path({"user": (1, 0)}, {"user": (2, 1)}, share=0.5)
        >>> values.add(path, {"user": np.array([[-3.0, -2.0], [-1.0, -0.5]])})
        >>> values.means()["user"].tolist()
        [[0.0, 2.0], [1.0, 0.0]]
    """

    def __init__(self, space: SearchSpace) -> None:
        shapes = {s.name: (len(s.row_blocks), s.embedding_dim) for s in space.specs}
        self._sums = {name: np.zeros(shape) for name, shape in shapes.items()}
        self._squares = {name: np.zeros(shape) for name, shape in shapes.items()}
        self._counts = {name: np.zeros(shape, dtype=np.int64) for name, shape in shapes.items()}

    def add(self, path: Path, gradients: Gradients) -> None:
        """Add what the gradients at a point of a path say of the columns that change on it.

        Args:
            path: The path.
            gradients: Of the loss with respect to the masks, for every feature of the space, of
                shape ``(row blocks, embedding_dim)``.

        Raises:
            ValueError: If a feature is missing, an array of another shape, or a number not finite.
        """
        worth = {}
        for name, known in self._sums.items():
            own = np.asarray(gradients.get(name, ()), dtype=np.float64)
            if own.shape != known.shape or not np.isfinite(own).all():
                raise ValueError(
                    f"The gradients of {name!r} must be finite numbers of shape {known.shape}, "
                    f"got {_described(own, known.shape)}."
                )
            worth[name] = np.where(path.changed(name, known.shape[1]), -own, 0.0)
        for name, own in worth.items():
            self._sums[name] += own
            self._squares[name] += own**2
            self._counts[name] += path.changed(name, own.shape[1])

    def counts(self) -> dict[str, NDArray[np.int64]]:
        """Number of paths on which each column changes."""
        return {name: count.copy() for name, count in self._counts.items()}

    def means(self) -> dict[str, FloatArray]:
        """What each column is worth; 0 for those that no path has changed."""
        return {n: total / np.maximum(self._counts[n], 1) for n, total in self._sums.items()}

    def standard_errors(self) -> dict[str, FloatArray]:
        """Of the :meth:`means`; infinite for columns that fewer than two paths have changed."""
        errors = {}
        for name, mean in self.means().items():
            count = self._counts[name]
            spread = np.maximum(self._squares[name] - count * mean**2, 0.0)
            known = count > 1
            error = np.sqrt(spread / np.maximum(count * (count - 1), 1))
            errors[name] = np.where(known, error, np.inf)
        return errors


def random_path(space: SearchSpace, rng: np.random.Generator) -> Path:
    """A point between two random choices, one within the budget and one beyond it.

    The narrower one is made narrower still where the other one is.

    Args:
        space: The space.
        rng: Source of randomness.
    """
    ends = [
        space.widths(space.sample(rng, rng.uniform(*costs) * space.budget))
        for costs in (_LOW_COSTS, _HIGH_COSTS)
    ]
    pairs = {name: np.array([end[name] for end in ends]) for name in ends[0]}
    return Path(
        {name: tuple(pair.min(0).tolist()) for name, pair in pairs.items()},
        {name: tuple(pair.max(0).tolist()) for name, pair in pairs.items()},
        rng.random(),
    )


def path_around(space: SearchSpace, widths: Widths, rng: np.random.Generator) -> Path:
    """A point between two random choices near a given one, each row block apart from the others.

    Args:
        space: The space.
        widths: The choice, by feature.
        rng: Source of randomness.
    """
    low, high = {}, {}
    for spec in space.specs:
        own = np.array(widths[spec.name])
        narrower = own * rng.uniform(_NARROWEST, 1.0, own.shape)
        wider = np.maximum(own, 1) * rng.uniform(1.0, _WIDEST, own.shape)
        low[spec.name] = tuple(narrower.astype(int).tolist())
        high[spec.name] = tuple(np.minimum(wider, spec.embedding_dim).astype(int).tolist())
    return Path(low, high, rng.random())


def _described(gradients: FloatArray, shape: tuple[int, ...]) -> str:
    if gradients.shape == shape:
        return "numbers that are not"
    return f"shape {gradients.shape}" if gradients.size else "none"
