"""The search without one of its parts, for the ablation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from optuna_nis import PolicySettings, SearchSpace
from optuna_nis.space import spec
from optuna_nis.strategy import candidates, pricing
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.rewarding import Rewarding


def _evenly(space: SearchSpace) -> Any:
    """Initial weights that prefer no width to another."""
    return space.tilt({name: np.zeros(len(options)) for name, options in space.choices.items()})


def _powers_of_two(embedding_dim: int) -> tuple[int, ...]:
    """Column blocks without the widths between the powers of two."""
    return (1, *(2**n for n in range(embedding_dim.bit_length() - 1)))


_IN_PLAN: dict[str, dict[str, Any]] = {
    # The controller learns from the first step, while the blocks are trained.
    "trained_first": {"warmup": 0.0, "epochs": 10},
    # Each batch sees one choice, the full tables in turns, instead of four.
    "shared_batches": {"choices_per_step": 1},
    "choices_near_budget": {"near_budget": 0.0},
    "choices_of_any_cost": {"near_budget": 1.0},
    # The policy proposes what it drew at first, almost.
    "updates": {"num_updates": 1},
    # A plain policy gradient: advantages come from the group's mean alone.
    "critic": {"policy": PolicySettings(learning_rate=0.0, sampled_learning_rate=0.5)},
    "smaller_budgets": {"budget_shares": (1.0,), "further_shares": ()},
    # No gradients of the loss: proposals come from the controller and from formulas.
    "prices": {"price_shares": ()},
    "popularity": {"popularity_powers": ()},
    "frequent_ids": {"frequent_shares": (), "frequent_narrower": False},
    # Formulas and uniform sizes have no place of their own in it.
    "keep_simple": {"keep_simple": False},
    # All of its rounds begin with the weights of the supernet.
    "from_scratch": {"warm_rounds": 3},
    "proposals": {"proposals": 1},
    # What the supernet finds best is the result.
    "shortlist": {"shortlist_epochs": ()},
}


def _nothing_simpler(*args: Any, **kwargs: Any) -> Iterator[Any]:
    return None, {}
    yield


_IN_CODE: dict[str, tuple[Any, str, Any]] = {
    # All widths are equally likely at first, as far as the budget allows.
    "wide_start": (SearchSpace, "initial_log_weights", _evenly),
    "widths_between": (spec, "_default_col_blocks", _powers_of_two),
    # Of choices alike good, the larger may win.
    "memory_price": (Rewarding, "memory_price", 0.0),
    "simpler": (candidates, "simplify", _nothing_simpler),
    # What is in doubt is proposed with, never without.
    "doubt": (pricing, "_OPTIMISM", (1.0, 0.0)),
}
WITHOUT = (*_IN_PLAN, *_IN_CODE)


@contextmanager
def plan_without(without: str | None) -> Iterator[SearchPlan]:
    """The plan of a search without a part, if any is named; parts of the code are patched."""
    patch = mock.patch.object(*_IN_CODE[without]) if without in _IN_CODE else nullcontext()
    with patch:
        yield replace(SearchPlan(), **_IN_PLAN.get(without or "", {}))
