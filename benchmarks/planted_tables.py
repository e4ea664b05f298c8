"""Tables whose best sizes are known, because it was planted what their ids say about the label.

Each kind is a function of a seed alone. Its table has columns of ids, ``label`` (0 or 1) and
``split`` (0 training, 1 validation, 2 test), and it knows what a search must find.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pandas as pd

from optuna_nis import Allocation

Array = NDArray[Any]

# Rows of training, validation and the test, which decides nothing but whether it was found.
PARTS = (32_000, 4_000, 8_000)
# A feature counts as removed with at most so much of the memory that was found, and as kept with
# rows for so many of the occurrences of its ids.
REMOVED, KEPT = 0.02, 0.9
# Of rare ids, which a search takes and leaves by blocks, some may be on the wrong side.
MOST, FEW = 0.8, 0.2
# So many ids of a skewed feature say something where its tail says nothing.
HEAD = 50


@dataclass(frozen=True)
class Planted:
    """A table, and what a search must find in it.

    Attributes:
        frame: The features, ``label`` and ``split``.
        budget: Embedding memory, a share of the full tables.
        found: Whether sizes are what was planted.
        trained: Whether the sizes must also do as well as their rivals after a training.
    """

    frame: pd.DataFrame
    budget: float
    found: Callable[[Allocation], bool]
    trained: bool = False

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(name for name in self.frame.columns if name not in ("label", "split"))


def memory_share(sizes: Allocation, name: str) -> float:
    """The share of the memory of some sizes that a feature takes."""
    return sizes[name].num_parameters / max(sizes.num_parameters, 1)


def share_with_rows(
    sizes: Allocation, frame: pd.DataFrame, name: str, *, part: int = 0, after: int = 0
) -> float:
    """The share of the occurrences of a feature's ids of which the ids have rows.

    Args:
        sizes: Sizes.
        frame: A table.
        name: The feature.
        part: The part of the split whose occurrences count. Ids that training has not seen do not.
        after: Leave out so many of the ids that are most frequent in training.
    """
    ranked = frame[name][frame["split"] == 0].value_counts(sort=True).index
    counts = frame[name][frame["split"] == part].value_counts().reindex(ranked, fill_value=0)
    rest = counts.iloc[after:]
    return float(rest.iloc[: max(sizes[name].kept - after, 0)].sum() / rest.sum())


def noise(seed: int) -> Planted:
    """A feature of many ids that say nothing: their rows only overfit."""
    table = _Table(seed)
    logit = table.add("user", 400, effect=1.0) + table.add("item", 300, effect=1.0)
    table.add("noise", 3_000)
    return table.planted(logit, 0.25, lambda sizes: memory_share(sizes, "noise") <= REMOVED)


def decisive(seed: int) -> Planted:
    """One feature decides, all of whose ids are alike frequent; three larger ones say little."""
    table = _Table(seed)
    logit = table.add("decisive", 800, effect=2.0)
    for name in ("shop", "brand", "region"):
        logit = logit + table.add(name, 1_500, skew=1.0, effect=0.5, head=20)
    return table.planted(
        logit, 0.05, lambda sizes: share_with_rows(sizes, table.frame, "decisive") >= KEPT
    )


def tails(seed: int) -> Planted:
    """The rare ids of one feature say as much as the frequent ones, those of another nothing."""
    table = _Table(seed)
    logit = table.add("deep", 1_000, skew=0.8, effect=2.0)
    logit = logit + table.add("shallow", 1_000, skew=0.8, effect=2.0, head=HEAD)

    def found(sizes: Allocation) -> bool:
        deep, shallow = (
            share_with_rows(sizes, table.frame, name, after=HEAD) for name in ("deep", "shallow")
        )
        return deep >= MOST and shallow <= FEW

    return table.planted(logit, 0.125, found)


def drift(seed: int) -> Planted:
    """The items of the latest weeks were rare in training, those frequent in training are gone.

    The week itself never comes again.
    """
    table = _Table(seed, weeks=11)
    logit = table.drifting("item", 1_500, effect=2.0)
    logit = logit + table.add("shop", 1_000, skew=1.0, effect=1.0, head=HEAD)
    table.frame["week"] = table.week

    def found(sizes: Allocation) -> bool:
        kept = share_with_rows(sizes, table.frame, "item", part=2)
        return kept >= MOST and memory_share(sizes, "week") <= REMOVED

    return table.planted(logit, 0.1, found)


def duplicates(seed: int) -> Planted:
    """A feature comes twice, with other numbers for the same ids; only one is worth its memory."""
    table = _Table(seed)
    logit = table.add("user", 300, effect=1.0) + table.add("item", 1_000, effect=1.5)
    codes = np.random.default_rng([seed, 1]).permutation(1_000)
    table.frame["item_code"] = codes[table.frame["item"]]

    def found(sizes: Allocation) -> bool:
        shares = sorted(share_with_rows(sizes, table.frame, name) for name in _COPIES)
        memory = [sizes[name].num_parameters for name in _COPIES]
        return shares[1] >= KEPT and min(memory) <= 0.1 * sum(memory)

    return table.planted(logit, 0.04, found)


_COPIES = ("item", "item_code")


def rare(seed: int) -> Planted:
    """Two labels of a hundred are 1: one feature says which, a larger one says nothing."""
    table = _Table(seed)
    logit = table.add("shop", 200, effect=1.5) + table.add("noise", 2_000) - 5.0

    def found(sizes: Allocation) -> bool:
        kept = share_with_rows(sizes, table.frame, "shop")
        return kept >= KEPT and memory_share(sizes, "noise") <= REMOVED

    return table.planted(logit, 0.25, found)


def two_stage(seed: int) -> Planted:
    """First what single ids say is learned, then nothing for long, then how they interact.

    A training of the reference model stays some hundreds of steps on the plateau between the two
    stages, longer the narrower its rows, and still longer with a projection.
    """
    table = _Table(seed)
    logit = table.add("user", 400, effect=3.0) + table.add("item", 300, effect=3.0)
    rng = np.random.default_rng([seed, 1])
    users, items = (rng.normal(size=(size, 3)) for size in (400, 300))
    together = (users[table.frame["user"]] * items[table.frame["item"]]).sum(1) / 3**0.5
    return table.planted(logit + 5.0 * together, 0.25, lambda sizes: True, trained=True)


KINDS: dict[str, Callable[[int], Planted]] = {
    each.__name__: each for each in (two_stage, noise, decisive, tails, drift, duplicates, rare)
}


def generate(kind: str, seed: int) -> Planted:
    """A table of a kind.

    Args:
        kind: A key of :data:`KINDS`.
        seed: Another seed is another table of the same kind.
    """
    return KINDS[kind](seed)


class _Table:
    """A table in the making, which draws all that it needs from one seed."""

    def __init__(self, seed: int, weeks: int | None = None) -> None:
        self._rng = np.random.default_rng(seed)
        rows = sum(PARTS)
        self.frame = pd.DataFrame(index=range(rows))
        self._split = np.repeat(range(3), PARTS)
        self.week = np.zeros(rows, dtype=np.int64)
        if weeks is not None:
            # The last but one for validation, the last for the test.
            early = np.sort(self._rng.integers(weeks - 2, size=PARTS[0]))
            self.week = np.where(self._split == 0, 0, weeks - 3 + self._split)
            self.week[: PARTS[0]] = early

    def add(
        self, name: str, num_ids: int, *, skew: float = 0.0, effect: float = 0.0, head: int = 0
    ) -> Array:
        """Draw the ids of a feature; returns what they add to the logit of each row.

        Args:
            name: Name of the feature.
            num_ids: Number of its ids.
            skew: Power with which the frequency falls with the rank.
            effect: Standard deviation of what an id adds.
            head: Only so many of the most frequent add something; 0 is all.
        """
        weights = np.arange(1.0, num_ids + 1) ** -skew
        ids = self._rng.choice(num_ids, size=len(self.frame), p=weights / weights.sum())
        return self._with_effect(name, num_ids, ids, effect, head)

    def drifting(self, name: str, num_ids: int, *, effect: float) -> Array:
        """Draw the ids of a feature each of which is popular around a week of its own."""
        # Many peaked early on; of the latest, training has seen little.
        peaks = self._rng.uniform(-1.0, self.week.max() + 2.0, size=num_ids)
        ids = np.empty(len(self.frame), dtype=np.int64)
        for week in range(self.week.max() + 1):
            rows = self.week == week
            weights = np.exp(-(((week - peaks) / 2.0) ** 2)) + 1e-4
            ids[rows] = self._rng.choice(num_ids, size=rows.sum(), p=weights / weights.sum())
        return self._with_effect(name, num_ids, ids, effect, 0)

    def _with_effect(self, name: str, num_ids: int, ids: Array, effect: float, head: int) -> Array:
        effects = effect * self._rng.normal(size=num_ids)
        if head:
            # By the rows of training: who finds the others cannot know what was likely.
            counts = np.bincount(ids[: PARTS[0]], minlength=num_ids)
            effects[np.argsort(-counts, kind="stable")[head:]] = 0.0
        self.frame[name] = ids
        added: Array = effects[ids]
        return added

    def planted(
        self, logit: Array, budget: float, found: Callable[[Allocation], bool], **options: Any
    ) -> Planted:
        """The table with labels drawn by their logits."""
        label = self._rng.random(len(logit)) < 1.0 / (1.0 + np.exp(-logit))
        self.frame["label"] = label.astype(np.int64)
        self.frame["split"] = self._split
        return Planted(self.frame, budget, found, **options)
