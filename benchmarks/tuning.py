"""What a careful person tries: options of the model one after the other, features left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Result = dict[str, Any]
Options = dict[str, float]

# Neighbours on the ladder of learning rates; dropouts; the weight of the penalty after none.
_RATE_FACTOR = 2.5
_DROPOUTS = (0.0, 0.1, 0.3, 0.5)
_LEAST_L2 = 1e-4
# Values of an option that are tried before it is known in which direction to go on.
_FIRST = 3


def ladders(defaults: Mapping[str, float]) -> dict[str, tuple[float, ...]]:
    """The values of each option that may be tried, in order; the default is among them.

    Example:
        >>> ladders({"learning_rate": 0.005, "l2": 0.001, "dropout": 0.0})["learning_rate"]
        (0.0008, 0.002, 0.005, 0.0125, 0.0312)
    """
    rate, l2 = defaults["learning_rate"], defaults["l2"]
    rates = (float(f"{rate * _RATE_FACTOR**n:.3g}") for n in (-2, -1, 1, 2))
    return {
        "learning_rate": tuple(sorted({rate, *rates})),
        "l2": (0.0, *(float(f"{(l2 or _LEAST_L2) * 10**n:.3g}") for n in range(3))),
        "dropout": tuple(sorted({*_DROPOUTS, defaults["dropout"]})),
    }


def climb(
    ladder: Sequence[float],
    start: float,
    qualities: Callable[[Sequence[float]], Sequence[float]],
) -> float:
    """The best value on a ladder, as far as a careful person would look.

    Three values about the start are tried, and further ones as long as the best is the last that
    was tried in its direction.

    Args:
        ladder: Values in order, three or more.
        start: The one to begin with, which wins ties.
        qualities: How good some of them are.
    """
    low = min(max(ladder.index(start) - 1, 0), len(ladder) - _FIRST)
    high = low + _FIRST - 1
    first = ladder[low : high + 1]
    known = dict(zip(first, qualities(first)))
    while True:
        best = max(known, key=lambda value: (known[value], value == start))
        if best == ladder[low] and low > 0:
            low -= 1
            further = ladder[low]
        elif best == ladder[high] and high < len(ladder) - 1:
            high += 1
            further = ladder[high]
        else:
            return best
        (known[further],) = qualities([further])


def tune(
    defaults: Mapping[str, float], train: Callable[[Sequence[Options]], Sequence[Result]]
) -> tuple[Options, list[Result]]:
    """Tune learning rate, l2 and dropout, each with the best of those before.

    Args:
        defaults: What the options are if nothing is said.
        train: Trains with some options that are not the defaults, side by side; ``"val"`` of its
            results is gone by.

    Returns:
        The best options, those that are the defaults left out, and what was trained, each once.
    """
    chosen: Options = {}
    runs: dict[frozenset[tuple[str, float]], Result] = {}

    def qualities(name: str, values: Sequence[float]) -> list[float]:
        options = [_other_than(defaults, {**chosen, name: value}) for value in values]
        keys = [frozenset(each.items()) for each in options]
        new = {key: each for key, each in zip(keys, options) if key not in runs}
        runs.update(zip(new, train(list(new.values()))))
        return [runs[key]["val"] for key in keys]

    for name, ladder in ladders(defaults).items():
        best = climb(ladder, defaults[name], lambda values, name=name: qualities(name, values))
        chosen = _other_than(defaults, {**chosen, name: best})
    return chosen, list(runs.values())


def _other_than(defaults: Mapping[str, float], options: Mapping[str, float]) -> Options:
    return {name: value for name, value in options.items() if value != defaults[name]}


def leave_out(
    names: Iterable[str], train: Callable[[Sequence[frozenset[str]]], Sequence[Result]]
) -> tuple[frozenset[str], list[Result]]:
    """Leave out the feature without which validation is best, again and again.

    It ends when that improves validation by no more than the standard error of its metric, or one
    feature is left.

    Args:
        names: The features.
        train: Trains without some of them, side by side; ``"val"`` and ``"val_error"`` of its
            results are gone by.

    Returns:
        What to leave out, and what was trained.
    """
    names = list(names)
    out: frozenset[str] = frozenset()
    (best,) = train([out])
    tried = [best]
    while len(names) - len(out) > 1:
        without = [out | {name} for name in names if name not in out]
        runs = train(without)
        tried += runs
        place = max(range(len(runs)), key=lambda index: runs[index]["val"])
        if runs[place]["val"] - best["val"] <= best["val_error"]:
            break
        out, best = without[place], runs[place]
    return out, tried
