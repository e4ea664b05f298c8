"""Which weights the value of an option is the sum of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
import re

import numpy as np

from optuna_nis.space.constraint import Choice, FloatArray, IntArray
from optuna_nis.space.precision import PRECISIONS

_NEIGHBOUR_CORRELATION = 0.9
# A size as a search space of several precisions writes it: its rows in a single-size space, its
# width, its bits.
_SIZE = re.compile(r"(?:([1-9][0-9]{0,15})x)?([1-9][0-9]{0,6})x([1-9][0-9]?)bit")
_NO_ROW = {"0": (0, 0), "0x0": (0, 0, 0)}
# Of a size's parts, beforehand: together it is as uncertain as any other option.
_VARIANCES = {2: (0.5, 0.5), 3: (0.4, 0.3, 0.3)}


class Design:
    """The weights of all parameters, side by side.

    An option that is named after a size, such as ``"8x4bit"``, is worth what its width is worth
    and what its bits are worth; no row is one of width 0 and 0 bits. Any other option has a weight
    of its own.

    Args:
        choices: The options of every parameter.

    Attributes:
        priors: How alike weights that follow each other are thought to be beforehand.
        is_additive: Whether any option shares its weights with others.
        starts: Place of the first option of each parameter among all options.
    """

    def __init__(self, choices: Sequence[Sequence[Choice]]) -> None:
        self.priors: list[FloatArray] = []
        self.is_additive = False
        places: list[list[list[int]]] = []
        size = 0
        for options in choices:
            sizes = sizes_of(options)
            if sizes is None:
                self.priors.append(_prior_covariance(options))
                places.append([[size + place] for place in range(len(options))])
                size += len(options)
                continue
            self.is_additive = True
            columns = []
            for numbers, variance in zip(zip(*sizes), _VARIANCES[len(sizes[0])]):
                known = sorted(set(numbers))
                self.priors.append(variance * _alike(len(known)))
                columns.append([size + known.index(number) for number in numbers])
                size += len(known)
            places.append([list(row) for row in zip(*columns)])
        self.starts = np.cumsum([0, *map(len, places[:-1])])
        self._size = size
        if self.is_additive:
            most = max(len(row) for own in places for row in own)
            # Past the intercept there is a place for nothing.
            self._terms: IntArray = np.array(
                [row + [size + 1] * (most - len(row)) for own in places for row in own]
            )

    def rows(self, options: IntArray) -> FloatArray:
        """For each trial which weights its options add up, and none for the intercept.

        Args:
            options: Shape ``(k, number of parameters)``.

        Returns:
            Shape ``(k, weights + 1)``.
        """
        places = self.starts + options
        rows = np.zeros((len(options), self._size + 1 + self.is_additive))
        if self.is_additive:
            places = self._terms[places].reshape(len(options), -1)
        rows[np.arange(len(options))[:, None], places] = 1.0
        return rows[:, : self._size + 1]

    def values(self, weights: FloatArray) -> FloatArray:
        """What each option adds up from weights, and the intercept behind them."""
        if not self.is_additive:
            return weights
        sums = np.append(weights, 0.0)[self._terms].sum(axis=1)
        return np.append(sums, weights[-1])


def sizes_of(options: Sequence[Choice]) -> list[tuple[int, ...]] | None:
    """The numbers that options of several precisions are named after, if they all are.

    Example:
        >>> sizes_of(["0", "8x4bit", "8x16bit"])
        [(0, 0), (8, 4), (8, 16)]
        >>> sizes_of(["auto", "8x4bit"])
    """
    sizes = []
    for option in options:
        if not isinstance(option, str):
            return None
        size = _NO_ROW.get(option)
        if size is None:
            match = _SIZE.fullmatch(option)
            if match is None or int(match[3]) not in PRECISIONS:
                return None
            size = tuple(int(number) for number in match.groups() if number is not None)
        sizes.append(size)
    return sizes if len({len(size) for size in sizes}) == 1 and any(map(any, sizes)) else None


def _prior_covariance(options: Sequence[Choice]) -> FloatArray:
    """How alike the values of a parameter's options are thought to be beforehand.

    Neighbours among numbers in ascending order, such as widths, are worth about the same; nothing
    is known of other options.
    """
    numbers = [o for o in options if isinstance(o, (int, float)) and not isinstance(o, bool)]
    if len(numbers) == len(options) and all(a < b for a, b in pairwise(numbers)):
        return _alike(len(options))
    return np.eye(len(options))


def _alike(count: int) -> FloatArray:
    """Of neighbours in ascending order."""
    places = np.arange(count)
    distance = np.abs(places[:, None] - places)
    return np.asarray(_NEIGHBOUR_CORRELATION**distance, dtype=np.float64)
