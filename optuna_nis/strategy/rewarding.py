"""What the choices of a search are worth: their quality, less what their memory costs."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from optuna_nis.space.allocation import Allocation
from optuna_nis.space.space import SearchSpace
from optuna_nis.strategy.decision import tie
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.reward import Reward, penalised_reward
from optuna_nis.strategy.scoring import Scoring


def reward_of(
    choice: Allocation,
    quality: float,
    space: SearchSpace,
    *,
    penalty_weight: float,
    memory_price: float = 0.0,
) -> Reward:
    """The reward of a choice, penalised by its bytes.

    Raises:
        ValueError: As :func:`~optuna_nis.penalised_reward`.
    """
    nbytes = choice.nbytes()
    reward = penalised_reward(
        quality,
        nbytes,
        space.budget_nbytes,
        penalty_weight=penalty_weight,
        memory_price=memory_price,
    )
    return replace(reward, num_parameters=choice.num_parameters, nbytes=nbytes)


class Rewarding:
    """Gives the rewards of a search.

    Args:
        space: The search space.
        plan: The numbers that shape the search.

    Attributes:
        error: Standard error of a quality on all validation data, if that is known. Of choices
            that it cannot tell apart, the one with the fewest bytes is best.
        reference: Quality of the full tables on all validation data, once that is known.
    """

    def __init__(self, space: SearchSpace, plan: SearchPlan) -> None:
        self._space = space
        self._plan = plan
        self.error: Callable[[float], float] | None = None
        self.reference: float | None = None

    @property
    def memory_price(self) -> float:
        """What the whole budget costs, in units of the quality: what validation cannot resolve."""
        if self.error is None or self.reference is None:
            return 0.0
        return tie(self.error(self.reference))

    def reward(self, quality: float, choice: Allocation) -> Reward:
        """The reward of a choice.

        Raises:
            ValueError: If the quality is not a finite number.
        """
        return reward_of(
            choice,
            quality,
            self._space,
            penalty_weight=self._plan.penalty_weight,
            memory_price=self.memory_price,
        )

    def refer(self) -> Generator[Scoring, Sequence[float], None]:
        """Ask what the full tables are worth, if that is not known."""
        if self.reference is None:
            full = self._space.full()
            (quality,) = yield Scoring((full,), None)
            self.reference = self.reward(quality, full).quality
