"""Every number that shapes a search, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
import math
from typing import Any

from optuna_nis._checks import check_integer, check_number
from optuna_nis.controller.settings import PolicySettings
from optuna_nis.study.keys import PLAN_OF_BEFORE

# Where the full tables are one of the choices that share a batch.
_SIDE_BY_SIDE = 2
# What people call fields elsewhere.
_ALIASES = {"max_epochs": "epochs", "updates": "num_updates", "rounds": "shortlist_epochs"}


@dataclass(frozen=True)
class SearchPlan:
    """The numbers that shape a search, with the defaults that the benchmarks were made with.

    They travel in the study: searches that share one have one plan. What each is worth is in
    ``benchmarks/ablation.py``.

    Args:
        epochs: Epochs of the supernet, where the search itself trains it; by default as many as it
            takes (:class:`~optuna_nis.lightning.convergence.Convergence`).
        warmup: Share of the training batches that come before the first update of the
            controller. 1 lets it learn from weights that are trained and stay as they are; less
            trains both in turns, as Joglekar et al. (2020, section 4) do.
        num_updates: Updates of the controller.
        group_size: Choices scored on the same examples for one update.
        score_examples: Validation examples that a group is scored on, at most a batch.
        choices_per_step: Choices that a training batch is shared among, the full tables being
            one of them; 1 takes the full tables in turns with another choice. By default 2 where
            the model can score several side by side, else 1.
        drawn_share: Where a step has room for one choice, the share of the random ones that the
            controller draws once it learns.
        near_budget: Share of the random choices that cost about the budget; the others cost
            anything below it. Where weights are trained, a supernet ranks best.
        near_costs: Lowest and highest cost of those, as shares of the budget.
        removal: Probability that a feature is removed in a choice of any cost.
        penalty_weight: Weight of the memory penalty of the reward. No choice above the budget is
            ever drawn, so it matters only for trials that others enqueued.
        budget_shares: Shares of the budget for each of which there is a candidate at the end, the
            first being 1: across costs only real trainings tell.
        further_shares: Further ones where numbers may have fewer than 32 bits, so that the best
            sizes may take a part of a part of a large budget: as far as they are a 1024th of the
            full tables or more.
        proposals: Choices that the policy proposes for each of them, beside what is worth most by
            its critic.
        proposal_draws: Draws that the proposals are the likeliest of.
        proposal_use: Share of its budget that a proposal uses at least, if any does.
        proposal_groups: Groups of examples that the proposals are scored on.
        random_proposals: Random choices that compete with them for each share of the budget, to
            see what proposals are worth.
        price_shares: Examples on which gradients of the loss price all blocks, as shares of those
            of the training: on paths between random choices near each share of the budget, then,
            for each further number, around what was found for it. Without any, none is priced.
        popularity_powers: Of mixed dimensions by popularity (Ginart et al., 2019), which compete
            with the proposals: a supernet sees rare ids seldom and takes them to be worth less
            than they are after a long training.
        frequent_shares: Shares of the budget for which the most frequent ids alone, at full width,
            compete for a place of their own; a supernet does them no justice.
        frequent_narrower: Whether more of the frequent ids, narrower, do so too.
        shortlist_epochs: Epochs of each round in which the candidates are trained for real
            (successive halving: Jamieson and Talwalkar, 2016).
        warm_rounds: The first so many rounds begin with the weights of the supernet; after them
            the candidates are trained from scratch.
        shortlist_batches: Share of the training batches that make an epoch there; by default an
            epoch there has one in 24 of the batches that the supernet was trained with.
        most_kept: Most candidates that are trained on after a round.
        keep_frequent: Whether the frequent ids may have a place beside the best as long as
            trainings begin with the weights of the supernet, which has trained them too little.
        keep_simple: Whether the best formula and the best of the uniform sizes may have it too.
        policy: How the controller learns.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> SearchPlan(warmup=0.5).num_updates
        16
    """

    epochs: int | None = None
    warmup: float = 1.0
    num_updates: int = 16
    group_size: int = 8
    score_examples: int = 2048
    choices_per_step: int | None = None
    drawn_share: float = 1 / 3
    near_budget: float = 0.8
    near_costs: tuple[float, float] = (0.8, 1.05)
    removal: float = 0.15
    penalty_weight: float = 1.0
    budget_shares: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125, 0.0625)
    further_shares: tuple[float, ...] = (1 / 64, 1 / 256)
    proposals: int = 8
    proposal_draws: int = 64
    proposal_use: float = 0.9
    proposal_groups: int = 2
    random_proposals: int = 0
    price_shares: tuple[float, ...] = (0.06, 0.04)
    popularity_powers: tuple[float, ...] = (0.3, 0.5)
    frequent_shares: tuple[float, ...] = (1.0, 0.5)
    frequent_narrower: bool = True
    shortlist_epochs: tuple[int, ...] = (1, 6)
    warm_rounds: int = 1
    shortlist_batches: float | None = None
    most_kept: int = 3
    keep_frequent: bool = True
    keep_simple: bool = True
    policy: PolicySettings = field(default_factory=PolicySettings)

    def __post_init__(self) -> None:
        for name, default in _defaults():
            value = getattr(self, name)
            if isinstance(default, bool):
                if not isinstance(value, bool):
                    raise ValueError(f"`{name}` must be True or False, got {value!r}.")
            elif isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            elif name == "policy" and isinstance(value, Mapping):
                object.__setattr__(self, name, PolicySettings(**value))
        if self.epochs is not None:
            check_integer("epochs", self.epochs, 1)
        for name, low in (
            ("num_updates", 1),
            ("group_size", 2),
            ("score_examples", 1),
            ("proposals", 1),
            ("proposal_draws", 1),
            ("proposal_groups", 1),
            ("random_proposals", 0),
            ("warm_rounds", 0),
            ("most_kept", 1),
        ):
            check_integer(name, getattr(self, name), low)
        if self.choices_per_step is not None:
            check_integer("choices_per_step", self.choices_per_step, 1)
        if not (isinstance(self.warmup, (int, float)) and 0.0 <= self.warmup <= 1.0):
            raise ValueError(f"`warmup` must be a share in [0, 1], got {self.warmup!r}.")
        for name in ("drawn_share", "near_budget", "removal", "proposal_use"):
            check_number(name, getattr(self, name), 0, math.nextafter(1, 2))
        if self.shortlist_batches is not None:
            check_number(
                "shortlist_batches",
                self.shortlist_batches,
                0,
                math.nextafter(1, 2),
                or_least=False,
            )
        check_number("penalty_weight", self.penalty_weight, 0)
        self._check_each("near_costs", 0.0, math.inf, length=2)
        if self.near_costs[0] > self.near_costs[1]:
            raise ValueError(
                f"`near_costs` must be the lowest and the highest, got {self.near_costs!r}."
            )
        self._check_each("budget_shares", 0.0, 1.0, first=1.0)
        self._check_each("further_shares", 0.0, 1.0)
        self._check_each("popularity_powers", 0.0, math.inf)
        self._check_each("frequent_shares", 0.0, 1.0)
        self._check_each("price_shares", 0.0, 1.0)
        self._check_each("shortlist_epochs", 0.0, math.inf)
        for epochs in self.shortlist_epochs:
            check_integer("shortlist_epochs", epochs, 1)
        if not isinstance(self.policy, PolicySettings):
            raise ValueError(f"`policy` must be PolicySettings, got {self.policy!r}.")

    def _check_each(
        self,
        name: str,
        low: float,
        high: float,
        *,
        length: int | None = None,
        first: float | None = None,
    ) -> None:
        values = getattr(self, name)
        if (
            not isinstance(values, tuple)
            or not all(isinstance(v, (int, float)) and low <= v <= high for v in values)
            or (length is not None and len(values) != length)
            or (first is not None and values[:1] != (first,))
        ):
            wanted = "a tuple of numbers" if length is None else f"a tuple of {length} numbers"
            begin = "" if first is None else f", the first being {first:g}"
            raise ValueError(
                f"`{name}` must be {wanted} from {low:g} to {high:g}{begin}, got {values!r}."
            )

    @classmethod
    def of(cls, plan: SearchPlan | None, settings: Mapping[str, Any]) -> SearchPlan:
        """A plan with some fields in place of its own.

        Args:
            plan: The plan; None is the default one.
            settings: Fields by name.

        Raises:
            TypeError: If there is no such field.
            ValueError: If a number is out of range.
        """
        known = [name for name, _ in _defaults()]
        for name in settings:
            if name not in known:
                raise TypeError(f"`{name}` is no field of a SearchPlan{_instead(name, known)}")
        if not isinstance(plan, SearchPlan | None):
            raise TypeError(f"`plan` must be a SearchPlan, got {type(plan).__name__}.")
        return replace(plan or cls(), **settings)

    def to_dict(self) -> dict[str, Any]:
        """As values for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SearchPlan:
        """Read what :meth:`to_dict` gave.

        Raises:
            ValueError: If it is no plan.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"This is no plan of a search: {str(values)[:80]!r}.")
        try:
            values = {name: each for name, each in values.items() if name not in PLAN_OF_BEFORE}
            if "budget_shares" in values:
                # Plans of before have no others.
                values = {"further_shares": (), **values}
            if "shortlist_epochs" in values and "warm_rounds" not in values:
                # In plans of before, no training of the shortlist was from scratch.
                rounds = len(values["shortlist_epochs"])
                values = {"keep_simple": False, **values, "warm_rounds": rounds}
            return cls.of(None, values)
        except TypeError as error:
            raise ValueError(f"This is no plan of a search: {error}") from error

    def num_choices(self, *, side_by_side: bool) -> int:
        """Choices that a training batch is shared among.

        Args:
            side_by_side: Whether the model can score several choices in one batch.
        """
        if self.choices_per_step is not None:
            return self.choices_per_step
        return _SIDE_BY_SIDE if side_by_side else 1


def _instead(name: str, known: list[str]) -> str:
    """What may be meant by a name that is no field."""
    if name in {each.name for each in fields(PolicySettings)}:
        return f", but of its `policy`: `policy=PolicySettings({name}=...)`."
    near = [_ALIASES[name]] if name in _ALIASES else get_close_matches(name, known, n=1)
    return f". Do you mean `{near[0]}`?" if near else f", which has {known}."


def _defaults() -> list[tuple[str, Any]]:
    return [(each.name, each.default) for each in fields(SearchPlan)]
