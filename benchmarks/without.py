"""The search without one of its parts, for the ablation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

from optuna_nis import Allocation, NISSampler, space
from optuna_nis.controller.settings import PolicySettings
from optuna_nis.lightning import NISCallback, callback, job, shortlist
from optuna_nis.lightning.shortlist import Candidate

# A plain policy gradient: advantages come from the group's mean alone.
_NO_CRITIC = PolicySettings(learning_rate=0.0, sampled_learning_rate=0.5)


def _untrained(shortlist: Sequence[Allocation], *_: Any, **__: Any) -> list[Candidate]:
    """In place of the shortlist: what the supernet finds best, which its order tells."""
    return [Candidate(choice, -float(place)) for place, choice in enumerate(shortlist)]


def _powers_of_two(embedding_dim: int) -> tuple[int, ...]:
    """Column blocks without the widths between the powers of two."""
    return (1, *(2**n for n in range(embedding_dim.bit_length() - 1)))


#: Where each part sits in the product, and what takes its place.
WITHOUT: dict[str, tuple[Any, str, Any]] = {
    # The controller learns from the first step, on blocks that nothing has trained.
    "warm_up": (job, "NISCallback", partial(NISCallback, warmup=0.0)),
    # Each batch sees one choice, the full tables in turns, instead of four.
    "shared_batches": (job, "NISCallback", partial(NISCallback, choices_per_step=1)),
    "choices_near_budget": (callback, "_NEAR_BUDGET", 0.0),
    "choices_of_any_cost": (callback, "_NEAR_BUDGET", 1.0),
    "critic": (job, "NISSampler", partial(NISSampler, settings=_NO_CRITIC)),
    # All widths are equally likely at first, as far as the budget allows.
    "wide_start": (space._Table, "log_weights", lambda table: 0.0 * table.costs(0)),
    "smaller_budgets": (callback, "_BUDGET_SHARES", (1.0,)),
    "popularity": (job, "_by_popularity", lambda *_: None),
    "frequent_ids": (job, "_frequent_ids", lambda *_: []),
    "widths_between": (space, "_default_col_blocks", _powers_of_two),
    # Nothing leaves the shortlist because a better choice costs about the same.
    "same_cost": (shortlist, "_SAME_COST", 0.0),
    "proposals": (callback, "_PROPOSALS_PER_SHARE", 1),
    "shortlist": (job, "train_shortlist", _untrained),
}


@contextmanager
def patched(without: str | None) -> Iterator[None]:
    """Take a part away, if any is named."""
    with ExitStack() as stack:
        if without is not None:
            stack.enter_context(mock.patch.object(*WITHOUT[without]))
        yield
