"""In how many cells of the quality benchmark the search is above its rivals, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import math
from statistics import median
from typing import Any

Cell = Mapping[str, Any]
Place = tuple[str, float]

HALVES = ("chosen", "judged")
# What is found by the search, with bits, in float32, after ``retrain`` has decided and with tuned
# options, and what each is held against.
RIVALS = {
    "nis_bits": (
        *("full", "uniform", "mde", "nis_me", "full_rounded", "full_pq", "uniform_rounded"),
        *("uniform_pq", "uniform_lsq", "nis_rounded", "hashing", "quotient_remainder"),
        *("mpe", "pep", "optembed"),
    ),
    "nis_me": ("uniform", "mde", "full", "full_tuned", "uniform_tuned"),
    "nis_retrained": ("uniform", "mde", "full"),
    "nis_tuned": ("full_tuned", "uniform_tuned"),
}
# Of the full tables' size, and fair rivals only from this budget on.
_FULL = ("full", "full_tuned")
_FULL_FROM = 0.25


def summary(cells: Iterable[Cell]) -> dict[str, Any]:
    """What the cells say about the search, for each half of the data and for all.

    A method is held against a rival where both have a cell of the same data and budget; full
    tables are rivals at budgets of 25 % and above. The means on test are *within one standard
    deviation* if they differ by no more than the two methods' pooled one over their seeds, the
    square root of the mean of their variances, ``sqrt((a**2 + b**2) / 2)``.

    Returns:
        For ``"chosen"``, ``"judged"`` and ``"all"``: under ``"against"``, for tables of the search
        (``"nis_bits"`` in few bits, ``"nis_me"`` in float32, ``"nis_retrained"`` after ``retrain``
        has decided, ``"nis_tuned"`` with tuned options) and each rival the number of cells that
        are above, within and below; under ``"below"`` the cells that are below; under ``"gains"``
        the relative gain of ``"nis_bits"`` over ``"nis_me"`` by data and budget; and under
        ``"costs"``, for both, the number of cells and median and maximum of
        ``"search_cost_ratio"`` and ``"steps_ratio"``.
    """
    cells = list(cells)
    parts = {each: [cell for cell in cells if cell["half"] == each] for each in HALVES}
    return {name: _summary(part) for name, part in {**parts, "all": cells}.items()}


def _summary(cells: Sequence[Cell]) -> dict[str, Any]:
    places: dict[Place, dict[str, Cell]] = {}
    for cell in cells:
        places.setdefault((cell["data"], cell["budget"]), {})[cell["method"]] = cell
    against: dict[str, dict[str, dict[str, int]]] = {}
    below: list[dict[str, Any]] = []
    for method, rivals in RIVALS.items():
        against[method] = {}
        for rival in rivals:
            counts = dict.fromkeys(("above", "within", "below"), 0)
            for (data, budget), at in places.items():
                if not {method, rival} <= at.keys() or (rival in _FULL and budget < _FULL_FROM):
                    continue
                own, other = at[method], at[rival]
                std = pooled_std(own, other)
                where = compared(own["mean"] - other["mean"], std)
                counts[where] += 1
                if where == "below":
                    means = {"mean": own["mean"], "rival_mean": other["mean"], "std": std}
                    place = {"data": data, "budget": budget}
                    below.append({**place, "method": method, "rival": rival, **means})
            if any(counts.values()):
                against[method][rival] = counts
    gains: dict[str, dict[str, float]] = {}
    for (data, budget), at in places.items():
        if {"nis_bits", "nis_me"} <= at.keys():
            gain = at["nis_bits"]["mean"] / at["nis_me"]["mean"] - 1.0
            gains.setdefault(data, {})[str(budget)] = gain
    costs = {}
    for method in ("nis_bits", "nis_me"):
        found = [at[method] for at in places.values() if method in at]
        ratios = {name: _spread([cell[name] for cell in found]) for name in _RATIOS}
        costs[method] = {"cells": len(found), **ratios}
    return {"against": against, "below": below, "gains": gains, "costs": costs}


_RATIOS = ("search_cost_ratio", "steps_ratio")


def pooled_std(one: Cell, other: Cell) -> float:
    """Standard deviation over the seeds of two methods together."""
    return math.sqrt((one["std"] ** 2 + other["std"] ** 2) / 2)


def compared(difference: float, std: float) -> str:
    """Where a mean is, which differs so much from another."""
    if abs(difference) <= std:
        return "within"
    return "above" if difference > 0 else "below"


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    return {"median": median(values), "max": max(values)} if values else None
