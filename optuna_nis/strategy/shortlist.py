"""Which candidates are trained for real, for how long, and who stays.

A supernet ranks choices badly across costs. Starting from its weights, a choice soon shows whether
it is too large or too small; but they suit choices with a few wide rows better than a training
from scratch does. So the best go on from scratch (successive halving: Jamieson and Talwalkar,
2016).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
import math

from optuna_nis._logging import get_logger
from optuna_nis.space.allocation import Allocation
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.reward import Reward

_logger = get_logger(__name__)

# Share of the batches of the supernet, or of an epoch, that make an epoch of the shortlist.
_OF_SUPERNET, _OF_EPOCH = 1 / 24, 0.5
# Standard errors below the best from which on no place is safe.
_HOPELESS_ERRORS = 5.0


@dataclass(frozen=True)
class Candidate:
    """A choice that was trained for real.

    Attributes:
        allocation: The choice.
        val_metric: Its metric on the validation data, negated if smaller is better: at the end of
            its last round or, where that was from scratch, the best of those rounds.
        is_finalist: Whether it was trained to the last round.
    """

    allocation: Allocation
    val_metric: float
    is_finalist: bool = True


@dataclass(frozen=True)
class Training:
    """A training that a shortlist asks for.

    Attributes:
        allocation: The sizes.
        epochs: Epochs of this round.
        from_scratch: Whether the round begins with a new model. The first one of all begins with
            the weights of the supernet, the others where the one before stopped.
        round: Number of the round, from 1.
        num_rounds: Rounds in all.
        position: Number of the training in its round, from 1.
        num_in_round: Trainings of the round.
    """

    allocation: Allocation
    epochs: int
    from_scratch: bool
    round: int
    num_rounds: int
    position: int
    num_in_round: int

    def __str__(self) -> str:
        how = " from scratch" if self.from_scratch else ""
        place = f"{self.position} of {self.num_in_round}{how}"
        return f"round {self.round} of {self.num_rounds}: {place}"


class Shortlist:
    """Asks for trainings of candidates, is told what they are worth, and keeps the better ones.

    After each round but the last, the worse half is dropped (of an odd number, the smaller half)
    and all but ``most_kept``; after rounds from scratch only what validation can tell from the
    best, where its standard error is known. Of rounds that begin with the weights of the supernet
    the metric at the end counts, since choices that are too large are at their best at the start;
    of those from scratch the best so far, to which a training to the end goes back. As long as
    rounds begin with the weights of the supernet, the smallest of those that are at most a
    standard error below the best has a place: small ones learn slowly, and go on when others
    overfit.

    Args:
        allocations: The candidates.
        plan: The numbers of its fields that begin with ``shortlist``, ``warm_rounds`` and
            ``most_kept``. Without any rounds nothing is trained.
        keep: Choices to which rounds from the supernet's weights are unfair. As long as there are
            such rounds, the best of these has a place beside the best of all.
        supernet_batches: Batches that the supernet was trained with, if that is known.
        error: Standard error of a value of the metric, if that is known. What is worse than the
            best by more than five of them has no safe place.
        reward: What a choice is worth by its metric, by which choices are compared; by default
            the metric itself.

    Attributes:
        error: See above; may be set later.

    Raises:
        ValueError: If there is no candidate.

    Example:
        >>> from optuna_nis import EmbeddingSpec, SearchSpace
        >>> from optuna_nis.strategy.baselines import uniform
        >>> space = SearchSpace([EmbeddingSpec("user", 1000, 8)], budget="50%")
        >>> shortlist = Shortlist([space.full(), uniform(space)])
        >>> while (training := shortlist.ask()) is not None:
        ...     shortlist.tell(-training.allocation.num_parameters)
        >>> print(shortlist.best())
        user: 1000x4 (of 1000x4)
    """

    def __init__(
        self,
        allocations: Sequence[Allocation],
        plan: SearchPlan | None = None,
        *,
        keep: Collection[Allocation] = (),
        supernet_batches: int | None = None,
        error: Callable[[float], float] | None = None,
        reward: Callable[[float, Allocation], Reward] | None = None,
    ) -> None:
        if not allocations:
            raise ValueError("`allocations` must hold at least one candidate, got none.")
        self._reward = reward
        self.error = error
        self.plan = plan or SearchPlan()
        self._supernet_batches = supernet_batches
        self._keep = keep
        self._values = dict.fromkeys(allocations, -math.inf)
        self._rounds = dict.fromkeys(allocations, 0)
        self._trainings = self._all_trainings()
        self._asked: Training | None = None

    @property
    def allocations(self) -> list[Allocation]:
        """The candidates, as they were given."""
        return list(self._values)

    def epoch_batches(self, num_batches: int) -> int:
        """Training batches that an epoch has here.

        Args:
            num_batches: Those of an epoch of the training data.
        """
        share = self.plan.shortlist_batches
        if share is None and self._supernet_batches:
            batches = round(self._supernet_batches * _OF_SUPERNET)
        else:
            batches = int(num_batches * (_OF_EPOCH if share is None else share))
        return min(max(batches, 1), num_batches)

    def ask(self) -> Training | None:
        """The next training, the same until its metric is told; None when all is done."""
        if self._asked is None:
            self._asked = next(self._trainings, None)
        return self._asked

    def tell(self, val_metric: float) -> None:
        """What the training came to.

        Args:
            val_metric: The metric on validation data at its end, larger is better; whatever is
                not a finite number ranks last.

        Raises:
            RuntimeError: If no training was asked for.
        """
        if self._asked is None:
            raise RuntimeError("`tell` answers `ask`, which has asked for no training.")
        value, asked = float(val_metric), self._asked
        value = value if math.isfinite(value) else -math.inf
        if asked.round > self.plan.warm_rounds and not asked.from_scratch:
            value = max(value, self._values[asked.allocation])
        self._values[asked.allocation] = value
        self._rounds[asked.allocation] = asked.round
        self._asked = None

    def candidates(self) -> list[Candidate]:
        """All choices whose metric is a finite number, best first, the finalists before others.

        Raises:
            RuntimeError: If trainings are left to be done.
            FloatingPointError: If there is none.
        """
        if self.ask() is not None:
            raise RuntimeError("The shortlist is not done: `ask` for the trainings that are left.")
        if not self.plan.shortlist_epochs:
            return []
        ranked = self._ranked(self._values)
        finite = [each for each in ranked if math.isfinite(self._values[each])]
        last = max((self._rounds[each] for each in finite), default=0)
        found = [
            Candidate(each, self._values[each], self._rounds[each] == last) for each in finite
        ]
        if ranked and not found:
            raise FloatingPointError(
                f"The metric was not a finite number for any of the {len(ranked)} choices: their "
                "trainings diverged, or it cannot be computed on the validation data."
            )
        if len(found) < len(ranked):
            _logger.warning(
                f"The metric was not a finite number for {len(ranked) - len(found)} of the "
                f"{len(ranked)} choices; they are left out."
            )
        return found

    def best(self) -> Allocation:
        """The best choice; raises as :meth:`candidates`."""
        return self.candidates()[0].allocation

    def _all_trainings(self) -> Iterator[Training]:
        alive, plan = self.allocations, self.plan
        for number, epochs in enumerate(plan.shortlist_epochs, start=1):
            anew = number == plan.warm_rounds + 1
            rounds = len(plan.shortlist_epochs)
            for position, allocation in enumerate(alive, start=1):
                yield Training(allocation, epochs, anew, number, rounds, position, len(alive))
            ranked = self._ranked(alive)
            others, places = ranked, (len(ranked) + 1) // 2
            if number <= plan.warm_rounds:
                near = self._near(ranked, _HOPELESS_ERRORS)
                safe = next(([each] for each in near if each in self._keep), [])
                small = self._smaller(self._near(ranked, 1.0))
                others = list(dict.fromkeys([ranked[0], *safe, *small, *others]))
                places = max(places, len({ranked[0], *safe, *small}))
            elif self.error is not None:
                others = self._near(ranked, 1.0)
                places = len(others)
            alive = others[: min(places, plan.most_kept)]

    def _near(self, ranked: Sequence[Allocation], errors: float) -> list[Allocation]:
        """Those that are at most so many standard errors below the best, which is the first."""
        best = self._values[ranked[0]]
        if self.error is None or not math.isfinite(best):
            return list(ranked)
        least = best - errors * self.error(best)
        return [each for each in ranked if self._values[each] >= least or each == ranked[0]]

    def _smaller(self, tied: Sequence[Allocation]) -> list[Allocation]:
        """The smallest of those that tie with the best, where that is known."""
        known = self.error is not None and math.isfinite(self.error(self._values[tied[0]]))
        return [min(tied, key=lambda each: each.nbytes())] if known else []

    def _ranked(self, allocations: Collection[Allocation]) -> list[Allocation]:
        return sorted(allocations, key=self._worth, reverse=True)

    def _worth(self, allocation: Allocation) -> tuple[int, float]:
        """What was trained for longer comes first, whatever others had at that time."""
        value = self._values[allocation]
        if self._reward is not None and math.isfinite(value):
            value = self._reward(value, allocation).value
        return self._rounds[allocation], value
