"""Whether a choice is as good without one of its features, or without the rare ids of one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
import math

from optuna_nis.space.allocation import Allocation, TableAllocation, Tier
from optuna_nis.strategy.reward import Reward
from optuna_nis.strategy.scoring import Scoring

# Most that is left out, one thing after the other.
_MOST_STEPS = 4
# By how many times the tolerance some examples must show a choice to be worse.
_SURELY_WORSE = 10
# Most that is tried on all validation data: those that look best on some examples.
_MOST_PARTS = 24
# So many at once, where it is known what they were worth before something else was left out.
_AT_ONCE = 2

Part = tuple[str, int]


def simpler(choice: Allocation) -> dict[Part, Allocation]:
    """A choice without each of its features, and without the last tier of each.

    Rows that ids without one share go first: they would cost more in a wider tier. What would keep
    nothing at all is not among them.

    Args:
        choice: The choice.

    Returns:
        By the feature and the number of tiers that are left.

    Example:
        >>> from optuna_nis import TableAllocation
        >>> user = TableAllocation("user", 10, 4, (Tier(2, 4), Tier(8, 1)))
        >>> for part, each in simpler(Allocation([user])).items():
        ...     print(part, each)
        ('user', 1) user: 2x4 (of 10x4)
        >>> city = TableAllocation("city", 3, 4, (Tier(3, 4),))
        >>> list(simpler(Allocation([user, city])))
        [('user', 1), ('user', 0), ('city', 0)]
    """
    found = {}
    for name, table in choice.items():
        for tiers in _fewer(table):
            tables = {**choice, name: replace(table, tiers=tiers, num_shared=0)}
            found[name, len(tiers)] = Allocation(tables.values()).widened()
    return {part: each for part, each in found.items() if each.num_parameters}


def _fewer(table: TableAllocation) -> Iterator[tuple[Tier, ...]]:
    if table.num_shared:
        yield table.tiers
    elif len(table.tiers) > 1:
        yield table.tiers[:-1]
    if table.tiers:
        yield ()


def simplify(
    choice: Allocation,
    known: Reward,
    reward: Callable[[float, Allocation], Reward],
    *,
    tolerance: float,
    num_examples: int,
) -> Generator[Scoring, Sequence[float], tuple[Allocation | None, dict[Allocation, Reward]]]:
    """Leave out of a choice, one after the other, what its quality does not show.

    A supernet trains features that say the same side by side, so one of them alone looks worse
    than it is once it is trained for real: what is left out may cost a little.

    Args:
        choice: The choice.
        known: Its reward.
        reward: The reward of a choice by its quality.
        tolerance: By how much the reward may be lower than that of the choice.
        num_examples: Examples that show what is far too bad and, of very many, what is best.

    Returns:
        The simpler choice, None if there is none, and the rewards of all that were scored on all
        validation data, but for those whose quality was not a finite number.
    """
    options = simpler(choice)
    on_some = yield Scoring((choice, *options.values()), num_examples)
    least = on_some[0] - _SURELY_WORSE * tolerance
    likely = {
        part: reward(quality, options[part]).value
        for part, quality in zip(options, on_some[1:])
        if least <= quality < math.inf
    }
    parts = sorted(likely, key=likely.__getitem__, reverse=True)[:_MOST_PARTS]
    scored: dict[Allocation, Reward] = {}
    taken: Allocation | None = None
    # What is gained by leaving out each part, as far as that is known. It is no more beside others
    # that are gone: parts that gained less before are scored only if the others have come down to
    # them (Minoux, 1978).
    gains = dict.fromkeys(parts, math.inf)
    value, least = known.value, known.value - tolerance
    for _ in range(_MOST_STEPS):
        options = {p: each for p, each in simpler(taken or choice).items() if p in gains}
        waiting = sorted(options, key=gains.__getitem__, reverse=True)
        new: dict[Part, float] = {}
        while waiting and gains[waiting[0]] > max(new.values(), default=-math.inf):
            size = len(waiting) if math.isinf(gains[waiting[0]]) else _AT_ONCE
            group, waiting = waiting[:size], waiting[size:]
            # The choice again: validation data may not be the same each time they are gone over.
            *qualities, again = yield Scoring((*(options[p] for p in group), choice), None)
            if again != known.quality:
                qualities = [known.quality + (quality - again) for quality in qualities]
            new |= dict.fromkeys(group, -math.inf)
            for part, quality in zip(group, qualities):
                if math.isfinite(quality):
                    scored[options[part]] = reward(quality, options[part])
                    new[part] = scored[options[part]].value - value
        gains = {part: new.get(part, gains[part]) for part in options}
        gains = {part: gain for part, gain in gains.items() if value + gain >= least}
        best = max((part for part in gains if part in new), key=gains.__getitem__, default=None)
        if best is None:
            break
        taken, gone = options[best], gains[best]
        value = scored[taken].value
        # What else may go of this feature had in it what has gone now.
        gains = {part: gain - gone * (part[0] == best[0]) for part, gain in gains.items()}
    return taken, scored
