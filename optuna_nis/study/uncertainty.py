"""How far a metric on so many rows may be off by chance alone."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optuna_nis._checks import check_number

#: Sizes under a budget often differ by less than a hundredth: where the standard error is larger,
#: a training on one part of the data cannot tell which are best.
LARGE_ERROR = 0.01

# Of the interval in which 95 % of all shares lie (Agresti and Coull, 1998).
_PSEUDO_ROWS = 4


def effective_rows(weights: NDArray[np.floating[Any]]) -> float:
    """How many rows that count alike say as much as rows with weights (Kish, 1965).

    The variance of a weighted mean is that of a plain one of so many rows. It is the same with an
    AUC and the weights of each class.

    Args:
        weights: Of the rows, at least 0.

    Returns:
        At least 1, or 0 if no row has a weight.

    Example:
        >>> effective_rows(np.array([2.0, 2.0, 2.0, 0.0]))
        3.0
    """
    largest = weights.max(initial=0.0)
    if not largest:
        return 0.0
    shares = np.asarray(weights, np.float64) / largest
    return max(float(shares.sum() ** 2 / np.square(shares).sum()), 1.0)


def auc_standard_error(auc: float, num_positive: float, num_negative: float) -> float:
    """Standard error of an area under the ROC curve (Hanley and McNeil, 1982).

    At 0.5 it is that of a score that knows nothing, without an approximation.

    Args:
        auc: The area, from 0 to 1.
        num_positive: Rows with a positive label; those of equal weight that say as much, where
            rows have weights (:func:`effective_rows`).
        num_negative: Rows with a negative label.

    Raises:
        ValueError: If the area is not in [0, 1], or a class has no row.

    Example:
        >>> round(auc_standard_error(0.893, 51, 58), 4)
        0.0325
    """
    check_number("auc", auc, 0, math.nextafter(1, 2))
    check_number("num_positive", num_positive, 1)
    check_number("num_negative", num_negative, 1)
    two_positives = auc / (2 - auc)
    two_negatives = 2 * auc**2 / (1 + auc)
    variance = (
        auc * (1 - auc)
        + (num_positive - 1) * (two_positives - auc**2)
        + (num_negative - 1) * (two_negatives - auc**2)
    ) / (num_positive * num_negative)
    return math.sqrt(max(variance, 0.0))


def share_standard_error(share: float, num_rows: float) -> float:
    """Standard error of a mean of values from 0 to 1, such as a recall; at most that.

    Values between 0 and 1, such as reciprocal ranks, vary less than hits and misses with the same
    mean. Two hits and two misses are added, so that no hit at all does not count as certain.

    Args:
        share: The mean, from 0 to 1.
        num_rows: How many values it is of; as in :func:`auc_standard_error`.

    Raises:
        ValueError: If the mean is not in [0, 1], or there is no value.

    Example:
        >>> round(share_standard_error(0.5, 96), 3)
        0.05
    """
    check_number("share", share, 0, math.nextafter(1, 2))
    check_number("num_rows", num_rows, 1)
    rows = num_rows + _PSEUDO_ROWS
    centre = (share * num_rows + _PSEUDO_ROWS / 2) / rows
    return math.sqrt(centre * (1 - centre) / rows)
