"""Choices as distributions name them and storages give them back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import json
import math
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from optuna_nis.space.constraint import Choice

_MAX_CHOICES = 256
_MAX_NUMERIC_VALUES = 32


def find_choice(choices: Sequence[Choice], value: Any) -> int | None:
    """Index of a value among choices, or :obj:`None`.

    Floats may differ by rounding, and lists, tuples and dictionaries by what a storage makes of
    them.
    """
    try:
        return choices.index(value)
    except ValueError:
        pass
    if not is_plain(value) and (text := _written(value)) is not None:
        for index, choice in enumerate(choices):
            if not is_plain(choice) and _written(choice) == text:
                return index
    if isinstance(value, float):
        for index, choice in enumerate(choices):
            if isinstance(choice, float) and (
                math.isclose(value, choice, rel_tol=1e-9, abs_tol=1e-12)
                or (math.isnan(value) and math.isnan(choice))
            ):
                return index
    return None


def is_plain(choice: Any) -> bool:
    """Whether a choice comes back from every storage as it was."""
    return choice is None or isinstance(choice, (bool, int, float, str))


def same_choices(a: Sequence[Choice], b: Sequence[Choice]) -> bool:
    """Whether choices are the same, for a storage that writes them down at least.

    Example:
        >>> same_choices([(3, 3), None], [[3, 3], None])
        True
        >>> same_choices([[3, 3], None], [[3, 3], 0])
        False
    """
    return len(a) == len(b) and all(
        x == y or ((text := _written(x)) is not None and text == _written(y)) for x, y in zip(a, b)
    )


def _written(choice: Any) -> str | None:
    """What a storage writes for a choice: tuples become lists, and keys become text."""
    try:
        return json.dumps(json.loads(json.dumps(choice)), sort_keys=True)
    except (TypeError, ValueError):
        return None


def option_finder(
    choices: Mapping[str, Sequence[Choice]],
) -> Callable[[Mapping[str, Any]], list[int] | None]:
    """A function from params to options, if they have a known choice for every parameter."""
    places = {
        name: {o: place for place, o in reversed(list(enumerate(options))) if is_plain(o)}
        for name, options in choices.items()
    }

    def find(params: Mapping[str, Any]) -> list[int] | None:
        row = []
        for name, options in choices.items():
            if name not in params:
                return None
            value = params[name]
            try:
                option = places[name].get(value)
            except TypeError:  # A list or a dictionary.
                option = None
            if option is None and (option := find_choice(options, value)) is None:
                return None
            row.append(option)
        return row

    return find


def enumerate_choices(distribution: BaseDistribution) -> tuple[Choice, ...] | None:
    """The values of a distribution, or :obj:`None` if there is only one or too many to learn.

    Example:
        >>> enumerate_choices(IntDistribution(2, 6, step=2))
        (2, 4, 6)
    """
    if isinstance(distribution, CategoricalDistribution):
        values = tuple(distribution.choices)
        return values if 2 <= len(values) <= _MAX_CHOICES else None
    if isinstance(distribution, (IntDistribution, FloatDistribution)) and distribution.step:
        low, high, step = distribution.low, distribution.high, distribution.step
        count = round((high - low) / step) + 1
        if 2 <= count <= _MAX_NUMERIC_VALUES:
            # Sums of floats may be a little more than the highest, which Optuna then refuses.
            return tuple(min(low + index * step, high) for index in range(count))
    return None


def same_distribution(a: BaseDistribution, b: BaseDistribution) -> bool:
    """Whether two distributions are equal."""
    # Optuna compares choice by choice; thousands of replayed trials are almost always equal.
    if a is b or (type(a) is type(b) and (a.__dict__ == b.__dict__ or a == b)):
        return True
    if isinstance(a, CategoricalDistribution) and isinstance(b, CategoricalDistribution):
        return same_choices(a.choices, b.choices)
    return False


def common_distributions(
    common: dict[str, BaseDistribution] | None, other: Mapping[str, BaseDistribution]
) -> dict[str, BaseDistribution]:
    """What distributions have in common with others; all of them if there were none yet."""
    if common is None:
        return dict(other)
    if all(n in other and same_distribution(d, other[n]) for n, d in common.items()):
        return common
    return {n: d for n, d in common.items() if n in other and same_distribution(d, other[n])}
