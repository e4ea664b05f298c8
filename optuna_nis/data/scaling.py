"""Numeric columns: how they are scaled for a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
import warnings

import numpy as np
from numpy.typing import NDArray
import pandas as pd

from optuna_nis.data.file_array import FileArray

Floats = NDArray[np.float32]
_CHUNK = 1 << 20
# Of so few numbers apart from each other a column has lost some.
_FEW_STEPS = 1000
_BOOLEANS = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Scaling:
    """How the numbers of a column become inputs of a model.

    A number ``x`` becomes ``(sign(x) log(1 + abs(x)) - mean) / std``, with the mean and standard
    deviation of the training rows: the logarithm takes heavy tails in, the sign keeps negative
    numbers apart, as the log of DLRM (Naumov et al., 2019, section 5.1) does not. A missing
    number becomes 0, the mean. Where training has missing ones, a second input says so with 1.

    Attributes:
        mean: Mean of the signed logarithms of the training rows.
        std: Their standard deviation.
        has_missing: Whether numbers are missing in training.

    Example:
        >>> scaling = Scaling.fit(np.array([0, 1, 1, np.nan], dtype=np.float32), "price")
        >>> scaling.width, round(scaling.mean, 3)
        (2, 0.462)
        >>> scaling.apply(np.array([1, np.nan], dtype=np.float32)).round(2).tolist()
        [[0.7099999785423279, 0.0], [0.0, 1.0]]
    """

    mean: float
    std: float
    has_missing: bool

    @classmethod
    def fit(cls, values: Floats | FileArray, name: str) -> Scaling:
        """Measure the training rows of a column.

        Args:
            values: Its numbers, NaN where one is missing.
            name: Its name in errors.

        Raises:
            ValueError: If there is no number, all are the same, or one is infinite.
        """
        number, total = 0, 0.0
        least, most = np.inf, -np.inf
        for chunk in _logs(values, name):
            number, total = number + len(chunk), total + float(chunk.sum())
            least, most = chunk.min(initial=least), chunk.max(initial=most)
        if not number:
            raise ValueError(f"The column {name!r} is empty: all its numbers are missing.")
        mean = total / number
        squares = sum(float(np.square(chunk - mean).sum()) for chunk in _logs(values, name))
        std = float(np.sqrt(squares / number))
        has_missing = number < len(values)
        if least == most:
            if not has_missing:
                raise ValueError(
                    f"The column {name!r} is constant: all its numbers in the training part are "
                    f"{values[:1][0]:g}, as floats of 32 bits. Leave it out, or take what is "
                    "common to all of them away before."
                )
            std = 1.0
        else:
            _warn_of_few_steps(values, least, most, name)
        return cls(mean, std, has_missing)

    @property
    def width(self) -> int:
        """Number of inputs of a model."""
        return 1 + self.has_missing

    def apply(self, values: Floats) -> Floats:
        """Scale numbers.

        Args:
            values: Shape ``(rows,)``, NaN where one is missing.

        Returns:
            Shape ``(rows, width)``.
        """
        missing = np.isnan(values)
        scaled = (_signed_log(values) - self.mean) / self.std
        inputs = [np.where(missing, 0, scaled), missing][: self.width]
        return np.stack(inputs, axis=1).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """In types that JSON knows, the arguments of the class."""
        return asdict(self)


def scaled(scalings: Mapping[str, Scaling], numbers: Mapping[str, Floats | FileArray]) -> Floats:
    """The inputs of a model of all numeric columns side by side: shape ``(rows, inputs)``."""
    return np.concatenate(
        [each.apply(np.asarray(numbers[name])) for name, each in scalings.items()], axis=1
    )


def _without_markers(numbers: pd.Series[Any], na_values: Sequence[str]) -> pd.Series[Any]:
    """Numbers, those missing that a marker spells, however it is written."""
    # Markers are taken as precisely as the numbers are written.
    kind = np.float32 if numbers.dtype == np.float32 else np.float64
    markers = pd.to_numeric(pd.Series(list(na_values)), errors="coerce").dropna()
    if markers.empty:
        return numbers
    known = pd.Series(numbers.to_numpy(kind, na_value=np.nan), index=numbers.index)
    return numbers.mask(known.isin(markers.astype(kind)))


def numbers_of(
    column: pd.Series[Any], name: str, na_values: Sequence[str] = (), *, are_weights: bool = False
) -> Floats:
    """The numbers of a column, NaN where one is missing.

    Args:
        column: Numbers, booleans, or text that spells numbers; missing values or empty text.
        name: Its name in errors.
        na_values: Texts that stand for a missing value.
        are_weights: Whether they are weights of rows, for errors, and not for a model.

    Raises:
        ValueError: If a cell holds something else, or a number is infinite.
    """
    wanted = f"The column {name!r} must hold numbers to be {'weights' * are_weights or 'numeric'}"
    if column.dtype.kind in "mM":
        raise ValueError(f"{wanted}, got times such as {column.dropna().iloc[0]!s}.")
    if column.dtype.kind not in "iufb":
        column = column.astype(object)
        column = column.mask(column.astype(object) == "")
        if na_values:
            column = column.mask(column.isin(list(na_values)))
        found = pd.to_numeric(column, errors="coerce")
        is_odd = found.isna() & column.notna()
        odd = column[is_odd]
        if len(odd):
            # Booleans are numbers in Parquet, and texts in text files.
            spelled = odd.astype(str).str.strip().str.lower().map(_BOOLEANS)
            found = found.astype(np.float64)
            found[is_odd], odd = spelled.to_numpy(), odd[spelled.isna()]
        # As Arrow reads text that is a number: NaN is one, if missing.
        if (odd := odd[odd.astype(str).str.strip(" +-").str.lower() != "nan"]).size:
            ids = "" if are_weights else "; if the column holds ids, name it among the features"
            raise ValueError(
                f"{wanted}, got {odd.iloc[0]!r}, first in the row of index {odd.index[0]}. If it "
                f"stands for a missing one, it must be among the `na_values` of the search{ids}."
            )
        column = found
    if column.dtype.kind != "b":
        column = _without_markers(column, na_values)
    with np.errstate(over="ignore"):
        numbers = column.to_numpy(np.float32, na_value=np.nan)
    _check_finite(numbers, name)
    return numbers


def check_weights(weight: Floats, name: str) -> None:
    """Check the weights of rows, NaN where one is missing.

    Raises:
        ValueError: If one is negative, or none is above 0.
    """
    if (weight < 0).any():
        raise ValueError(
            f"The column {name!r} must hold weights of at least 0, got {np.nanmin(weight):g}."
        )
    if not (weight > 0).any():
        raise ValueError(f"The column {name!r} must hold a weight above 0, got only 0.")


def _check_finite(numbers: NDArray[Any], name: str) -> None:
    if np.isinf(numbers).any():
        raise ValueError(
            f"The column {name!r} must hold finite numbers, got {numbers[np.isinf(numbers)][0]} "
            "(or one too large for 32 bits)."
        )


def _logs(values: Floats | FileArray, name: str) -> Iterator[NDArray[np.float64]]:
    """Signed logarithms of the numbers that there are, some at a time."""
    for start in range(0, len(values), _CHUNK):
        chunk = np.asarray(values[start : start + _CHUNK])
        _check_finite(chunk, name)
        yield _signed_log(chunk[~np.isnan(chunk)])


def _warn_of_few_steps(values: Floats | FileArray, least: float, most: float, name: str) -> None:
    """Warn of numbers that lie so close together that floats of 32 bits tell few of them apart.

    Args:
        values: The numbers.
        least: The least of them, as signed logarithm.
        most: The largest.
        name: The column.
    """
    low, high = (float(np.sign(log) * np.expm1(abs(log))) for log in (least, most))
    step = float(np.spacing(np.float32(max(abs(low), abs(high)))))
    # Whole numbers of so many digits are all told apart.
    if high - low < _FEW_STEPS * step and not (step <= 1 and _are_whole(values)):
        warnings.warn(
            f"The numbers of the column {name!r}, from {low:g} to {high:g}, lie so close together "
            f"that floats of 32 bits, {step:g} apart, tell few of them apart: take what is common "
            "to all of them away before.",
            stacklevel=4,
        )


def _are_whole(values: Floats | FileArray) -> bool:
    chunks = (
        np.asarray(values[start : start + _CHUNK]) for start in range(0, len(values), _CHUNK)
    )
    return all((np.isnan(chunk) | (chunk == np.floor(chunk))).all() for chunk in chunks)


def _signed_log(values: NDArray[Any]) -> NDArray[np.float64]:
    wide = values.astype(np.float64)
    return np.sign(wide) * np.log1p(np.abs(wide))
