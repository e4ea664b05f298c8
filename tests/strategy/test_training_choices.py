"""Under which choices a supernet is trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from optuna_nis import EmbeddingSpec, SearchSpace
from optuna_nis.strategy.plan import SearchPlan
from optuna_nis.strategy.training_choices import training_choices


def _space() -> SearchSpace:
    return SearchSpace([EmbeddingSpec("user", 100, 8)], budget=0.5)


def test_one_choice_in_turns_or_as_many_as_divide_the_batch() -> None:
    space, rng = _space(), np.random.default_rng(0)
    drawn: list[int] = []

    def draw(count: int) -> Any:
        drawn.append(count)
        return [space.sample(rng, space.budget) for _ in range(count)]

    def counts(num_examples: int | None, count: int, **options: Any) -> list[int]:
        runs = [
            training_choices(
                space,
                SearchPlan(),
                rng,
                count=count,
                num_examples=num_examples,
                full=index % 2 == 0,
                **options,
            )
            for index in range(4)
        ]
        assert all(
            choice.num_parameters <= 1.05 * space.budget for run in runs for choice in run[1:]
        )
        return [len(run) for run in runs]

    assert counts(12, 4) == [4] * 4
    assert counts(10, 4) == [2] * 4
    assert drawn == []
    assert counts(12, 4, draw=draw) == [4] * 4
    assert drawn == [1] * 4
    assert counts(None, 4) == [1] * 4
    assert counts(12, 1) == [1] * 4
