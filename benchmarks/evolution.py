"""The evolutionary search of widths that OptEmbed makes, within a budget."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Widths = tuple[int, ...]

# As in the paper: ten bred by each of two ways, thirty generations.
_BRED, _GENERATIONS, _MUTATION = 10, 30, 0.1
# No need to go on after so many without a better one.
_PATIENCE = 10


def evolve(
    num_features: int,
    widest: int,
    quality: Callable[[Widths], float],
    fits: Callable[[Widths], bool],
    rng: np.random.Generator,
) -> Widths | None:
    """The best widths that evolution finds.

    Args:
        num_features: Number of features.
        widest: Largest width of each.
        quality: How good widths are.
        fits: Whether they are within the budget. Widths that are not are made narrower, one
            feature at a time, at random.
        rng: Source of randomness.

    Returns:
        A width for each feature; None if not even widths of 1 are within the budget.
    """
    if not fits((1,) * num_features):
        return None

    def within(widths: list[int]) -> Widths:
        while not fits(tuple(widths)):
            wider = [index for index, width in enumerate(widths) if width > 1]
            index = rng.choice(wider)
            widths[index] = max(1, widths[index] // 2)
        return tuple(widths)

    def mutated(parent: Widths) -> Widths:
        return within(
            [
                int(rng.integers(1, widest + 1)) if rng.random() < _MUTATION else width
                for width in parent
            ]
        )

    def crossed(one: Widths, other: Widths) -> Widths:
        cut = int(rng.integers(1, max(num_features, 2)))
        return within([*one[:cut], *other[cut:]])

    drawn = rng.integers(1, widest + 1, (2 * _BRED, num_features))
    population = [within([int(width) for width in each]) for each in drawn]
    known: dict[Widths, float] = {}
    since = 0
    for _ in range(_GENERATIONS):
        before = max(known.values(), default=-np.inf)
        for widths in population:
            if widths not in known:
                known[widths] = quality(widths)
        since = 0 if max(known.values()) > before else since + 1
        if since == _PATIENCE:
            break
        best = sorted(known, key=known.__getitem__, reverse=True)[:_BRED]
        population = [mutated(best[index % len(best)]) for index in range(_BRED)]
        for _ in range(_BRED):
            one, other = rng.integers(len(best), size=2)
            population.append(crossed(best[one], best[other]))
    return max(known, key=known.__getitem__)
