"""Memory budgets, as people write them."""

from __future__ import annotations

from fractions import Fraction
import math
from numbers import Integral
import re

_BYTES_PER_ELEMENT = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
# More than any tables.
_LARGEST = 10**30


def bytes_per_element(dtype: str) -> int:
    """Size of one embedding parameter in bytes.

    Args:
        dtype: ``"float64"``, ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"int8"``; the
            ``torch.`` prefix of ``str(torch.float32)`` is accepted.

    Raises:
        ValueError: If the type is not one of these.

    Example:
        >>> bytes_per_element("float16")
        2
    """
    name = str(dtype).removeprefix("torch.")
    if name not in _BYTES_PER_ELEMENT:
        known = ", ".join(sorted(_BYTES_PER_ELEMENT))
        raise ValueError(f"`dtype` must be one of {known}, got {dtype!r}.")
    return _BYTES_PER_ELEMENT[name]


def parse_budget(budget: int | float | str, full: int, dtype: str = "float32") -> int:
    """Turn a budget as people write it into a number of parameters.

    Args:
        budget: An :obj:`int` is a number of parameters, a :obj:`float` in (0, 1] a fraction of
            the full tables, a :obj:`str` either a percentage (``"20%"``) or bytes
            (``"64MB"``, ``"1.5GiB"``).
        full: Number of parameters of the full tables.
        dtype: Type of one parameter, for budgets in bytes.

    Returns:
        The number of embedding parameters allowed.

    Raises:
        TypeError: If the budget is none of these types.
        ValueError: If it is not positive, not finite, cannot be read, or is larger than the
            full tables.

    Example:
        >>> parse_budget("25%", full=1_000)
        250
        >>> parse_budget("1kB", full=1_000, dtype="float32")
        250
    """
    # Integers of numpy, too.
    if isinstance(budget, bool) or not isinstance(budget, (Integral, float, str)):
        raise TypeError(
            "`budget` must be a number of parameters (int), a fraction of the full tables "
            f'(float), or a string such as "64MB" or "20%", got {budget!r}.'
        )
    if isinstance(budget, str):
        parameters = _parse_text(budget, full, dtype)
    elif isinstance(budget, float):
        if not 0.0 < budget <= 1.0:
            raise ValueError(
                f"`budget` as a float is a fraction of the full tables in (0, 1], got {budget!r}; "
                "give an int for a number of parameters."
            )
        # Of what is written: 29 % of 100 are 29, of the float that is nearest to it 28.
        parameters = math.floor(Fraction(str(float(budget))) * full)
    else:
        parameters = int(budget)
    size = bytes_per_element(dtype)
    if parameters <= 0:
        raise ValueError(f"`budget` must be at least one parameter, {size} bytes, got {budget!r}.")
    if parameters > full:
        raise ValueError(
            f"`budget` must be at most the full tables, {size * full:,} bytes ({full:,} "
            f"parameters), got {budget!r}, which is {size * parameters:,} bytes."
        )
    return parameters


def _parse_text(budget: str, full: int, dtype: str) -> int:
    text = budget.strip().upper()
    match = re.fullmatch(r"([-+]?\d+(?:\.\d*)?|\.\d+)\s*(%|(?:[KMGT]I?)?B)?", text)
    if match is None:
        raise ValueError(
            '`budget` as a string must be bytes such as "64MB" or "1.5GiB", a percentage such as '
            f'"20%", or a number of parameters, got {budget!r}.'
        )
    number, unit = Fraction(match[1]), match[2]
    if number > _LARGEST:
        raise ValueError(
            f"`budget` must be at most the full tables, got a number of {len(match[1])} digits."
        )
    if unit is None:
        # As a number in Python: with a point it is a fraction.
        return parse_budget(float(number), full, dtype) if "." in match[1] else int(number)
    if unit == "%":
        return math.floor(number / 100 * full)
    return math.floor(number * _UNITS[unit.removesuffix("B")] / bytes_per_element(dtype))
